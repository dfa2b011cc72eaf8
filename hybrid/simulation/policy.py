"""What decides for each request, and what it gets to see: the same as a live session gets to see."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Move(NamedTuple):
    """A decision.

    `prospect` is its number; the device begins too `hedge_s` seconds after departure (None: never; 0: a race);
    `is_switch` says that the plan is another one from now on; `why` is whatever the policy wants to see again.
    """

    prospect: int
    hedge_s: float | None = None
    predicted_s: float | None = None
    why: object = None
    is_switch: bool = False


class Load(NamedTuple):
    """What is under way when a request comes: runs on the device, and requests that are not answered."""

    n_device_runs: int
    n_in_flight: int


class Reply(NamedTuple):
    """What a remote answer tells: bytes each way, and seconds as the two sides saw them.

    `head_s` is the device's, encoding included; `total_s` runs from departure (after head and encoding) to the answer;
    `receive_s` from the first to the last byte at the gateway, `reply_s` the same of the reply at the device;
    `network_s` is the total less queue and computing.
    """

    head_s: float
    bytes_up: float
    bytes_down: float
    total_s: float
    receive_s: float
    queue_s: float
    compute_s: float
    reply_s: float = 0.0

    @property
    def network_s(self) -> float:
        """Seconds that were neither queue nor computing."""
        return self.total_s - self.queue_s - self.compute_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """How a system behaves around its decisions.

    Attributes:
        patience_s: silence after which a remote attempt has failed; None for the live session's rule (four round
            trips and two chunks of 16 KiB, within 0.5 to 3 s), infinity for one that waits for ever.
        n_attempts: remote attempts of one request before the device answers.
        pause_s: between two of them.
        waits_for_gateway: sends as soon as a lost gateway is back, where others answer locally meanwhile.
        unsure_ratio: for a cascade, the share of requests that are sent after the device's small model; else None.
    """

    patience_s: float | None = None
    n_attempts: int = 1
    pause_s: float = 0.0
    waits_for_gateway: bool = False
    unsure_ratio: float | None = None


class Policy(Protocol):
    """Decides each request. All times are of the virtual clock, in seconds."""

    name: str
    conduct: Conduct

    def choose(self, now_s: float, load: Load) -> Move:
        """What to do with the request that has just come."""
        ...

    def probe(self, now_s: float) -> Move | None:
        """A shadow request that is worth its bytes now, asked for once a second."""
        ...

    def local_done(self, now_s: float, seconds: float, *, is_beside_attempt: bool) -> None:
        """The whole model has run on the device, beside a remote attempt of the same request or alone."""
        ...

    def remote_done(self, now_s: float, move: Move, reply: Reply) -> None:
        """A remote answer came and was taken."""
        ...

    def remote_failed(self, now_s: float, move: Move, after_s: float) -> None:
        """An attempt failed so many seconds after its departure."""
        ...

    def remote_cancelled(self, now_s: float, move: Move, after_s: float, acked_bytes: float) -> None:
        """An attempt was given up since the device had answered; so many of its bytes had arrived."""
        ...

    def upload_settled(self, now_s: float, n_bytes: float, network_s: float) -> None:
        """What had been sent of a cancelled upload has arrived: a PONG behind it came back after so many seconds."""
        ...

    def answered(self, now_s: float, move: Move, total_s: float) -> None:
        """A request has its answer, whoever gave it."""
        ...

    def connection(self, now_s: float, *, is_up: bool) -> None:
        """The connection to the gateway was lost, or is there again."""
        ...

    def round_trip(self, now_s: float, rtt_s: float) -> None:
        """A heartbeat came back."""
        ...


class Deaf:
    """A policy that learns nothing: what it does not override."""

    name = "deaf"
    conduct = Conduct()

    def probe(self, now_s: float) -> Move | None:  # noqa: ARG002
        """Never."""
        return None

    def upload_settled(self, now_s: float, n_bytes: float, network_s: float) -> None:
        """Not of interest."""

    def answered(self, now_s: float, move: Move, total_s: float) -> None:
        """Not of interest."""

    def local_done(self, now_s: float, seconds: float, *, is_beside_attempt: bool) -> None:
        """Not of interest."""

    def remote_done(self, now_s: float, move: Move, reply: Reply) -> None:
        """Not of interest."""

    def remote_failed(self, now_s: float, move: Move, after_s: float) -> None:
        """Not of interest."""

    def remote_cancelled(self, now_s: float, move: Move, after_s: float, acked_bytes: float) -> None:
        """Not of interest."""

    def connection(self, now_s: float, *, is_up: bool) -> None:
        """Not of interest."""

    def round_trip(self, now_s: float, rtt_s: float) -> None:
        """Not of interest."""


class Static(Deaf):
    """Always the same prospect: how a forced placement behaves. It waits for its gateway as long as it takes."""

    conduct = Conduct(patience_s=float("inf"), n_attempts=1_000_000, pause_s=0.25, waits_for_gateway=True)

    def __init__(self, index: int, name: str) -> None:
        self.name = name
        self._move = Move(index)

    def choose(self, now_s: float, load: Load) -> Move:  # noqa: ARG002
        """The one prospect."""
        return self._move
