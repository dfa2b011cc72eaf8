"""The messages of the fleet's calls, typed; docs/fleet.md has the calls and the rules.

Design: fields that a reader does not know are ignored and new ones have defaults, so that box and gateway may be a few
releases apart; what cannot be bridged raises `PROTOCOL`, and the older side refuses by name.
"""

from typing import Final, Literal

import msgspec

PROTOCOL: Final = 1
"""The version of these calls that this program speaks."""

Phase = Literal[
    "downloading", "verified", "warming", "trial", "committed", "failed", "rolled_back", "deferred", "removed"
]
"""Where the installation of an assigned version stands on a box; docs/agent.md has the state machine."""

Admission = Literal["waiting", "admitted", "quarantined", "revoked"]
"""What the gateway's registry says of a box."""

SampleRule = Literal["off", "keep", "upload"]

Kind = Literal["report", "result", "sample", "telemetry", "deferred"]
"""What an item of the outbox is; also the order of priority, most important first, but for `deferred` (see docs)."""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A message; immutable."""


class Hello(Message, frozen=True):
    """Who the gateway is, in answer to a box's nonce.

    Attributes:
        protocol: the newest version of the calls that it speaks.
        authority_key: raw Ed25519 public key, 32 bytes.
        nonce: the gateway's challenge, for the next enrolment or access call on any connection, for two minutes.
        time_s: seconds since 1970 by the gateway's clock.
        signature: by the authority, over the fields named in docs/fleet.md.
    """

    protocol: int
    authority_key: bytes
    nonce: bytes
    time_s: float
    signature: bytes


class EnrollCall(Message, frozen=True):
    """A box asks to be admitted.

    Attributes:
        token_id: which enrolment token.
        secret: its secret, as text.
        box_key: the box's public key, DER SubjectPublicKeyInfo of a P-256 key.
        epoch: of the installation, 32 hex digits.
        nonce: from the hello before.
        signature: ECDSA with SHA-256 by the box's key.
        name: wished, for people.
        software: version of the agent.
        machine: what the box is, in words.
    """

    token_id: str
    secret: str
    box_key: bytes
    epoch: str
    nonce: bytes
    signature: bytes
    name: str = ""
    software: str = ""
    machine: str = ""
    protocol: int = PROTOCOL


class EnrollAnswer(Message, frozen=True):
    """What became of it; asking again with the same key gives the same answer."""

    box_id: str
    admission: Admission
    name: str = ""
    tags: dict[str, str] = {}
    trust: bytes | None = None
    """The signed trust bundle, None where the fleet has no root."""


class AccessCall(Message, frozen=True):
    """An admitted box asks for a token of one hour.

    Attributes:
        run: drawn at random at each start of the agent, 32 hex digits: two that live at once give a clone away.
    """

    box_id: str
    epoch: str
    run: str
    nonce: bytes
    signature: bytes
    software: str = ""
    protocol: int = PROTOCOL


class AccessAnswer(Message, frozen=True):
    """The token, or why there is none (`admission`)."""

    admission: Admission
    token: str = ""
    expires_in_s: float = 0.0


class Installed(Message, frozen=True):
    """One model on a box, as the box tells it.

    Attributes:
        artifact_digest: of the version that answers requests now; empty when none does.
        wanted_digest: of the version that is being installed or was refused; empty when none is.
        rollout: under which the wanted version came.
        phase: of the wanted version, else `committed`.
        code: of the error that ended it; empty while all is well.
        detail: the error's message, without inputs or secrets, at most 500 characters.
        n_good, n_errors, n_crashes: runs of the answering version since it was installed.
        p50_s, p95_s: its latency over the last window; 0 where there were no runs.
        is_on_trial: the answering version is, while the wanted one waits for the end of that.
    """

    name: str
    version: str
    artifact_digest: str
    wanted_digest: str = ""
    rollout: str = ""
    phase: Phase = "committed"
    code: str = ""
    detail: str = ""
    n_good: int = 0
    n_errors: int = 0
    n_crashes: int = 0
    p50_s: float = 0.0
    p95_s: float = 0.0
    is_on_trial: bool = False


class Health(Message, frozen=True):
    """How a box is, as it sees itself. `problems` are codes of docs/errors.md or of `hybrid agent doctor`."""

    ready: bool
    problems: tuple[str, ...] = ()
    disk_free_bytes: int = 0
    outbox_items: int = 0
    outbox_bytes: int = 0
    outbox_dropped: int = 0
    uptime_s: float = 0.0


class StateCall(Message, frozen=True):
    """A box tells how it is, and asks for what it should be; answered when that differs from `known`, or after a wait.

    Attributes:
        known: generation of the state that the box has; empty for none.
        wait_s: how long the answer may take, 0 to 300.
    """

    known: str
    epoch: str
    run: str
    wait_s: float = 0.0
    trust_sequence: int = -1
    installed: tuple[Installed, ...] = ()
    health: Health | None = None
    protocol: int = PROTOCOL


class Trial(Message, frozen=True):
    """What a version must show before it is committed: `n_good` runs or `most_s` seconds without an error."""

    n_good: int = 20
    most_s: float = 600.0


class Assigned(Message, frozen=True):
    """One model that a box should have.

    Attributes:
        rollout: id of the rollout, empty for a plain assignment.
        rollback: the sequence may fall: a `Rollback` signed by a publisher, as its exact bytes and signature text.
        report_within_s: the gateway counts the box as failed when it has not told `committed` within so long.
        priority: share of the box's engines against other models: 0 to 9, higher first.
    """

    name: str
    version: str
    artifact_digest: str
    rollout: str = ""
    rollback: tuple[bytes, str] | None = None
    samples: SampleRule = "keep"
    priority: int = 5
    trial: Trial = Trial()
    report_within_s: float = 3600.0


class StateAnswer(Message, frozen=True):
    """What a box should be.

    Attributes:
        generation: names this state; the box sends it back as `known`.
        models: all of them; one that is not here is removed.
        trust: a newer trust bundle than the box has.
        poll_after_s: upper end of the random pause before the next call.
        tags: of the box.
    """

    generation: str
    models: tuple[Assigned, ...] = ()
    trust: bytes | None = None
    poll_after_s: float = 5.0
    tags: dict[str, str] = {}
    admission: Admission = "admitted"


class Item(Message, frozen=True):
    """One thing of a box's outbox. Its key is (box, epoch, stream, seq); the same key is stored once.

    Attributes:
        stream: items of a stream are stored in the order of `seq`.
        seq: 0, 1, 2, … without gaps, but for items that were dropped (`skipped`).
        skipped: how many items before this one the box dropped by its policy.
        age_s: how long before the call it was made, by a clock that only runs forward; -1 where a restart lost it.
        body: its content, at most 1 MiB; larger ones are blobs.
        blob_sha256: digest of a blob that the gateway holds already (see docs/fleet.md); empty for none.
        digest: SHA-256 of the content: the same key with another digest is a stale epoch.
        origin: epoch and number under which it was kept first, where the box numbered it anew: the gateway that has it
            under that key acknowledges it and does not store it again.
    """

    stream: str
    seq: int
    kind: Kind
    digest: str
    skipped: int = 0
    age_s: float = -1.0
    body: bytes = b""
    blob_sha256: str = ""
    origin: tuple[str, int] | None = None


class IngestCall(Message, frozen=True):
    """Items of one box, at most 4 MiB of bodies; MessagePack on the wire."""

    epoch: str
    items: tuple[Item, ...]
    protocol: int = PROTOCOL


class Refused(Message, frozen=True):
    """An item that the gateway will never take: the box drops it and counts it."""

    stream: str
    seq: int
    code: str
    detail: str = ""


class IngestAnswer(Message, frozen=True):
    """What is stored, on the disk, by stream: all up to that seq. `stale_epoch`: draw a new one and send again.

    Attributes:
        acked: every stream of the call; -1 where nothing of it is stored.
        held: by stream that did not advance, the code of the reason: it is sent again later.
    """

    acked: dict[str, int] = {}
    held: dict[str, str] = {}
    refused: tuple[Refused, ...] = ()
    stale_epoch: bool = False


class Outcome(Message, frozen=True):
    """What became of a deferred inference: a reply as `hybrid.fleet.packed` writes it, or an error's code and message.

    A reply of more than 4 MiB is a blob of the box's own space (`blob_sha256`).
    """

    stream: str
    seq: int
    body: bytes = b""
    blob_sha256: str = ""
    code: str = ""
    detail: str = ""


class OutcomesCall(Message, frozen=True):
    """A box asks for outcomes of its deferred inferences; those named in `received` may be forgotten."""

    epoch: str
    received: tuple[tuple[str, int], ...] = ()
    wait_s: float = 0.0


class OutcomesAnswer(Message, frozen=True):
    """The oldest that fit 4 MiB."""

    outcomes: tuple[Outcome, ...] = ()
