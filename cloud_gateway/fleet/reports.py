"""What boxes last told, by call or by outbox: each word once, and never an older one over a newer."""

import msgspec

from hybrid.fleet.messages import Health, Installed, StateCall

_MAX_MODELS = 256
_MAX_PROBLEMS = 64
_MAX_DETAIL = 500


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
        self.epoch, self.run, self.seen_s = call.epoch, call.run, now_s
        self.generation, self.trust_sequence, self.protocol = call.known, call.trust_sequence, call.protocol
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
        known = self.models.get(report.name)
        if known is not None and known.by_call and made_s < known.at_s:
            return None
        if known is None and len(self.models) >= _MAX_MODELS:
            return None
        told = _bounded(report)
        self.models[report.name] = Told(installed=told, at_s=made_s)
        return told


def _bounded(told: Installed) -> Installed:
    """Words of a box are shown to people and kept: not more of them than the contract allows."""
    if len(told.detail) <= _MAX_DETAIL and len(told.code) <= 64 and len(told.version) <= 64:
        return told
    return msgspec.structs.replace(
        told, detail=told.detail[:_MAX_DETAIL], code=told.code[:64], version=told.version[:64]
    )


def _bounded_health(health: Health) -> Health:
    if len(health.problems) <= _MAX_PROBLEMS:
        return health
    return msgspec.structs.replace(health, problems=health.problems[:_MAX_PROBLEMS])
