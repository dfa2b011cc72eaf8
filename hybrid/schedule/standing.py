"""How a gateway has done for this client, whatever the model: its link, its queue, its failures, its breaker."""

import random
from typing import Final

from hybrid.cost.drift import widened
from hybrid.cost.link import LinkEstimate
from hybrid.cost.residuals import NORMAL_AT
from hybrid.schedule.beliefs import GatewayBelief
from hybrid.schedule.breaker import Breaker
from hybrid.schedule.retry_budget import RetryBudget

FAILURE_GAIN: Final = 0.1
FAILURE_PRIOR: Final = 0.005
"""Share of requests that are lost for no reason that was seen before."""

MOST_STUCK: Final = 3
"""Requests in a row without any progress after which a gateway counts as failing."""

QUEUE_GAIN: Final = 0.5
QUEUE_FADES_S: Final = 5.0
"""A queue that nobody heard of for so long is believed to be half as long."""


class Standing:
    """One gateway as this client knows it; shared by all routes and sessions that use the same client.

    Updated from several threads without a lock: each update replaces one number, and a lost one among many is noise.

    Args:
        link: the estimate that the transport feeds.
        seed: of the breaker's jitter.

    Attributes:
        link: what is believed of the link.
        breaker: whether requests may go there.
        retries: how many second attempts may.
        heard_s: monotonic time of the last answer.
    """

    def __init__(self, link: LinkEstimate | None = None, seed: int | None = None) -> None:
        self.link = link if link is not None else LinkEstimate()
        self.breaker = Breaker(random.Random(seed))  # noqa: S311  (jitter, no secret)
        self.retries = RetryBudget()
        self.heard_s = 0.0
        self._queue_s = 0.0
        self._failure_ratio = 0.0
        self._n_stuck = 0

    @property
    def failure_ratio(self) -> float:
        """Share of requests that it is expected not to answer."""
        return min(0.9, FAILURE_PRIOR + self._failure_ratio)

    def queue_s(self, now_s: float) -> float:
        """Expected wait there; what is long ago fades."""
        age_s = max(0.0, now_s - self.heard_s)
        return float(self._queue_s * 0.5 ** (age_s / QUEUE_FADES_S))

    def belief(
        self,
        url: str,
        now_s: float,
        *,
        is_usable: bool,
        speed_ratio: float,
        points: tuple[float, ...],
        lasting_ratio: float,
    ) -> GatewayBelief:
        """What a decision may believe of this gateway now; see `GatewayBelief` for what the route adds."""
        link = self.link.view
        up_bps, up_sigma = link.uplink_at(now_s)
        down_bps, down_sigma = link.downlink_at(now_s)
        return GatewayBelief(
            url=url,
            is_usable=is_usable,
            rtt_s=link.rtt_s,
            uplink_bps=up_bps,
            downlink_bps=down_bps,
            up_window_bytes=link.up_window_at(now_s),
            down_window_bytes=link.down_window_at(now_s),
            cold_ratio=link.cold_ratio,
            lasting_ratio=lasting_ratio,
            overhead_s=link.overhead_s,
            backlog_s=link.backlog_s(now_s),
            speed_ratio=speed_ratio,
            queue_s=self.queue_s(now_s),
            points=widened(points, NORMAL_AT, max(up_sigma, down_sigma)),
            failure_ratio=self.failure_ratio,
            silent_s=now_s - max(self.heard_s, link.measured_s),
            likely_ratio=link.likely_ratio(up_bps),
        )

    def succeeded(self, queue_s: float, now_s: float) -> None:
        """An answer came, after so many seconds in the gateway's queue."""
        self._queue_s += QUEUE_GAIN * (queue_s - self._queue_s)
        self._failure_ratio -= FAILURE_GAIN * self._failure_ratio
        self.heard_s = now_s
        self._n_stuck = 0
        self.breaker.succeeded()

    def reconnected(self, now_s: float) -> None:
        """A new connection stands: it may be tried at once, and its windows begin anew."""
        self.link.reconnected()
        self.breaker.reachable(now_s)

    def no_progress(self, now_s: float) -> None:
        """The device won, and not a byte had been acknowledged though there was time: some in a row are a failure."""
        self._n_stuck += 1
        if self._n_stuck >= MOST_STUCK:
            self._n_stuck = 0
            self.failed(now_s)

    def progressed(self) -> None:
        """Something was acknowledged."""
        self._n_stuck = 0

    def failed(self, now_s: float, retry_after_s: float | None = None) -> None:
        """A request failed by the gateway's or the link's fault, or made no progress at all."""
        self._failure_ratio += FAILURE_GAIN * (1 - self._failure_ratio)
        self.breaker.failed(now_s, retry_after_s)
