"""What came of a simulated campaign, in lines for people."""

from cloud_gateway.fleet.assignments import n_boxes
from cloud_gateway.rounds.commands.telling import (
    ROUND_HEAD,
    all_outcomes,
    duration,
    outcomes,
    privacy_lines,
    round_row,
    size,
)
from cloud_gateway.rounds.messages import CampaignView
from cloud_gateway.rounds.simulation.run import Outcome
from hybrid.cli.table import table

_SHOWN = 40


def lines(found: Outcome) -> list[str]:
    """The rounds, then the sums."""
    view = found.campaign
    rounds = [each for each in view.rounds if each.state == "closed"]
    told = [_headline(found)]
    if view.reason:
        told.append(view.reason)
    told += privacy_lines(view)
    if rounds:
        told += ["", *table([ROUND_HEAD, *map(round_row, rounds[-_SHOWN:])])]
        if len(rounds) > _SHOWN:
            told.append(f"and {len(rounds) - _SHOWN} before; --json has them all")
    n_counted = sum(each.n_counted for each in rounds)
    bad = outcomes(all_outcomes(view.rounds))
    traffic = f"{size(found.n_bytes_up)} up and {size(found.n_bytes_down)} down in {found.n_calls} calls"
    told += [
        "",
        *_attackers(found),
        *_failures(found),
        f"updates: {n_counted} counted; not counted: {bad}; {found.n_dropped} tasks lost with their boxes",
        f"bytes: {traffic} (messages; HTTP and TLS not counted)",
        f"time: {duration(found.seconds)} of the fleet's, of which boxes trained {duration(found.train_s)} in sum",
    ]
    rows = [
        (name, str(n), f"{found.updates_by_machine.get(name, 0) / n:.1f}")
        for name, n in sorted(found.boxes_by_machine.items())
    ]
    told += ["", *table([("machine", "boxes", "updates a box"), *rows])]
    return told + [f"alarm {text}" for text in found.alarms]


def _attackers(found: Outcome) -> list[str]:
    """What those of bad will came to; nothing where there are none."""
    if not found.n_attackers:
        return []
    n_accepted = found.attackers_outcomes.get("accepted", 0)
    bad = outcomes(found.attackers_outcomes)
    return [
        f"attackers ({found.fleet.attack}): {n_boxes(found.n_attackers)}; {n_accepted} updates accepted; not: {bad}"
    ]


def _failures(found: Outcome) -> list[str]:
    """Tasks that boxes could not do; nothing where they could."""
    failed = found.failures
    return [f"tasks that boxes could not do: {outcomes(failed)} (`hybrid explain ERROR`)"] if failed else []


def _headline(found: Outcome) -> str:
    view = found.campaign
    best = [each.accuracy for each in view.rounds if each.accuracy is not None]
    rounds = f"{view.step} round{'' if view.step == 1 else 's'} of {n_boxes(found.fleet.boxes)}"
    told = f"{view.state} after {rounds}, {view.n_parameters:,} weights"
    if view.base_accuracy is not None and best:
        told += f": accuracy {view.base_accuracy:.1%} to {best[-1]:.1%}, best {max(best):.1%}"
    reached = _reached(view)
    return told + (f"; target reached in round {reached}" if reached else "")


def _reached(view: CampaignView) -> int | None:
    """The round in which the target was reached."""
    if not view.order.target:
        return None
    return next((each.number for each in view.rounds if (each.accuracy or 0.0) >= view.order.target), None)
