"""What boxes last told, by call or by outbox: each word once, and never an older one over a newer."""

import math
from typing import Final

import msgspec

from hybrid.fleet.messages import Health, Installed, StateCall

_MAX_MODELS = 256
_MAX_PROBLEMS = 64
_MAX_WORD = 128
_MOST: Final = 1 << 53
_MOST_RUNS: Final = 10**10
"""Thirty runs a second for ten years; the statistics take longer with the size of such numbers."""
_MOST_S: Final = 86_400.0
_AMOUNTS: Final = ("disk_free_bytes", "outbox_items", "outbox_bytes", "outbox_dropped")
_MOST_LETTERS: Final = {
    "name": _MAX_WORD,
    "version": _MAX_WORD,
    "artifact_digest": _MAX_WORD,
    "wanted_digest": _MAX_WORD,
    "rollout": _MAX_WORD,
    "code": 64,
    "detail": 500,
}


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What a box said of one model, in a call or a report, and when it was so (seconds since 1970, gateway's clock)."""

    installed: Installed
    at_s: float
    by_call: bool = False


class BoxState(msgspec.Struct, kw_only=True):
    """The last words of a box.

    Attributes:
        seen_s: last heard of, by the gateway's clock.
        models: by name; those of the last call.
        item_id, report_s: the newest report from its outbox, and when that was made.
        generation: the state that it has, as it says.
    """

    epoch: str = ""
    run: str = ""
    seen_s: float = 0.0
    generation: str = ""
    trust_sequence: int = -1
    protocol: int = 0
    models: dict[str, Told] = {}
    health: Health | None = None
    health_s: float = 0.0
    item_id: int = -1
    report_s: float = 0.0

    def note_call(self, call: StateCall, now_s: float) -> list[Installed]:
        """Take over a state call, which speaks of now and of all models; returns what it told of each."""
        self.epoch, self.run, self.seen_s = call.epoch[:_MAX_WORD], call.run[:_MAX_WORD], now_s
        self.generation, self.protocol = call.known[:_MAX_WORD], call.protocol
        self.trust_sequence = min(max(call.trust_sequence, -1), _MOST)
        told = [_bounded(installed) for installed in call.installed[:_MAX_MODELS]]
        self.models = {one.name: Told(installed=one, at_s=now_s, by_call=True) for one in told}
        if call.health is not None:
            self.health, self.health_s = _bounded_health(call.health), now_s
        return told

    def note_report(self, report: Installed, item_id: int, made_s: float) -> Installed | None:
        """Take over one report that was on its way for a while; None when nothing newer is in it.

        Reports come in the order in which they were made, whatever their moments say, which are as uncertain as the
        call that brought them was slow. Only against a state call, which comes another way, the moments decide.

        Args:
            report: of one model.
            item_id: rises with each report, as long as the gateway has the same database of them.
            made_s: when it was made, by the gateway's clock.
        """
        if item_id <= self.item_id and made_s <= self.report_s:
            return None
        self.item_id, self.report_s = item_id, made_s
        report = _bounded(report)
        known = self.models.get(report.name)
        if known is not None and known.by_call and made_s < known.at_s:
            return None
        if known is None and len(self.models) >= _MAX_MODELS:
            return None
        self.models[report.name] = Told(installed=report, at_s=made_s)
        return report


def _bounded(told: Installed) -> Installed:
    """Words of a box are kept and compared with those of others: nothing in them may be more than the contract has."""
    return msgspec.structs.replace(
        told,
        **{field: getattr(told, field)[:most] for field, most in _MOST_LETTERS.items()},
        **{field: _whole(getattr(told, field), _MOST_RUNS) for field in ("n_good", "n_errors", "n_crashes")},
        **{field: _figure(getattr(told, field), _MOST_S) for field in ("p50_s", "p95_s")},
    )


def _bounded_health(health: Health) -> Health:
    return msgspec.structs.replace(
        health,
        problems=tuple(problem[:_MAX_WORD] for problem in health.problems[:_MAX_PROBLEMS]),
        **{field: _whole(getattr(health, field), _MOST) for field in _AMOUNTS},
        uptime_s=_figure(health.uptime_s, _MOST),
    )


def _whole(number: int, most: int) -> int:
    """A count as a sound box tells it; one that no database could hold becomes one that it can."""
    return min(max(number, 0), most)


def _figure(figure: float, most: float) -> float:
    return min(max(figure, 0.0), most) if math.isfinite(figure) else 0.0
