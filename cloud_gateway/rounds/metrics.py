"""Metrics of campaigns for Prometheus; few lines for many boxes."""

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from cloud_gateway.rounds.campaigns import Campaigns
from cloud_gateway.rounds.desk import RoundsDesk


def rounds_families(campaigns: Campaigns, desk: RoundsDesk) -> Iterator[Metric]:
    """All families, as they stand now."""
    states: Counter[str] = Counter(campaigns.row(campaign).state for campaign in list(campaigns.rows))
    family = GaugeMetricFamily("hybrid_rounds_campaigns", "Campaigns by state.", labels=["state"])
    for state, n in sorted(states.items()):
        family.add_metric([state], n)
    yield family
    steps = GaugeMetricFamily("hybrid_rounds_step", "Newest step of a campaign.", labels=["campaign", "model"])
    leases = GaugeMetricFamily("hybrid_rounds_leases", "Tasks that boxes have.", labels=["campaign", "model"])
    counted = GaugeMetricFamily(
        "hybrid_rounds_counted", "Updates that count in the open round.", labels=["campaign", "model"]
    )
    accuracy = GaugeMetricFamily(
        "hybrid_rounds_accuracy", "On the evaluation set, of the newest step.", labels=["campaign", "model"]
    )
    updates = CounterMetricFamily(
        "hybrid_rounds_updates", "Updates of running campaigns by what became of them.", labels=["campaign", "outcome"]
    )
    for course in list(desk.courses.values()):
        labels = [course.id, course.order.model]
        steps.add_metric(labels, course.row.step)
        leases.add_metric(labels, len(course.leases))
        counted.add_metric(labels, len(course.counted))
        if course.rounds and course.rounds[-1].accuracy is not None:
            accuracy.add_metric(labels, course.rounds[-1].accuracy)
        outcomes: Counter[str] = Counter(course.outcomes)
        for view in course.rounds:
            outcomes.update(view.outcomes)
        for outcome, n in sorted(outcomes.items()):
            updates.add_metric([course.id, outcome], n)
    yield from (steps, leases, counted, accuracy, updates)
    yield GaugeMetricFamily("hybrid_rounds_waiting_calls", "Calls for tasks that wait.", value=len(desk.polls))
    yield CounterMetricFamily("hybrid_rounds_task_calls", "Calls for tasks.", value=desk.n_tasks)
    yield CounterMetricFamily("hybrid_rounds_update_calls", "Calls that brought updates.", value=desk.n_updates)
    yield CounterMetricFamily(
        "hybrid_rounds_update_refused", "Calls refused because too many of a box came to nothing.", value=desk.n_refused
    )
