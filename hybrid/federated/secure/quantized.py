"""An update as whole levels of a common scale, what the rounding leaves for the next one, and a sum as a mean again."""

from dataclasses import dataclass

import numpy as np

from hybrid.errors import CorruptContent, TensorMismatch
from hybrid.federated.privacy.clipping import clip_bit
from hybrid.federated.secure.task import SecureTask

_NORM_SLACK = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """What a device masks.

    Attributes:
        levels: int32 (n_masked,): the vector's, whose norm times the step is within the clip norm, and the clip bit.
        residual: float32 (n_elements,), what rounding and the elements' range held back, for the next update.
        norm: L2 norm of update and residual before the clip.
    """

    levels: np.ndarray
    residual: np.ndarray
    norm: float


def quantized(
    update: np.ndarray, residual: np.ndarray | None, task: SecureTask, generator: np.random.Generator
) -> Quantized:
    """An update, clipped and rounded at random to the levels of a round's common scale.

    The residual is added first, then the norm is clipped, then elements are. What the clip of the norm takes is gone,
    not owed: otherwise a device that always sends too much would be in debt without end. Rounding at random enlarges
    the norm; elements drawn at random are rounded down again until it is within the clip, so that the clip norm is the
    sensitivity of the sum.

    Args:
        update: float32 (n_elements,).
        residual: what the last call left, None at first.
        task: of the round.
        generator: of the rounding.

    Raises:
        TensorMismatch: another length or datatype, or values that are not finite.
    """
    value = _sound(update, task, "update").astype(np.float32, copy=True)
    if residual is not None:
        value += _sound(residual, task, "residual")
    norm = float(np.linalg.norm(value.astype(np.float64)))
    limit = task.clip_norm * (1 - _NORM_SLACK)
    if norm > limit:
        value *= np.float32(limit / norm)
    scaled = value / np.float32(task.step_size)
    np.clip(scaled, -task.n_levels, task.n_levels, out=scaled)
    floor = np.floor(scaled)
    levels = floor.astype(np.int32)
    levels += generator.random(len(scaled), np.float32) < scaled - floor
    _shorten(levels, scaled, task, generator)
    left = value - levels * np.float32(task.step_size)
    if task.has_clip_bit:
        levels = np.append(levels, np.int32(clip_bit(norm, task.clip_norm)))
    return Quantized(levels=levels, residual=left.astype(np.float32, copy=False), norm=norm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """What the gateway learns of a masked round, and nothing else of its updates.

    Attributes:
        levels: int64 (n_elements,), in steps of the task's `step_size`.
        bits: sum of the clip bits, 0 where the task has none.
        n_devices: that are in it.
        step_size: of a level.
    """

    levels: np.ndarray
    bits: int
    n_devices: int
    step_size: float

    def mean(self) -> np.ndarray:
        """The mean update, float32 (n_elements,): every device weighs the same."""
        return (self.levels * (self.step_size / self.n_devices)).astype(np.float32)


def checked(total: np.ndarray, n_devices: int, task: SecureTask) -> Sum:
    """An unmasked total (n_masked,), once it can be the sum of so many clipped updates.

    Raises:
        CorruptContent: it cannot: a device did not follow the round.
    """
    levels, bits = total[: task.n_elements], int(total[task.n_elements :].sum())
    largest = int(np.abs(levels).max(initial=0))
    if largest > n_devices * task.n_levels or abs(bits) > n_devices:
        raise CorruptContent(
            f"the sum has an element of {largest} levels and {bits} bits, {n_devices} devices can have "
            f"{n_devices * task.n_levels} and {n_devices}: a device did not follow the round; nothing of it is used"
        )
    norm = float(np.linalg.norm(levels.astype(np.float64))) * task.step_size
    if norm > n_devices * task.clip_norm * (1 + _NORM_SLACK):
        raise CorruptContent(
            f"the sum has norm {norm:.4g}, {n_devices} devices clipped at {task.clip_norm:.4g} cannot reach it: "
            "a device did not clip; nothing of it is used"
        )
    return Sum(levels=levels, bits=bits, n_devices=n_devices, step_size=task.step_size)


def _sound(array: np.ndarray, task: SecureTask, what: str) -> np.ndarray:
    if array.shape != (task.n_elements,) or array.dtype != np.float32:
        raise TensorMismatch(f"the {what} is {array.dtype} {array.shape}; float32 ({task.n_elements},) is wanted")
    if not np.isfinite(array).all():
        raise TensorMismatch(f"the {what} holds values that are not finite: train again, nothing was sent")
    return array


def _shorten(levels: np.ndarray, scaled: np.ndarray, task: SecureTask, generator: np.random.Generator) -> None:
    """Round elements towards zero that were rounded away from it, until the norm is within the clip."""
    excess = float(np.square(levels, dtype=np.float64).sum()) - (task.clip_norm / task.step_size) ** 2
    if excess <= 0:
        return
    away = np.flatnonzero(np.abs(levels) > np.abs(scaled))
    away = away[generator.permutation(len(away))]
    gains = np.cumsum(2 * np.abs(levels[away]).astype(np.int64) - 1)
    n_shortened = int(np.searchsorted(gains, excess)) + 1
    chosen = away[:n_shortened]
    levels[chosen] -= np.sign(levels[chosen])
