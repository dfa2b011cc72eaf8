"""A campaign in lines for people: how it stands, its rounds, what became of updates."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

from cloud_gateway.fleet.assignments import n_boxes, shown
from cloud_gateway.rounds.cohort.left_out import words
from cloud_gateway.rounds.messages import ENDED, CampaignView, PromotionView, RoundView
from hybrid.cli.table import table, wrapped
from hybrid.federated.campaign import Campaign
from hybrid.federated.learning.operators.call import INSTALL_TORCH
from hybrid.federated.privacy.accountant import cost_of, epsilon_for

ROUND_HEAD = ("round", "state", "updates", "rejected", "accuracy", "up", "down", "took")
_GOOD = frozenset({"accepted", "counted", "chosen"})
_LATEST = 3


def label(view: CampaignView) -> str:
    """Model, version and variant."""
    order = view.order
    return f"{order.model}:{order.version}" + (f" ({order.variant})" if order.variant else "")


def headline(view: CampaignView) -> str:
    """One line: how far it is."""
    told = f"campaign {view.id} of {label(view)}: {view.state}, step {view.step} of {view.order.rounds}"
    accuracy = newest_accuracy(view)
    if accuracy is not None:
        told += f", accuracy {accuracy:.1%}"
        if view.base_accuracy is not None:
            told += f" (base {view.base_accuracy:.1%})"
    if view.epsilon > 0:
        told += f", epsilon {view.epsilon:.2f}"
    left_s = seconds_left(view)
    return told + (f", about {duration(left_s)} left" if left_s is not None else "")


def newest_accuracy(view: CampaignView) -> float | None:
    """Of the newest step that was measured."""
    return next((each.accuracy for each in reversed(view.rounds) if each.accuracy is not None), None)


def seconds_left(view: CampaignView) -> float | None:
    """Until its rounds are done, by the median of those that are; None where nothing tells."""
    took = [each.seconds for each in view.rounds if each.state == "closed"]
    if view.state != "running" or not took:
        return None
    open_s = sum(each.seconds for each in view.rounds if each.state != "closed")
    return max(0.0, median(took) * (view.order.rounds - view.step) - open_s)


def lines(view: CampaignView, *, all_rounds: bool = False) -> list[str]:
    """All of a campaign for people."""
    order = view.order
    told = [headline(view)]
    if view.reason:
        told.append(view.reason)
    told.append(
        f"goal {order.goal} of {view.n_boxes} boxes ({shown(order.cohort.tags)}), {view.n_parameters:,} weights, "
        f"{_way(order)}, {order.coding.up} up, {order.coding.down} down"
    )
    told += [*thin_line(view), *torch_lines(view), *privacy_lines(view)]
    rounds = view.rounds if all_rounds else view.rounds[-10:]
    if rounds:
        told += ["", *table([ROUND_HEAD, *map(round_row, rounds)])]
    if len(rounds) < len(view.rounds):
        told.append(f"and {len(view.rounds) - len(rounds)} before; `hybrid rounds report {view.id}` shows them")
    home = promotion_lines(view)
    return told + ([""] if home and rounds else []) + home


def _way(order: Campaign) -> str:
    """How updates become a step, and what of the model stays on the boxes."""
    aggregation = order.aggregation
    told: list[str] = [aggregation.rule] * (aggregation.rule != "mean")
    if aggregation.scaffold:
        told.append("SCAFFOLD")
    elif aggregation.optimizer != "plain" or not told:
        told.append(aggregation.optimizer)
    if aggregation.max_staleness:
        told.append(f"up to {aggregation.max_staleness} steps late")
    if order.training.personal:
        told.append(f"{' and '.join(order.training.personal)} personal")
    return ", ".join(told)


def text_of(told: Sequence[str]) -> str:
    """Lines as the terminal holds them; tables do already."""
    return "\n".join(line for text in told for line in wrapped(text))


def thin_line(view: CampaignView) -> list[str]:
    """Why a campaign that runs may not reach its goal; nothing where enough boxes could begin."""
    if view.state != "running" or view.n_able >= view.order.goal or not view.left_out:
        return []
    return [f"{n_boxes(view.n_able)} of {view.n_boxes} could begin a task now; {words(view.left_out)}"]


def torch_lines(view: CampaignView) -> list[str]:
    """What boxes need for it beyond numpy."""
    if not view.by_torch:
        return []
    return [f"boxes need torch for {', '.join(view.by_torch)} of this variant; on each: {INSTALL_TORCH}"]


def privacy_lines(view: CampaignView) -> list[str]:
    """What is promised about one box, and what it will have come to."""
    order = view.order
    privacy = order.privacy
    told = []
    if privacy.secure:
        told.append("secure aggregation: the gateway sees sums only")
    if privacy.noise > 0:
        whole = epsilon_for(cost_of(privacy.noise, order.rounds), privacy.delta)
        budget = f" of {privacy.max_epsilon:g} allowed" if privacy.max_epsilon > 0 else ""
        told.append(
            f"noise {privacy.noise:g}: epsilon {view.epsilon:.2f}{budget} so far at delta {privacy.delta:g}; a box in "
            f"all {order.rounds} rounds spends {whole:.2f}"
        )
    return told


def round_row(view: RoundView) -> tuple[str, ...]:
    """A round as a row of `ROUND_HEAD`."""
    times = "once" if view.n_abandoned == 1 else f"{view.n_abandoned} times"
    state = view.state + (f", abandoned {times}" if view.n_abandoned else "")
    return (
        str(view.number),
        state,
        str(view.n_counted) + (f" (+{view.n_leases} at work)" if view.n_leases else ""),
        outcomes(view.outcomes),
        "-" if view.accuracy is None else f"{view.accuracy:.1%}",
        size(view.n_bytes_up),
        size(view.n_bytes_down),
        duration(view.seconds),
    )


def outcomes(found: Mapping[str, int]) -> str:
    """What did not count, and why; `-` where all did."""
    bad = {name.removeprefix("rejected:"): n for name, n in sorted(found.items()) if name not in _GOOD and n}
    return ", ".join(f"{n} {name}" for name, n in bad.items()) or "-"


def all_outcomes(rounds: Sequence[RoundView]) -> dict[str, int]:
    """Of all rounds together."""
    total: Counter[str] = Counter()
    for each in rounds:
        total.update(each.outcomes)
    return dict(total)


def promotion_lines(view: CampaignView) -> list[str]:
    """What became of steps, the newest wishes last: what failed before one that came home is past."""
    found = list(view.promotions)
    home = max((at for at, each in enumerate(found) if each.version and not each.reason), default=-1)
    return [promotion_line(each) for at, each in enumerate(found) if at >= home or not each.reason][-_LATEST:]


def promotion_line(view: PromotionView) -> str:
    """What became of a step that was to become a version."""
    told = f"step {view.step}: {view.state}"
    if view.version:
        told += f" {view.version}"
    if view.accuracy is not None and view.base_accuracy is not None:
        told += f", accuracy {view.accuracy:.1%} beside {view.base_accuracy:.1%}"
    if view.state == "evaluating":
        told += f", {n_boxes(view.n_boxes)} tried it so far"
    elif view.n_boxes:
        told += f", {view.n_won} won and {view.n_lost} lost on {view.n_boxes} boxes"
    if view.rollout:
        told += f", rollout {view.rollout}"
    return told + (f": {view.reason}" if view.reason else "")


def is_over(view: CampaignView) -> bool:
    """Whether nothing of it will change by itself any more."""
    waits_for_people = view.state in ENDED or view.state == "stalled"
    return waits_for_people and not any(each.state == "evaluating" for each in view.promotions)


def comes_home(view: CampaignView) -> bool:
    """Whether its result is to become a version by itself, and nothing is told of that yet: it begins after the end."""
    is_wanted = view.order.promotion.policy != "none" and view.state in ("completed", "spent") and view.step > 0
    return is_wanted and all(each.step != view.step for each in view.promotions)


def size(n_bytes: float) -> str:
    """Bytes for people."""
    for scale, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.1f} {name}"
    return f"{n_bytes:.0f} B"


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds >= 5400.0:
        return f"{seconds / 3600.0:.1f} h"
    if seconds >= 90.0:
        return f"{seconds / 60.0:.0f} min"
    if 0.0 < seconds < 0.95:
        return f"{max(1.0, 1e3 * seconds):.0f} ms"
    return f"{seconds:.0f} s" if seconds >= 9.95 or seconds == 0.0 else f"{seconds:.1f} s"
