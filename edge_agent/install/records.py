"""What `slots.json` says of one model: which slot answers, what is in each, and where an installation stands."""

from typing import Final, Literal

import msgspec

from hybrid.artifact.names import check_digest, check_word
from hybrid.errors import BadMessage
from hybrid.fleet.messages import Phase, Trial

SCHEMA: Final = 1
Slot = Literal["a", "b"]
SLOTS: Final[tuple[Slot, Slot]] = ("a", "b")
MOST_DETAIL: Final = 500


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A complete version in a slot; its files were on the disk, with the right digests, before this was written.

    Attributes:
        signed_by: id of the key that vouches for it; empty in a fleet without a root.
        is_good: it was committed here once.
    """

    artifact_digest: str
    version: str
    sequence: int
    signed_by: str = ""
    is_good: bool = False


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """The version that is assigned; another rollout of the same version is another assignment."""

    artifact_digest: str
    version: str
    rollout: str = ""
    trial: Trial = Trial()


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why the wanted version does not answer. `at_s` is when, by the box's wall clock."""

    code: str
    detail: str
    at_s: float


class Slots(msgspec.Struct, frozen=True, kw_only=True):
    """All that lasts of one model.

    Attributes:
        answers: the slot that requests go to; empty for none.
        phase: of the wanted version; on `trial` it is the one that answers.
        next: assigned while the wanted version is on trial and no good one is here to go back to: it waits for the
            trial's end.
        sequence: the highest that was ever committed here; -1 before the first.
        last_good: artifact digest of the version that was committed before the present one.
        n_crashes: of the service, in one boot of the machine, since the answering version answers.
        n_reboots: falls of the machine without a stop of the service, during the trial.
        n_openings: crashes of the service while it opened the wanted version.
        n_good, n_errors: runs of the answering version, as of the last orderly stop.
    """

    name: str
    schema: int = SCHEMA
    a: Held | None = None
    b: Held | None = None
    answers: Literal["", "a", "b"] = ""
    phase: Phase = "removed"
    wanted: Wanted | None = None
    next: Wanted | None = None
    failure: Failure | None = None
    sequence: int = -1
    last_good: str = ""
    n_crashes: int = 0
    n_reboots: int = 0
    n_openings: int = 0
    n_good: int = 0
    n_errors: int = 0

    def held(self, slot: Slot | Literal[""]) -> Held | None:
        """What is in a slot."""
        return self.a if slot == "a" else self.b if slot == "b" else None

    @property
    def free(self) -> Slot:
        """The slot that the wanted version is in, or goes into: never the one that answers."""
        if self.answers:
            return "b" if self.answers == "a" else "a"
        return (self.slot_of(self.wanted.artifact_digest) if self.wanted is not None else None) or "a"

    @property
    def answering(self) -> Held | None:
        """The version that requests go to."""
        return self.held(self.answers)

    def slot_of(self, artifact_digest: str) -> Slot | None:
        """The slot that holds a version completely."""
        for slot in SLOTS:
            held = self.held(slot)
            if held is not None and held.artifact_digest == artifact_digest:
                return slot
        return None


def encode(slots: Slots) -> bytes:
    """The bytes of `slots.json`."""
    return msgspec.json.format(msgspec.json.encode(slots), indent=1)


def decode(data: bytes, name: str) -> Slots:
    """What a `slots.json` says.

    Raises:
        BadMessage: damaged, of another schema, of another model, or it contradicts itself.
    """
    try:
        slots = msgspec.json.decode(data, type=Slots)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise BadMessage(f"slots.json of {name} does not parse ({exc}); it is set aside and written anew") from exc
    check_word(slots.name)
    if slots.schema != SCHEMA or slots.name != name:
        raise BadMessage(f"slots.json of {name} is of schema {slots.schema} and model {slots.name!r}")
    for digest in (held.artifact_digest for held in (slots.a, slots.b, slots.wanted, slots.next) if held is not None):
        check_digest(digest)
    if slots.answers and slots.answering is None:
        raise BadMessage(f"slots.json of {name} lets an empty slot answer")
    if slots.phase == "trial" and (slots.answering is None or slots.wanted is None):
        raise BadMessage(f"slots.json of {name} is on trial without a version that could be")
    if slots.next is not None and slots.phase != "trial":
        raise BadMessage(f"slots.json of {name} lets a version wait for a trial that is over")
    return slots
