"""What compression is handed to measure with: models go in, seconds of the device come out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

Feeds = Mapping[str, np.ndarray]
"""The inputs of one request by name, as onnxruntime takes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of one model on one device.

    Attributes:
        p50_s: median of the runs.
        p95_s: 95th percentile.
        low_s: the fastest run, which other work on the machine disturbs least.
        n: runs.
        memory_bytes: peak of the process above an empty one, 0 where nobody looked.
    """

    p50_s: float
    p95_s: float
    low_s: float
    n: int
    memory_bytes: int = 0


class Measure(Protocol):
    """Times models of one device side by side, in turns, so that what disturbs one disturbs all."""

    def __call__(self, models: Sequence[Path], feeds: Feeds) -> list[Timing]:
        """One timing a model, in their order; whole runs with these feeds.

        Raises:
            CompressionError: a model that the device cannot run.
        """
        ...
