"""Metrics of the engine: its memory, its queue, its batches and where it computes."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from hybrid.serving.body_budget import BodyBudget
from hybrid.serving.engines.executor import Executor

if TYPE_CHECKING:  # it parses models, which a service without batches need not load
    from hybrid.serving.engines.batch_shelf import BatchShelf


class EngineMetrics:
    """Turns the counters of one executor and its batches, where it makes any, into metric families."""

    def __init__(self, executor: Executor, batches: "BatchShelf | None", bodies: BodyBudget) -> None:
        self._executor = executor
        self._batches = batches
        self._bodies = bodies

    def families(self) -> Iterator[Metric]:
        """All families, as they stand now."""
        yield from self._memory()
        yield from self._queue()
        if self._batches is not None:
            yield from self._batching(self._batches)
        yield from self._providers()

    def _memory(self) -> Iterator[Metric]:
        sessions, bodies = self._executor.sessions, self._bodies
        held = GaugeMetricFamily(
            "hybrid_engine_session_bytes", "Memory that opened models and tails hold, as measured.", labels=["device"]
        )
        limit = GaugeMetricFamily("hybrid_engine_budget_bytes", "What they may hold; 0: no bound.", labels=["device"])
        for device, n_bytes, budget in (
            ("cpu", sessions.n_bytes, sessions.budget_bytes),
            ("cuda", sessions.n_gpu_bytes, sessions.gpu_budget_bytes),
        ):
            held.add_metric([device], n_bytes)
            limit.add_metric([device], budget)
        yield held
        yield limit
        for name, text, value in (
            ("hybrid_engine_sessions", "Opened models and tails.", len(sessions)),
            ("hybrid_engine_shared_bytes", "Memory that they share: activations.", self._executor.measure_shared()),
            ("hybrid_body_bytes", "Memory of request bodies in flight.", bodies.n_bytes),
            ("hybrid_body_peak_bytes", "The most that they held.", bodies.peak_bytes),
            ("hybrid_body_budget_bytes", "What they may hold.", bodies.limit_bytes),
        ):
            yield GaugeMetricFamily(name, text, value=value)
        for name, text, count in (
            ("hybrid_engine_evictions", "Sessions that left memory for others.", sessions.n_evicted),
            ("hybrid_engine_reopened", "Sessions that had to be opened again.", sessions.n_reopened),
            ("hybrid_engine_reopen_seconds", "Time that opening them again took.", sessions.reopen_s),
            ("hybrid_body_refused", "Bodies refused because there was no memory for them.", bodies.n_refused),
        ):
            yield CounterMetricFamily(name, text, value=count)

    def _queue(self) -> Iterator[Metric]:
        pool = self._executor.pool
        yield GaugeMetricFamily("hybrid_engine_waiting", "Requests that wait for the engine.", value=pool.n_waiting)
        yield GaugeMetricFamily("hybrid_engine_running", "Requests inside the engine.", value=pool.n_running)
        yield CounterMetricFamily(
            "hybrid_engine_late", "Requests dropped because their deadline could not be kept.", value=pool.n_late
        )

    def _batching(self, batches: "BatchShelf") -> Iterator[Metric]:
        pool = self._executor.pool
        runs = CounterMetricFamily("hybrid_engine_runs", "Engine runs by the rows they had.", labels=["rows"])
        for n_rows, count in sorted(pool.rows.items()):
            runs.add_metric([str(n_rows)], count)
        yield runs
        yield CounterMetricFamily(
            "hybrid_engine_joined_runs", "Runs in which rows of different cuts met.", value=pool.n_joined
        )
        rows = GaugeMetricFamily(
            "hybrid_batch_rows",
            "Rows that may share a run; 1: a trial found no gain.",
            labels=["model", "cut", "state"],
        )
        for key, verdict in sorted(batches.verdicts.items()):
            rows.add_metric([key[0][:16], key[2] if len(key) > 2 else "", verdict.state], verdict.max_rows)
        yield rows

    def _providers(self) -> Iterator[Metric]:
        wanted = self._executor.settings.engine.provider.name
        found = GaugeMetricFamily(
            "hybrid_engine_provider", "Opened sessions by where they compute.", labels=["provider", "wanted"]
        )
        for name in sorted({"cpu", wanted}):
            n = sum(session.provider == name for _, session in self._executor.sessions.sessions())
            found.add_metric([name, wanted], n)
        yield found
