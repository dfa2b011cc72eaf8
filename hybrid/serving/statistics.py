"""Counters of every served model version, in the form of Triton's statistics extension."""

import time
from dataclasses import dataclass, field

import msgspec


class Duration(msgspec.Struct):
    """How often something happened and how long it took together."""

    count: int = 0
    ns: int = 0

    def add(self, duration_s: float) -> None:
        """Count one more that took so long."""
        self.count += 1
        self.ns += int(duration_s * 1e9)


class InferenceDurations(msgspec.Struct):
    """Durations by phase; `success` and `fail` span the whole request."""

    success: Duration = msgspec.field(default_factory=Duration)
    fail: Duration = msgspec.field(default_factory=Duration)
    queue: Duration = msgspec.field(default_factory=Duration)
    compute_input: Duration = msgspec.field(default_factory=Duration)
    compute_infer: Duration = msgspec.field(default_factory=Duration)
    compute_output: Duration = msgspec.field(default_factory=Duration)
    cache_hit: Duration = msgspec.field(default_factory=Duration)
    cache_miss: Duration = msgspec.field(default_factory=Duration)


class ModelStatistics(msgspec.Struct):
    """One version's entry of `GET /v2/models/stats`; requests are never batched here."""

    name: str
    version: str
    last_inference: int = 0
    inference_count: int = 0
    execution_count: int = 0
    inference_stats: InferenceDurations = msgspec.field(default_factory=InferenceDurations)
    batch_stats: list[str] = []
    memory_usage: list[str] = []

    def succeeded(self, *, total_s: float, input_s: float, queue_s: float, infer_s: float, output_s: float) -> None:
        """Count one answered request and its phases."""
        self.last_inference = time.time_ns() // 1_000_000
        self.inference_count += 1
        self.execution_count += 1
        stats = self.inference_stats
        for duration, seconds in (
            (stats.success, total_s),
            (stats.compute_input, input_s),
            (stats.queue, queue_s),
            (stats.compute_infer, infer_s),
            (stats.compute_output, output_s),
        ):
            duration.count += 1
            duration.ns += int(seconds * 1e9)

    def failed(self, total_s: float) -> None:
        """Count one request that ended in an error."""
        self.inference_stats.fail.add(total_s)


@dataclass(slots=True)
class StatisticsBoard:
    """The counters of all models; they live as long as the service and survive unloading."""

    entries: dict[tuple[str, str], ModelStatistics] = field(default_factory=dict)

    def of(self, name: str, version: str) -> ModelStatistics:
        """The counters of one version, made at first use."""
        entry = self.entries.get((name, version))
        if entry is None:
            entry = self.entries[name, version] = ModelStatistics(name, version)
        return entry
