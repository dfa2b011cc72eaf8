"""Every error of the library: what the caller can do about it, its code, its HTTP status, its exit code.

Design: classes are grouped by what the caller does next (fix the model, choose another plan, wait for the link, mend a
peer, ask for access, make room), each also inherits the builtin that a Python program would catch. Codes are stable:
they travel on the wire, stand in `--json` and in `RunReport.fallback`, and are never reused.
"""

from enum import IntEnum
from typing import Any, ClassVar


class ExitCode(IntEnum):
    """Exit codes of the `hybrid` command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    PERMISSION = 4
    UNREACHABLE = 5
    REFUSED = 6
    NOTHING_WON = 7
    INTERRUPTED = 130


class HybridError(Exception):
    """Root of the library's errors.

    The message says what was seen, what was wanted and what to do. `fields` are facts for programs (paths, names,
    seconds); neither holds a secret or a request's input. `advice`: what to do here, if not what fits the code.
    """

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[ExitCode] = ExitCode.FAILED

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.advice: str | None = fields.pop("advice", None)
        self.fields = fields


class ModelError(HybridError):
    """The model itself: mend the file, export it otherwise, or name another."""

    code = "model"
    http_status = 400


class ModelInvalid(ModelError, ValueError):
    """Missing pieces, corrupt bytes or an invalid graph. `fields`: path, and operator where one is known."""

    code = "model_invalid"


class ModelMissing(ModelInvalid, FileNotFoundError):
    """No file at the path that was given. `fields`: path."""

    code = "model_missing"
    http_status = 404
    exit_code = ExitCode.NOT_FOUND


class ModelUnsupported(ModelError):
    """A sound model with something that no engine here runs. `fields`: path, operator."""

    code = "model_unsupported"


class ModelOverBudget(ModelError):
    """It alone needs more memory than the gateway may use for models. `fields`: wanted_bytes, budget_bytes."""

    code = "model_over_budget"
    exit_code = ExitCode.REFUSED


class ModelUnavailable(ModelError, LookupError):
    """Not on this machine and not to be had from a gateway: check the name, the gateway and the token."""

    code = "model_unavailable"
    http_status = 404
    exit_code = ExitCode.NOT_FOUND


class GoldenDiffers(ModelError):
    """The engine here does not give the golden outputs of the artifact within their tolerance. `fields`: tensor."""

    code = "golden_differs"


class ModelUntrainable(ModelError, ValueError):
    """Nothing of the model may learn, or not by what is at hand here. `fields`: operator, where one is the reason."""

    code = "model_untrainable"


class PlanError(HybridError):
    """The wanted placement cannot be had: choose another one."""

    code = "plan"
    http_status = 409


class UnknownCut(PlanError, LookupError):
    """A cut id that is not in this model's table for this shape key."""

    code = "unknown_cut"
    http_status = 404
    exit_code = ExitCode.NOT_FOUND


class UnknownSplit(PlanError, LookupError):
    """A split of the model's artifact that this gateway does not hold, or not with the same files."""

    code = "unknown_split"
    http_status = 404
    exit_code = ExitCode.NOT_FOUND


class PlacementUnavailable(PlanError):
    """A forced placement with `fallback=False` that could not be had; the message says why."""

    code = "placement_unavailable"


class DataUnfit(PlanError, ValueError):
    """Samples or labels by which the wanted floor cannot be judged; the message says what is missing."""

    code = "data_unfit"
    http_status = 400


class CampaignImpossible(PlanError, ValueError):
    """A campaign of rounds whose wishes cannot be had, or not together; the message says which and why."""

    code = "campaign_impossible"
    http_status = 400


class LinkError(HybridError, ConnectionError):
    """The way to the gateway: wait, or compute locally."""

    code = "link"
    http_status = 502
    exit_code = ExitCode.UNREACHABLE


class LinkHeld(LinkError):
    """The link is there, but its operator keeps it for other things now: metered, on battery, not the hour."""

    code = "link_held"
    http_status = 503


class GatewayUnreachable(LinkError):
    """No connection: refused, no route, name not found, or none configured."""

    code = "gateway_unreachable"


class ConnectionLost(LinkError):
    """The connection ended while a request was on it."""

    code = "connection_lost"


class GatewayStalled(LinkError, TimeoutError):
    """No acknowledged progress for longer than the stall limit."""

    code = "gateway_stalled"
    http_status = 504


class GatewayUntrusted(LinkError):
    """A gateway that did not prove who it is: pin its certificate or give a token that it holds."""

    code = "gateway_untrusted"
    exit_code = ExitCode.PERMISSION


class ProtocolError(HybridError, ValueError):
    """Bytes that do not follow the protocol: one of the two peers has a fault."""

    code = "protocol"
    http_status = 400


class BadFrame(ProtocolError):
    """A frame of unknown kind, wrong length or wrong state."""

    code = "bad_frame"


class BadMessage(ProtocolError):
    """A message whose header does not parse or lacks what it needs."""

    code = "bad_message"


class TensorMismatch(ProtocolError):
    """A tensor whose bytes, shape or datatype contradict what was declared or what the model wants."""

    code = "tensor_mismatch"


