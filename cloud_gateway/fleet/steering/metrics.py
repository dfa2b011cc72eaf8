"""Metrics of a fleet for Prometheus: boxes, versions, rollouts, alarms, waiting calls; few lines for many boxes."""

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from cloud_gateway.fleet.steering.status import box_state
from cloud_gateway.fleet.steering.steering import Steering


def fleet_families(steering: Steering, n_alarms: int, now_s: float) -> Iterator[Metric]:
    """All families, as they stand now."""
    boxes = steering.boxes.all()
    admitted: Counter[str] = Counter(box.admission for box in boxes)
    yield _gauge("hybrid_fleet_boxes", "Boxes by admission.", "admission", admitted)
    states = Counter(box_state(steering, box, now_s) for box in boxes if box.admission == "admitted")
    yield _gauge("hybrid_fleet_boxes_state", "Admitted boxes by state.", "state", states)
    yield _phases(steering)
    running: Counter[str] = Counter(rollout.course.state for rollout in steering.ledger.rollouts.values())
    yield _gauge("hybrid_fleet_rollouts", "Rollouts by state; ended ones among the last 200.", "state", running)
    stages = GaugeMetricFamily(
        "hybrid_fleet_rollout_boxes", "Boxes of a running rollout.", labels=["rollout", "model", "standing"]
    )
    for rollout in steering.ledger.running():
        members = [member for member in rollout.members.values() if not member.is_gone]
        labels = (rollout.plan.id, rollout.plan.label)
        stages.add_metric([*labels, "committed"], sum(member.is_done for member in members))
        stages.add_metric([*labels, "failed"], sum(member.failed != "" for member in members))
        stages.add_metric([*labels, "all"], len(members))
    yield stages
    yield GaugeMetricFamily("hybrid_fleet_waiting_calls", "State calls that wait.", value=len(steering.polls))
    yield CounterMetricFamily("hybrid_fleet_state_calls", "State calls of boxes.", value=steering.n_calls)
    yield CounterMetricFamily(
        "hybrid_fleet_state_refused", "State calls refused for their number.", value=steering.n_refused
    )
    yield CounterMetricFamily("hybrid_fleet_halted", "Rollouts that halted since the start.", value=steering.n_halted)
    yield GaugeMetricFamily("hybrid_fleet_alarms", "Alarms that nobody has acknowledged.", value=n_alarms)


def _phases(steering: Steering) -> Metric:
    """Versions of models on boxes, by phase."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for state in steering.ledger.states.values():
        for told in state.models.values():
            counts[told.installed.name, told.installed.version, told.installed.phase] += 1
    family = GaugeMetricFamily(
        "hybrid_fleet_models", "Boxes by the version that answers and its phase.", labels=["model", "version", "phase"]
    )
    for labels, n in sorted(counts.most_common(1000)):
        family.add_metric(list(labels), n)
    return family


def _gauge(name: str, text: str, label: str, counts: Counter[str]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, n in sorted(counts.items()):
        family.add_metric([value], n)
    return family
