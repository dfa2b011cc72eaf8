"""Scenes that the tests of the simulation share."""

from devices.trace import Trace
from hybrid.schedule.prospect import Prospect
from hybrid.simulation.device import DeviceModel
from hybrid.simulation.gateway import GatewayModel
from hybrid.simulation.link import LinkModel
from hybrid.simulation.policy import Deaf, Load, Move
from hybrid.simulation.scene import Scene
from hybrid.simulation.stream import Stream
from hybrid.simulation.work import Work

STEADY = Trace.of_rows([(0.0, 8e6, 8e6, 0.04, 0.0)], 60.0)
CHANGING = Trace.of_rows(
    [
        (0.0, 20e6, 50e6, 0.04, 0.0),
        (30.0, 2e6, 5e6, 0.06, 0.0),
        (40.0, 0.0, 0.0, 0.06, 0.0),
        (45.0, 8e6, 8e6, 0.05, 0.0),
    ],
    60.0,
)
EXACT = {"device": DeviceModel(noise_ratio=0.0), "gateway": GatewayModel(noise_ratio=0.0, overhead_s=0.0)}


def work(local_s: float = 0.1, n_bytes: int = 10_000) -> Work:
    """Local, an encoded offload, and a split with a light head."""
    return Work(
        name="model",
        prospects=(
            Prospect(placement="local", head_s=local_s),
            Prospect(placement="offload", codec="jpeg", encode_s=0.002, bytes_up=n_bytes, bytes_down=1000, tail_s=0.01),
            Prospect(
                placement="split", cut="a", codec="q8", head_s=0.3 * local_s, bytes_up=n_bytes // 3, bytes_down=1000,
                tail_s=0.007,
            ),
        ),
    )  # fmt: skip


def scene(trace: Trace = STEADY, *, stream: Stream | None = None, jitter_s: float = 0.0, **others) -> Scene:
    """A scene in which one request is due every 200 ms for a minute, unless told otherwise."""
    settings = {"work": work(), "seed": 4} | others
    link = settings.pop("link", LinkModel(trace=trace, jitter_s=jitter_s, congestion="cubic"))
    return Scene(link=link, stream=stream or Stream(period_s=0.2, duration_s=60.0), **settings)


class Hedged(Deaf):
    """Always one prospect, hedged after so many seconds; remembers what it was told."""

    def __init__(self, prospect: int, hedge_s: float | None) -> None:
        self.name = f"hedged {prospect}"
        self._move = Move(prospect, hedge_s)
        self.cancelled: list[tuple[float, float, float]] = []
        self.settled: list[tuple[float, float]] = []
        self.failed: list[float] = []
        self.connections: list[tuple[float, bool]] = []

    def choose(self, now_s: float, load: Load) -> Move:
        return self._move

    def remote_cancelled(self, now_s: float, move: Move, after_s: float, acked_bytes: float) -> None:
        self.cancelled.append((now_s, after_s, acked_bytes))

    def upload_settled(self, now_s: float, n_bytes: float, network_s: float) -> None:
        self.settled.append((n_bytes, network_s))

    def remote_failed(self, now_s: float, move: Move, after_s: float) -> None:
        self.failed.append(now_s)

    def connection(self, now_s: float, *, is_up: bool) -> None:
        self.connections.append((now_s, is_up))
