"""SCAFFOLD: control variates say where each device's data pull, and where all pull; twice the bytes both ways.

Source: Karimireddy et al., SCAFFOLD, ICML 2020, algorithm 1, option II. Each of N devices keeps c_i, the server c. A
device adds `correction = c - c_i` to every gradient, and after `n_steps` steps of `rate` from x to y sends y - x and
the change of its control variate. Both travel as one vector of a paired layout (weights, then controls), so that
forms, gates and means need not know. For devices that come again and again: a c_i of long ago misleads. Losing an
update loses both halves; so a device makes its new c_i its own only once the update is accepted.
"""

from typing import Final

import msgspec
import numpy as np

from hybrid.errors import BadMessage, TensorMismatch
from hybrid.federated.layout import Layout

_PREFIX: Final = "control/"


def paired(layout: Layout) -> Layout:
    """The layout with a control variate for each tensor behind all tensors."""
    return Layout(
        names=(*layout.names, *(_PREFIX + name for name in layout.names)), shapes=(*layout.shapes, *layout.shapes)
    )


def halves(vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights' and controls' parts of a paired vector, as views.

    Raises:
        TensorMismatch: its length is odd.
    """
    if len(vector) % 2:
        raise TensorMismatch(f"a paired vector has {len(vector)} elements: weights and controls are as many")
    return vector[: len(vector) // 2], vector[len(vector) // 2 :]


def control_change(delta: np.ndarray, control: np.ndarray, n_steps: int, rate: float) -> np.ndarray:
    """What a device's control variate changes by: c_i⁺ - c_i = (x - y) / (n_steps · rate) - c.

    Args:
        delta: y - x, what its training changed, float32 (n_elements,).
        control: c, the server's, as it came with the weights.
        n_steps: steps of the training.
        rate: of each step.

    Raises:
        BadMessage: no step, or a rate of 0 or less.
    """
    if n_steps < 1 or not rate > 0:
        raise BadMessage(f"{n_steps} steps of {rate} say nothing of a gradient")
    change: np.ndarray = delta / np.float32(-n_steps * rate) - control
    return change


class _State(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    rate: float
    n_devices: int
    control: bytes


class Scaffold:
    """The server's half: its control variate c, the mean of those of all devices."""

    def __init__(self, layout: Layout, rate: float = 1.0) -> None:
        """Over the model's own layout; c begins as zero, as every c_i does."""
        self.control: np.ndarray = np.zeros(layout.n_elements, np.float32)
        self._rate = rate
        self._n_devices = 0

    def step(self, weights: np.ndarray, paired_mean: np.ndarray, n_updates: int, n_devices: int) -> np.ndarray:
        """The new weights; `control` moves by n_updates/n_devices of its mean change.

        Args:
            weights: float32 (n_elements,).
            paired_mean: uniform mean of the updates, float32 (2 · n_elements,).
            n_updates: that it is the mean of.
            n_devices: N, all that take part, reporting or not. Where it grew, c shrinks by as much, since the new
                devices' control variates are zero; where devices left for good, theirs stay counted.

        Raises:
            TensorMismatch: a length, or a step to what is not finite; nothing has changed then.
        """
        delta, change = halves(paired_mean)
        if weights.shape != self.control.shape or delta.shape != self.control.shape:
            raise TensorMismatch(
                f"weights {weights.shape} and a paired mean {paired_mean.shape}: {self.control.shape} and twice it"
            )
        counted = max(n_devices, self._n_devices, n_updates)
        with np.errstate(over="ignore", invalid="ignore"):
            stepped = weights + np.float32(self._rate) * delta
            control = self.control * np.float32(self._n_devices / counted) if self._n_devices else self.control
            control = control + np.float32(n_updates / counted) * change
        if not (np.isfinite(stepped).all() and np.isfinite(control).all()):
            raise TensorMismatch("a SCAFFOLD step leads to what is not finite: kept as it was")
        self.control, self._n_devices = control, counted
        return stepped

    def to_bytes(self) -> bytes:
        """All of it, for the store."""
        control = self.control.astype("<f4").tobytes()
        return msgspec.msgpack.encode(_State(rate=self._rate, n_devices=self._n_devices, control=control))

    @classmethod
    def from_bytes(cls, data: bytes, layout: Layout) -> "Scaffold":
        """The server's half that goes on where this one stood.

        Raises:
            BadMessage: bytes that `to_bytes` does not write for this layout.
        """
        try:
            state = msgspec.msgpack.decode(data, type=_State)
        except msgspec.MsgspecError as error:
            raise BadMessage(f"{len(data)} bytes are no state of SCAFFOLD: {error}") from error
        if len(state.control) != 4 * layout.n_elements or state.n_devices < 0:
            raise BadMessage(f"a control variate of {len(state.control)} bytes: {4 * layout.n_elements} were wanted")
        scaffold = cls(layout, state.rate)
        scaffold.control = np.frombuffer(state.control, "<f4").astype(np.float32)
        scaffold._n_devices = state.n_devices
        if not np.isfinite(scaffold.control).all():
            raise BadMessage("the state of SCAFFOLD is not finite")
        return scaffold
