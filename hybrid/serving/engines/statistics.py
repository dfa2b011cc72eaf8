"""Counters of every served model version, and their form in Triton's statistics extension."""

import time
from dataclasses import dataclass, field

import msgspec


class Duration(msgspec.Struct):
    """How often something happened and how long it took together."""

    count: int = 0
    ns: int = 0


class InferenceDurations(msgspec.Struct):
    """Durations by phase; `success` and `fail` span the whole request."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration = msgspec.field(default_factory=Duration)
    cache_miss: Duration = msgspec.field(default_factory=Duration)


class BatchStatistics(msgspec.Struct):
    """Runs of one batch size."""

    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class ModelStatistics(msgspec.Struct):
    """One version's entry of `GET /v2/models/stats`.

    Attributes:
        execution_count: engine runs; less than `inference_count` where requests shared runs.
        batch_stats: runs by the rows that they had.
        hybrid_batching: what trials found about batches of this model; not part of Triton's form.
    """

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: InferenceDurations
    batch_stats: list[BatchStatistics]
    memory_usage: list[str] = []
    hybrid_batching: list[msgspec.Struct] = []


class ModelCounters:
    """The counters of one version: plain numbers, since every request touches them.

    Attributes:
        n_succeeded, n_failed: requests by their end.
        n_runs: engine runs that they took.
        total_s, fail_s, input_s, queue_s, infer_s, output_s: seconds, whole and by phase.
        batches: for runs of several rows: how many, and their seconds.
    """

    __slots__ = (
        "batches", "fail_s", "infer_s", "input_s", "last_s", "n_failed", "n_runs", "n_succeeded", "name", "output_s",
        "queue_s", "total_s", "version",
    )  # fmt: skip

    def __init__(self, name: str, version: str) -> None:
        self.name = name
        self.version = version
        self.last_s = 0.0
        self.n_succeeded = 0
        self.n_failed = 0
        self.n_runs = 0
        self.total_s = 0.0
        self.fail_s = 0.0
        self.input_s = 0.0
        self.queue_s = 0.0
        self.infer_s = 0.0
        self.output_s = 0.0
        self.batches: dict[int, tuple[int, float]] = {}

    def succeeded(self, *, total_s: float, input_s: float, queue_s: float, infer_s: float, output_s: float) -> None:
        """Count one answered request and its phases."""
        self.last_s = time.time()
        self.n_succeeded += 1
        self.n_runs += 1
        self.total_s += total_s
        self.input_s += input_s
        self.queue_s += queue_s
        self.infer_s += infer_s
        self.output_s += output_s

    def shared(self, n_rows: int, infer_s: float, *, leads: bool) -> None:
        """The request just counted shared its run with others; one of them leads and stands for the run."""
        if leads:
            count, seconds = self.batches.get(n_rows, (0, 0.0))
            self.batches[n_rows] = (count + 1, seconds + infer_s)
        else:
            self.n_runs -= 1

    def failed(self, total_s: float) -> None:
        """Count one request that ended in an error."""
        self.n_failed += 1
        self.fail_s += total_s

    def shown(self) -> ModelStatistics:
        """The counters in Triton's form."""
        n = self.n_succeeded
        batches = [
            BatchStatistics(n_rows, Duration(), _duration(count, seconds), Duration())
            for n_rows, (count, seconds) in sorted(self.batches.items())
        ]
        n_alone = self.n_runs - sum(count for count, _ in self.batches.values())
        if n_alone > 0:
            alone_s = self.infer_s - sum(n_rows * seconds for n_rows, (_, seconds) in self.batches.items())
            batches.insert(
                0,
                BatchStatistics(
                    1,
                    _duration(n_alone, self.input_s),
                    _duration(n_alone, max(0.0, alone_s)),
                    _duration(n_alone, self.output_s),
                ),
            )
        return ModelStatistics(
            name=self.name,
            version=self.version,
            last_inference=int(self.last_s * 1e3),
            inference_count=n,
            execution_count=self.n_runs,
            inference_stats=InferenceDurations(
                success=_duration(n, self.total_s),
                fail=_duration(self.n_failed, self.fail_s),
                queue=_duration(n, self.queue_s),
                compute_input=_duration(n, self.input_s),
                compute_infer=_duration(n, self.infer_s),
                compute_output=_duration(n, self.output_s),
            ),
            batch_stats=batches,
        )


@dataclass(slots=True)
class StatisticsBoard:
    """The counters of all models; they live as long as the service and survive unloading."""

    entries: dict[tuple[str, str], ModelCounters] = field(default_factory=dict)

    def of(self, name: str, version: str) -> ModelCounters:
        """The counters of one version, made at first use."""
        entry = self.entries.get((name, version))
        if entry is None:
            entry = self.entries[name, version] = ModelCounters(name, version)
        return entry


def _duration(count: int, seconds: float) -> Duration:
    return Duration(count, int(seconds * 1e9))
