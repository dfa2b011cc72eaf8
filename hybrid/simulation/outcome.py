"""What a simulated stream left behind: one row a request."""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

COLUMNS: Final = (
    "slot", "start_s", "latency_s", "winner", "planned", "hedge_s", "predicted_s", "device_s", "wasted_s", "up_s",
    "down_s", "bytes_up", "bytes_down", "wasted_bytes", "attempts", "switched",
)  # fmt: skip


@dataclass(slots=True)
class Rows:
    """Rows as they come, in the order of answers."""

    rows: list[tuple[float, ...]] = field(default_factory=list)

    def outcome(self, duration_s: float) -> "Outcome":
        """All rows as columns, in the order of starts."""
        table = np.array(self.rows, np.float64).reshape(-1, len(COLUMNS))
        table = table[np.argsort(table[:, 1], kind="stable")]
        return Outcome(**{name: table[:, at] for at, name in enumerate(COLUMNS)}, duration_s=duration_s)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """Columns of (n,) float64, a value for each answered request, in the order in which they came.

    Attributes:
        slot: number of the request in its stream.
        start_s: when it came.
        latency_s: until its answer.
        winner: number of the prospect that answered (0: the device).
        planned: number of the prospect that was chosen.
        hedge_s: when the device was to begin too, NaN for never.
        predicted_s: what the policy expected, NaN where it does not say.
        device_s: seconds that the device's engine computed for it.
        wasted_s: those of them that were in vain.
        up_s: seconds that its bytes were leaving.
        down_s: seconds that the reply's bytes were leaving the gateway.
        bytes_up: sent, whether in vain or not.
        bytes_down: received.
        wasted_bytes: sent or received in vain.
        attempts: remote attempts.
        switched: 1 where the plan became another one with this request, else 0.
        duration_s: of the stream.
    """

    slot: Floats
    start_s: Floats
    latency_s: Floats
    winner: Floats
    planned: Floats
    hedge_s: Floats
    predicted_s: Floats
    device_s: Floats
    wasted_s: Floats
    up_s: Floats
    down_s: Floats
    bytes_up: Floats
    bytes_down: Floats
    wasted_bytes: Floats
    attempts: Floats
    switched: Floats
    duration_s: float

    @property
    def n_requests(self) -> int:
        """Answered requests."""
        return len(self.slot)

    def prediction_error(self) -> Floats:
        """For each request with a prediction, |expected - measured| / measured."""
        said = ~np.isnan(self.predicted_s)
        return np.abs(self.predicted_s[said] - self.latency_s[said]) / self.latency_s[said]

    def changes_a_window(self, window_s: float = 10.0) -> Floats:
        """For each window, how often the plan became another one (a single trial of another way is no change)."""
        changed = np.flatnonzero(self.switched)
        n_windows = max(1, int(np.ceil(self.duration_s / window_s)))
        return np.bincount((self.start_s[changed] // window_s).astype(int), minlength=n_windows).astype(float)
