"""A gateway that holds the model of a route: what it said of itself, and how it has done since."""

from hybrid.cost.running import RunningEstimate
from hybrid.errors import Forbidden, LinkError, Overloaded, Unauthenticated, Warming
from hybrid.schedule.planner import GatewayView
from hybrid.transport.client import GatewayClient

MAX_BACK_OFF_S = 30.0


class Holding:
    """A gateway that holds the model: its profile for one shape key, and how it has done since.

    Attributes:
        client: the way there.
        whole_s: seconds of the whole model there, None while it is not timed.
        tails: seconds of each tail by cut id, None where it is not timed; a cut that is missing does not exist there.
        heard_s: monotonic time of the last answer.
    """

    def __init__(self, client: GatewayClient, whole_s: float | None, tails: dict[str, float | None]) -> None:
        self.client = client
        self.whole_s = whole_s
        self.tails = tails
        self._speed = RunningEstimate()
        self._queue_s = 0.0
        self._not_before_s = 0.0
        self._n_failures = 0
        self.heard_s = 0.0

    def view(self, now_s: float) -> GatewayView | None:
        """What the planner may believe of it now; None while it is down or backing off."""
        if self.client.state != "ready" or now_s < self._not_before_s:
            return None
        return GatewayView(link=self.client.link.view, speed_ratio=self._speed.value or 1.0, queue_s=self._queue_s)

    def succeeded(self, tail_s: float, profiled_s: float | None, queue_s: float, now_s: float) -> None:
        """A reply came: its compute and queue seconds."""
        self._n_failures = 0
        self._not_before_s = 0.0
        self.heard_s = now_s
        self._queue_s += 0.5 * (queue_s - self._queue_s)
        if profiled_s:
            self._speed.observe(tail_s / profiled_s, now_s)

    def failed(self, now_s: float, retry_after_s: float | None) -> None:
        """A request failed here: nothing is sent before the back-off ends (doubling from 0.25 s)."""
        self._n_failures += 1
        pause_s = min(MAX_BACK_OFF_S, 0.125 * 2**self._n_failures)
        self._not_before_s = now_s + max(pause_s, retry_after_s or 0.0)


def is_gateways_fault(exc: Exception) -> bool:
    """Whether a failed attempt says something of the gateway or the way there, and not of the request."""
    return isinstance(exc, LinkError | TimeoutError | Overloaded | Warming | Unauthenticated | Forbidden)
