"""Metrics of the gateway for Prometheus, gathered from counters that exist anyway.

Design: a request touches plain integers only; prometheus-client's own counters, with their locks and label look-ups,
would cost more than a tiny model's run. Everything is turned into metric families when somebody asks for `/metrics`.
"""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from cloud_gateway.engine_metrics import EngineMetrics
from hybrid.hosting.request_meter import BUCKETS_S, RequestMeter
from hybrid.serving.engines.loaded_models import LoadedModels
from hybrid.serving.engines.statistics import StatisticsBoard


class GatewayCollector(Collector):
    """Turns the gateway's counters into metric families."""

    def __init__(
        self,
        *,
        meter: RequestMeter,
        board: StatisticsBoard,
        engine: EngineMetrics,
        models: LoadedModels,
        is_ready: Callable[[], bool],
        n_connections: Callable[[], int],
    ) -> None:
        self._meter = meter
        self._board = board
        self._engine = engine
        self._models = models
        self._is_ready = is_ready
        self._n_connections = n_connections

    def collect(self) -> Iterator[Metric]:
        """All families, as they stand now."""
        yield from self._requests()
        yield from self._inferences()
        yield from self._gauges()
        yield from self._engine.families()

    def _requests(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("hybrid_http_requests", "HTTP requests answered.", labels=["status"])
        for status, count in sorted(self._meter.by_status.items()):
            requests.add_metric([str(status)], count)
        yield requests
        seen = 0
        buckets: list[tuple[str, float]] = []
        for limit_s, count in zip((*BUCKETS_S, float("inf")), self._meter.buckets, strict=True):
            seen += count
            buckets.append(("+Inf" if limit_s == float("inf") else str(limit_s), seen))
        yield HistogramMetricFamily(
            "hybrid_http_request_duration_seconds",
            "Time from a request's headers to its answer.",
            buckets=buckets,
            sum_value=self._meter.total_s,
        )

    def _inferences(self) -> Iterator[Metric]:
        labels = ["model", "version"]
        count = CounterMetricFamily("hybrid_inferences", "Inferences by outcome.", labels=[*labels, "outcome"])
        phases = CounterMetricFamily(
            "hybrid_inference_seconds", "Time of answered inferences by phase.", labels=[*labels, "phase"]
        )
        for (name, version), entry in sorted(self._board.entries.items()):
            count.add_metric([name, version, "success"], entry.n_succeeded)
            count.add_metric([name, version, "fail"], entry.n_failed)
            for phase, seconds in (
                ("queue", entry.queue_s),
                ("compute_input", entry.input_s),
                ("compute_infer", entry.infer_s),
                ("compute_output", entry.output_s),
            ):
                phases.add_metric([name, version, phase], seconds)
        yield count
        yield phases

    def _gauges(self) -> Iterator[Metric]:
        for name, text, value in (
            ("hybrid_ready", "1 while the gateway takes requests.", float(self._is_ready())),
            ("hybrid_connections", "Open connections.", self._n_connections()),
            ("hybrid_models_loading", "Model versions that are being opened.", self._models.n_loading),
        ):
            yield GaugeMetricFamily(name, text, value=value)


def exposition(collector: GatewayCollector) -> bytes:
    """The text of `/metrics`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return generate_latest(registry)
