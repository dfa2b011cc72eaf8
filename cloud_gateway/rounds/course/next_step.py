"""From the updates of a round to the next step: the same bits for the same rows, however often it is done again."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from cloud_gateway.rounds.kept.steps import StepFile, Steps, as_bytes, as_vector
from cloud_gateway.rounds.kept.store import ReceivedRow
from hybrid.errors import TensorMismatch
from hybrid.federated.aggregation.mean import RunningMean, staleness_weight
from hybrid.federated.aggregation.optimizers import Optimizer, Settings
from hybrid.federated.aggregation.rules import median, multi_krum, norm_clipped, trimmed_mean
from hybrid.federated.aggregation.scaffold import Scaffold
from hybrid.federated.campaign import Campaign
from hybrid.federated.coding.form import Form
from hybrid.federated.layout import Layout
from hybrid.federated.privacy.release import PrivateSum, released
from hybrid.federated.secure.quantized import Sum

Contents = Callable[[], Iterator[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What counts in a round.

    Attributes:
        order: of the campaign.
        layout: of what learns.
        update_layout: of the contents.
        up: form of the contents.
        clip: norm to which boxes clipped.
        noise: seed of what is added; empty without.
        rows: the updates, in the order in which they came.
        contents: theirs, as often as asked, in the same order.
        n_boxes: that took part in the campaign so far, this round's among them.
        masked: of a round in which nobody saw more than the sum; there are no rows then.
    """

    order: Campaign
    layout: Layout
    update_layout: Layout
    up: Form
    clip: float
    noise: bytes
    rows: Sequence[ReceivedRow]
    contents: Contents
    n_boxes: int
    masked: Sum | None = None

    def spool(self) -> Iterator[np.ndarray]:
        """The updates' vectors."""
        for content in self.contents():
            yield self.up.decode(content, self.update_layout)

    @property
    def weights(self) -> list[float]:
        """How much each counts, by its samples or uniformly; SCAFFOLD's variates are a plain mean of all boxes'."""
        aggregation = self.order.aggregation
        by_samples = aggregation.weights == "samples" and not aggregation.scaffold
        return [float(row.body.n_samples) if by_samples else 1.0 for row in self.rows]

    @property
    def dampings(self) -> list[float]:
        """By how much each is less for its age."""
        return [staleness_weight(row.body.staleness) for row in self.rows]


def next_step(steps: Steps, before: StepFile, chosen: Chosen) -> StepFile:
    """The step that a round makes; nothing is written.

    Raises:
        TensorMismatch: the rule cannot be applied, or the model turned non-finite.
    """
    weights = as_vector(before.weights)
    if chosen.order.aggregation.scaffold:
        return _scaffold(steps, before, weights, chosen)
    mean, clip = _mean(chosen)
    optimizer = _optimizer(chosen, before.optimizer)
    stepped = optimizer.step(weights, mean)
    made = steps.following(before, stepped, chosen.order.seed)
    return msgspec.structs.replace(made, optimizer=optimizer.to_bytes(), clip=clip)


def _mean(chosen: Chosen) -> tuple[np.ndarray, float]:
    """The updates as one, and the norm to which boxes clip next."""
    order, layout = chosen.order, chosen.layout
    if chosen.masked is not None:
        return _unmasked(chosen, chosen.masked)
    if order.privacy.noise > 0:
        total = PrivateSum(order.privacy, chosen.clip, layout.n_elements)
        for vector, row, damping in zip(chosen.spool(), chosen.rows, chosen.dampings, strict=True):
            total.add(vector, bit=row.body.bit, weight=damping)
        released = total.release(chosen.noise, order.goal)
        return released.mean, released.clip_norm
    return _combined(chosen), chosen.clip


def _unmasked(chosen: Chosen, masked: Sum) -> tuple[np.ndarray, float]:
    """The same of a masked sum."""
    if not chosen.noise:
        return masked.mean(), chosen.clip
    found = released(
        chosen.order.privacy,
        masked.levels,
        step=masked.step_size,
        clip_norm=chosen.clip,
        bits=masked.bits,
        n_boxes=masked.n_devices,
        seed=chosen.noise,
        denominator=chosen.order.goal,
    )
    return found.mean, found.clip_norm


def _combined(chosen: Chosen) -> np.ndarray:
    aggregation, layout = chosen.order.aggregation, chosen.layout
    if aggregation.rule == "median":
        return median(chosen.spool, layout).delta
    if aggregation.rule == "trimmed-mean":
        return trimmed_mean(chosen.spool, layout, trimmed_ratio(aggregation.share, len(chosen.rows))).delta
    if aggregation.rule == "multi-krum":
        return multi_krum(chosen.spool, layout, n_attackers(aggregation.share, len(chosen.rows))).delta
    if aggregation.rule == "norm-clip":
        return norm_clipped(chosen.spool, layout, chosen.weights, chosen.dampings).delta
    return _running(chosen, layout).mean()


def n_attackers(share: float, n_updates: int) -> int:
    """How many of so many updates multi-Krum is held against: the share, or as many as it can bear."""
    return max(0, min(int(share * n_updates + 1e-9), (n_updates - 3) // 2))


def trimmed_ratio(share: float, n_updates: int) -> float:
    """What is trimmed at each side of so many updates: the share, or as much as leaves one."""
    return min(share, (n_updates - 1) // 2 / n_updates)


def _running(chosen: Chosen, layout: Layout) -> RunningMean:
    running = RunningMean(layout)
    for vector, weight, damping in zip(chosen.spool(), chosen.weights, chosen.dampings, strict=True):
        running.add(vector, weight, damping)
    return running


def _optimizer(chosen: Chosen, state: bytes) -> Optimizer:
    if state:
        return Optimizer.from_bytes(state)
    aggregation = chosen.order.aggregation
    settings = Settings(kind=aggregation.optimizer, rate=aggregation.learning_rate, decay_first=aggregation.momentum)
    return Optimizer(settings, chosen.layout.n_elements)


def _scaffold(steps: Steps, before: StepFile, weights: np.ndarray, chosen: Chosen) -> StepFile:
    layout = chosen.layout
    rate = chosen.order.aggregation.learning_rate
    server = Scaffold.from_bytes(before.optimizer, layout) if before.optimizer else Scaffold(layout, rate)
    paired_mean = _running(chosen, chosen.update_layout).mean()
    n_boxes = max(chosen.n_boxes, chosen.order.goal)
    stepped = server.step(weights, paired_mean, len(chosen.rows), n_boxes)
    made = steps.following(before, stepped, chosen.order.seed)
    return msgspec.structs.replace(
        made, optimizer=server.to_bytes(), control=as_bytes(server.control), clip=chosen.clip
    )


def check_finite(made: StepFile) -> None:
    """Raises `TensorMismatch` where the model turned non-finite."""
    for data in (made.weights, made.view):
        if data and not np.isfinite(as_vector(data)).all():
            raise TensorMismatch("the model turned non-finite: a lower learning rate, or clipping, may help")
