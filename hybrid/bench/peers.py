"""How others would have decided, on the same parts and the same link: Neurosurgeon, DADS, and Sedna's cascade.

Design: each gets what its paper or its code has, and no more: no codec, no calibration, no feedback. What they choose
runs on our device, link and gateway, over our transport, which is better than theirs: what is compared is the choice.

Sources: Kang et al., Neurosurgeon: collaborative intelligence between the cloud and mobile edge, ASPLOS 2017
(regression per layer type, one bandwidth measurement); Hu et al., Dynamic adaptive DNN surgery for inference
acceleration on the edge (DADS), INFOCOM 2019 (minimum cut, layers measured one by one, light-load objective);
KubeEdge Sedna, joint inference (small model first; five attempts, three seconds apart; tensors as JSON text).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

import numpy as np

from hybrid.bench.parts import Layer, ModelParts
from hybrid.partition.mincut import crossing, least_head
from hybrid.simulation.curve import RateCurve
from hybrid.simulation.policy import Conduct, Deaf, Load, Move, Static
from hybrid.simulation.scene import Scene

PROBE_BYTES: Final = 602_541
"""What the public reproduction of Neurosurgeon sends once to measure the bandwidth."""

JSON_BYTES_PER_BYTE: Final = 5.08
"""Sedna sends `tensor.tolist()` as JSON: measured 3.05 MB for a tensor of 0.60 MB."""

NANO: Final = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """The matrix's settings of the peers.

    Attributes:
        unsure_ratio: share of requests that Sedna's small model is not sure of.
        small_ratio: seconds of that small model over those of the whole one.
    """

    unsure_ratio: float = 0.3
    small_ratio: float = 0.25


def neurosurgeon(parts: ModelParts, others: Sequence[ModelParts], scene: Scene, factor: float) -> Static:
    """The cut that predictors trained on other models' layers, and one probe at the start, call the fastest.

    Args:
        parts: the model.
        others: models that the predictors were trained on.
        scene: whose link is probed once.
        factor: of the device's seconds over those of the machine that measured.
    """
    predicted = Regression.fit([layer for other in others if other.name != parts.name for layer in other.layers])
    seconds = np.array([predicted.seconds(layer) for layer in parts.layers])
    trace = scene.link.trace
    sent_s = RateCurve(trace.time_s, trace.up_bps, trace.duration_s).done_s(0.0, 8.0 * PROBE_BYTES)
    up_bps = 8.0 * PROBE_BYTES / (sent_s + float(trace.rtt_s[0]))
    best, best_s = 0, float(seconds.sum() * factor)
    for at, inside, raw_bytes in _chain(parts, scene):
        total_s = float(seconds[inside].sum() * factor + seconds[~inside].sum()) + 8.0 * raw_bytes / up_bps
        if total_s < best_s:
            best, best_s = at, total_s
    return Static(best, "neurosurgeon")


def dads(parts: ModelParts, scene: Scene, factor: float, up_bps: float) -> Static:
    """The exact minimum cut for layers measured one by one and a bandwidth that never changes.

    Where that cut is none of those that were timed, the timed one stands for it that is the least by the same cost.
    """
    wiring, seconds = parts.wiring, [layer.seconds for layer in parts.layers]
    head = least_head(
        wiring,
        [round(NANO * factor * s) for s in seconds],
        [round(NANO * s) for s in seconds],
        [round(NANO * 8.0 * (n_bytes or 0) / up_bps) for n_bytes in wiring.n_bytes],
    )
    names = {wiring.names[tensor] for tensor in crossing(wiring, head)}
    if not names or len(head) == len(seconds):
        return Static(0, "dads")
    costs: dict[int, float] = {0: factor * sum(seconds)}
    for at, inside, raw_bytes in _chain(parts, scene):
        if names == {*_tensors(parts, scene, at)}:
            return Static(at, "dads")
        own = np.array(seconds)
        costs[at] = float(factor * own[inside].sum() + own[~inside].sum() + 8.0 * raw_bytes / up_bps)
    return Static(min(costs, key=costs.__getitem__), "dads")


class Cascade(Deaf):
    """Sedna's joint inference: the small model answers; where it is unsure the cloud is asked, however long it takes.

    Args:
        prospect: number of the cascade's own prospect: small model as head, raw tensors as JSON, whole model as tail.
        unsure_ratio: share of requests that are sent.
    """

    name = "sedna"

    def __init__(self, prospect: int, unsure_ratio: float) -> None:
        self.conduct = Conduct(patience_s=inf, n_attempts=5, pause_s=3.0, unsure_ratio=unsure_ratio)
        self._move = Move(prospect)

    def choose(self, now_s: float, load: Load) -> Move:  # noqa: ARG002
        """Always the same."""
        return self._move


@dataclass(frozen=True, slots=True)
class Regression:
    """Seconds of a layer from its work and its bytes, a line for each type of operator that was seen often enough."""

    lines: dict[str, np.ndarray]

    @classmethod
    def fit(cls, layers: Sequence[Layer]) -> "Regression":
        """Least squares on relative errors, by type; a type that was seen less than four times is predicted as any."""
        by_type: dict[str, list[Layer]] = {"": list(layers)}
        for layer in layers:
            by_type.setdefault(layer.op, []).append(layer)
        return cls({op: _line(seen) for op, seen in by_type.items() if len(seen) >= 4 or not op})

    def seconds(self, layer: Layer) -> float:
        """Predicted seconds, never below 0."""
        line = self.lines.get(layer.op, self.lines[""])
        return max(0.0, float(line @ np.array((1.0, layer.work, layer.n_bytes))))


def _line(layers: Sequence[Layer]) -> np.ndarray:
    if not layers:
        return np.zeros(3)
    seconds = np.maximum([layer.seconds for layer in layers], 1e-7)
    features = np.array([(1.0, layer.work, layer.n_bytes) for layer in layers])
    scale = np.maximum(features.max(axis=0), 1e-12)
    weights = 1.0 / np.sqrt(seconds)
    solved = np.linalg.lstsq(features / scale * weights[:, None], seconds * weights, rcond=None)[0]
    return np.asarray(solved / scale)


def _chain(parts: ModelParts, scene: Scene) -> list[tuple[int, np.ndarray, int]]:
    """The uncompressed remote prospects: number, which layers are in the head, raw bytes."""
    found = []
    by_cut = {part.cut: part for part in parts.cuts}
    for at, prospect in enumerate(scene.work.prospects):
        if prospect.placement != "local" and prospect.codec == "none":
            inside = np.zeros(len(parts.layers), bool)
            inside[list(by_cut[prospect.cut].head_layers)] = True
            found.append((at, inside, by_cut[prospect.cut].raw_bytes))
    return found


def _tensors(parts: ModelParts, scene: Scene, at: int) -> tuple[str, ...]:
    cut = scene.work.prospects[at].cut
    return next(part.tensors for part in parts.cuts if part.cut == cut)