class TooLarge(ProtocolError):
    """A header or body beyond the limit, refused before memory is taken."""

    code = "too_large"
    http_status = 413
    exit_code = ExitCode.REFUSED


class VersionMismatch(ProtocolError):
    """The peer speaks no protocol version that this one speaks: upgrade the older side."""

    code = "version_mismatch"
    http_status = 426


class VersionUnsupported(ProtocolError):
    """Box and gateway are too many releases apart. `fields`: mine, theirs (versions of the fleet's calls)."""

    code = "version_unsupported"
    http_status = 426


class TokenMistyped(ProtocolError):
    """An enrolment token whose checksum does not fit: it was cut or mistyped, and nobody was asked."""

    code = "token_mistyped"
    exit_code = ExitCode.USAGE


class RefusedError(HybridError):
    """The gateway understood and declined."""

    code = "refused"
    http_status = 403
    exit_code = ExitCode.REFUSED


class Unauthenticated(RefusedError, PermissionError):
    """No token, an unknown one, or a revoked one."""

    code = "unauthenticated"
    http_status = 401
    exit_code = ExitCode.PERMISSION


class Forbidden(RefusedError, PermissionError):
    """A good token without the right to do this."""

    code = "forbidden"
    exit_code = ExitCode.PERMISSION


class NotAdmitted(RefusedError, PermissionError):
    """The fleet's registry does not admit this box now. `fields`: admission (waiting, quarantined, revoked)."""

    code = "not_admitted"
    exit_code = ExitCode.PERMISSION


class MaskingRefused(RefusedError, PermissionError):
    """A device goes no further in a masked round: what the gateway sent could uncover an update, or is too few."""

    code = "masking_refused"


class StaleNonce(RefusedError):
    """A signed call whose challenge is spent, too old or of another certificate: ask for a new one and sign again."""

    code = "nonce_stale"
    http_status = 409


class NotFound(RefusedError, LookupError):
    """What was asked for does not exist on this gateway."""

    code = "not_found"
    http_status = 404
    exit_code = ExitCode.NOT_FOUND


class Conflict(RefusedError):
    """It exists already with other content; versions never change."""

    code = "conflict"
    http_status = 409


class PrivacySpent(RefusedError):
    """A round would take boxes over their privacy budget. `fields`: epsilon_spent, epsilon_wanted, epsilon_max."""

    code = "privacy_spent"
    http_status = 409


class VersionReplayed(RefusedError):
    """An older version than was had already, without a publisher's signed rollback. `fields`: sequence, had."""

    code = "version_replayed"
    http_status = 409


class DigestMismatch(RefusedError):
    """Digest or cut id of the two sides differ: never composed."""

    code = "digest_mismatch"
    http_status = 409


class Warming(RefusedError):
    """The gateway is still building what the request needs. `fields`: retry_after_s."""

    code = "warming"
    http_status = 503
    exit_code = ExitCode.UNREACHABLE


class Overloaded(RefusedError):
    """Queues are full, or the service is draining. `fields`: retry_after_s."""

    code = "overloaded"
    http_status = 503
    exit_code = ExitCode.UNREACHABLE


class OutboxFull(RefusedError):
    """The box's outbox takes no more until the gateway took some. `fields`: retry_after_s."""

    code = "outbox_full"
    http_status = 503


class DeadlinePassed(RefusedError, TimeoutError):
    """The request's deadline passed before it could be answered."""

    code = "deadline_passed"
    http_status = 504


class Cancelled(RefusedError):
    """The caller withdrew the request."""

    code = "cancelled"
    http_status = 499


class EngineFailed(HybridError, RuntimeError):
    """The engine raised while running a model that it had loaded. `fields`: model, operator where known."""

    code = "engine_failed"


class EngineCrashed(EngineFailed):
    """The process that ran the engine ended by itself, ran out of memory, or did not end in time. `fields`: model."""

    code = "engine_crashed"


class TrainingDiverged(HybridError, ArithmeticError):
    """Loss or weights of a training on this machine are no finite numbers: nothing of it is used."""

    code = "training_diverged"


class StorageError(HybridError, OSError):
    """A disk that is full, or content that is not what was written."""

    code = "storage"
    http_status = 507


class DiskFull(StorageError):
    """No room: nothing was half-stored; make room and try again. `fields`: path, wanted_bytes."""

    code = "disk_full"
    exit_code = ExitCode.REFUSED


class CorruptContent(StorageError):
    """Stored or received bytes whose digest is not the declared one."""

    code = "corrupt_content"
    http_status = 422


def _subclasses(root: type[HybridError]) -> list[type[HybridError]]:
    return [root, *(each for child in root.__subclasses__() for each in _subclasses(child))]


CATALOG: dict[str, type[HybridError]] = {kind.code: kind for kind in _subclasses(HybridError)}
"""Every code of the library and its class."""


def from_code(code: str, message: str, **fields: Any) -> HybridError:
    """The error that a peer named by its code; an unknown code is a plain `RefusedError`."""
    return CATALOG.get(code, RefusedError)(message, **fields)
