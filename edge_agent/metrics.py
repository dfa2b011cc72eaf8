"""Metrics of the agent for Prometheus: those of every service, where requests were computed, and what is wrong."""

from collections.abc import Callable, Iterator

from aiohttp import web
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from edge_agent.learning.standing import LearningStatus
from edge_agent.status import Standing
from hybrid.hosting.request_meter import RequestMeter
from hybrid.serving.engine_metrics import EngineMetrics
from hybrid.serving.metrics import ServiceCollector, exposition
from hybrid.serving.rest.service import InferenceService


class BoxMetrics:
    """What `GET /metrics` of an agent answers."""

    def __init__(
        self, meter: RequestMeter, service: InferenceService, standing: Standing, n_connections: Callable[[], int]
    ) -> None:
        self._standing = standing
        self._collector = ServiceCollector(
            meter=meter,
            service=service,
            engine=EngineMetrics(service.executor, None, service.bodies),
            n_connections=n_connections,
            more=self._families,
        )

    def response(self) -> web.Response:
        """All families, as they stand now."""
        return exposition(self._collector)

    def _families(self) -> Iterator[Metric]:
        status = self._standing.status()
        places = CounterMetricFamily(
            "hybrid_agent_answers", "Answered requests by where they were computed.", labels=["model", "placement"]
        )
        errors = CounterMetricFamily("hybrid_agent_errors", "Runs that failed.", labels=["model"])
        latency = GaugeMetricFamily(
            "hybrid_agent_latency_seconds", "Quantiles of the last answers.", labels=["model", "quantile"]
        )
        for model in status.models:
            for placement, count in sorted(model.by_place.items()):
                places.add_metric([model.name, placement], count)
            errors.add_metric([model.name], model.n_errors)
            latency.add_metric([model.name, "0.5"], model.p50_s)
            latency.add_metric([model.name, "0.95"], model.p95_s)
        yield places
        yield errors
        yield latency
        onward = CounterMetricFamily(
            "hybrid_agent_device_requests", "Devices' messages by what became of them.", labels=["end"]
        )
        for end, count in (("here", status.onward.n_here), ("passed_on", status.onward.n_passed_on)):
            onward.add_metric([end], count)
        onward.add_metric(["came_back"], status.onward.n_came_back)
        yield onward
        problems = GaugeMetricFamily(
            "hybrid_agent_problem", "1 for each thing that is wrong.", labels=["code", "blocks"]
        )
        for code, blocks in sorted({(problem.code, problem.blocks) for problem in status.problems}):
            problems.add_metric([code, "yes" if blocks else "no"], 1)
        yield problems
        yield from _learning(status.parts.get("learning"))
        yield GaugeMetricFamily("hybrid_agent_uptime_seconds", "Since the start.", value=status.uptime_s)


def _learning(told: object) -> Iterator[Metric]:
    """What this box learned for its fleet."""
    if not isinstance(told, LearningStatus):
        return
    updates = CounterMetricFamily("hybrid_agent_round_updates", "Updates by what became of them.", labels=["end"])
    updates.add_metric(["accepted"], sum(one.n_accepted for one in told.campaigns))
    updates.add_metric(["lost"], sum(one.n_lost for one in told.campaigns))
    updates.add_metric(["given_up"], told.n_given_up)
    yield updates
    yield GaugeMetricFamily("hybrid_agent_round_waiting_bytes", "Of the update that waits.", value=told.waiting_bytes)
    yield CounterMetricFamily(
        "hybrid_agent_round_stands", "How often training stood still for requests.", value=told.n_stood
    )
