"""Metrics of a service for Prometheus, gathered from counters that exist anyway.

Design: a request touches plain integers only; prometheus-client's own counters, with their locks and label look-ups,
would cost more than a tiny model's run. Everything is turned into metric families when somebody asks for `/metrics`.
"""

from collections.abc import Callable, Iterable, Iterator

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from hybrid.hosting.front_door import require
from hybrid.hosting.request_meter import BUCKETS_S, RequestMeter
from hybrid.serving.engine_metrics import EngineMetrics
from hybrid.serving.rest.service import InferenceService


class ServiceCollector(Collector):
    """Turns a service's counters into metric families; `more` gives those that only that service has."""

    def __init__(
        self,
        *,
        meter: RequestMeter,
        service: InferenceService,
        engine: EngineMetrics,
        n_connections: Callable[[], int],
        more: Callable[[], Iterable[Metric]] = tuple,
    ) -> None:
        self._meter = meter
        self._service = service
        self._engine = engine
        self._n_connections = n_connections
        self._more = more

    def collect(self) -> Iterator[Metric]:
        """All families, as they stand now."""
        yield from self._requests()
        yield from self._inferences()
        yield from self._gauges()
        yield from self._engine.families()
        yield from self._more()

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
        for (name, version), entry in sorted(self._service.statistics.entries.items()):
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
            ("hybrid_ready", "1 while the service takes requests.", float(self._service.is_ready())),
            ("hybrid_connections", "Open connections.", self._n_connections()),
            ("hybrid_models_loading", "Model versions that are being opened.", self._service.models.n_loading),
        ):
            yield GaugeMetricFamily(name, text, value=value)


def add_metrics_route(app: web.Application, collector: Collector) -> None:
    """Serve `GET /metrics` to whoever may read."""

    async def metrics(request: web.Request) -> web.Response:
        require(request, "read")
        return exposition(collector)

    app.router.add_get("/metrics", metrics)


def exposition(collector: Collector) -> web.Response:
    """The answer to `GET /metrics`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return web.Response(body=generate_latest(registry), headers={"Content-Type": "text/plain; version=0.0.4"})
