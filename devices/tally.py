"""Counts of what passed one way of an emulated link."""

from devices.shape import Passage


class Tally:
    """Counts of one direction."""

    def __init__(self) -> None:
        self.n_lost = self.n_overflow = self.n_blackholed = 0
        self.transit_s = 0.0
        self.n_bytes = self._n_packets = self._n_queued = 0
        self._waited_s = self._longest_wait_s = 0.0
        self._late_s = self._latest_s = 0.0
        self._second, self._second_bytes, self._peak_bytes = 0, 0, 0

    def queued(self, wait_s: float) -> None:
        """A packet left the queue after so long."""
        self._n_queued += 1
        self._waited_s += wait_s
        self._longest_wait_s = max(self._longest_wait_s, wait_s)

    def delivered(self, n_bytes: int, now_s: float, late_s: float) -> None:
        """A packet is handed over, so long after it was due."""
        self._n_packets += 1
        self.n_bytes += n_bytes
        self._late_s += late_s
        self._latest_s = max(self._latest_s, late_s)
        second = int(now_s)
        if second != self._second:
            self._second, self._second_bytes = second, 0
        self._second_bytes += n_bytes
        self._peak_bytes = max(self._peak_bytes, self._second_bytes)

    def passage(self) -> Passage:
        """The counts, with means."""
        n_packets = self._n_packets
        late_s = self._late_s / n_packets if n_packets else 0.0
        return Passage(
            n_packets=n_packets,
            n_bytes=self.n_bytes,
            n_lost=self.n_lost,
            n_overflow=self.n_overflow,
            n_blackholed=self.n_blackholed,
            queue_mean_s=self._waited_s / self._n_queued if self._n_queued else 0.0,
            queue_max_s=self._longest_wait_s,
            transit_mean_s=self.transit_s / n_packets + late_s if n_packets else 0.0,
            late_mean_s=late_s,
            late_max_s=self._latest_s,
            peak_bps=8.0 * self._peak_bytes,
        )
