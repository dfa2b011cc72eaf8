"""How the server steps along the mean of the updates: plain, with momentum, or adaptively.

Source: Reddi et al., Adaptive Federated Optimization, ICLR 2021, algorithm 2; FedAvgM: Hsu et al., 2019. The mean of
the updates takes the place of the negative gradient. FedProx changes what devices do; its server is the plain one.
"""

from collections.abc import Mapping
from typing import Final, Literal

import msgspec
import numpy as np

from hybrid.errors import BadMessage, TensorMismatch

Kind = Literal["plain", "momentum", "adam", "yogi"]
_STATES: Final[Mapping[str, tuple[str, ...]]] = {
    "plain": (),
    "momentum": ("first",),
    "adam": ("first", "second"),
    "yogi": ("first", "second"),
}


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One optimiser's numbers.

    Attributes:
        kind: which of them.
        rate: the server's learning rate; 1 with `plain` is FedAvg.
        decay_first: β₁, of the mean; with `momentum` the old step's share.
        decay_second: β₂, of the squares.
        adaptivity: τ, what is added to the root: small means that every element steps alike.
    """

    kind: Kind
    rate: float
    decay_first: float = 0.9
    decay_second: float = 0.99
    adaptivity: float = 1e-3

    def __post_init__(self) -> None:
        """Raises `BadMessage` for numbers that no optimiser works with."""
        decays = self.decay_first, self.decay_second
        if not (0 < self.rate < 1e6 and 0 < self.adaptivity < 1e6 and all(0 <= decay < 1 for decay in decays)):
            raise BadMessage(f"an optimiser with {self}: rate and adaptivity above 0, decays from 0 to below 1")


class _State(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    settings: Settings
    n_elements: int
    n_steps: int
    vectors: tuple[bytes, ...]


class Optimizer:
    """Its settings, the steps it took, and float32 vectors of the model's length."""

    def __init__(self, settings: Settings, n_elements: int) -> None:
        self.settings = settings
        self.n_steps = 0
        self._n_elements = n_elements
        self._vectors = {name: np.zeros(n_elements, np.float32) for name in _STATES[settings.kind]}
        if "second" in self._vectors:
            self._vectors["second"] += np.float32(settings.adaptivity**2)

    def step(self, weights: np.ndarray, mean_delta: np.ndarray) -> np.ndarray:
        """The new weights, float32 (n_elements,).

        Raises:
            TensorMismatch: either is of another length or datatype, or the step leads to what is not finite (the
                optimiser's state is then as before).
        """
        for name, vector in (("weights", weights), ("a mean", mean_delta)):
            if vector.shape != (self._n_elements,) or vector.dtype != np.float32:
                raise TensorMismatch(f"{name}: {vector.dtype} {vector.shape}, float32 ({self._n_elements},) was wanted")
        with np.errstate(over="ignore", invalid="ignore"):
            vectors, step = self._next(mean_delta)
            stepped = weights + np.float32(self.settings.rate) * step
        if not np.isfinite(stepped).all():
            raise TensorMismatch(f"a {self.settings.kind} step leads to weights that are not finite: kept as they were")
        self._vectors = vectors
        self.n_steps += 1
        return stepped

    def _next(self, delta: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The state after this mean, and the direction to step in."""
        numbers = self.settings
        if numbers.kind == "plain":
            return {}, delta
        first_share = np.float32(numbers.decay_first)
        if numbers.kind == "momentum":
            first = first_share * self._vectors["first"] + delta
            return {"first": first}, first
        first = first_share * self._vectors["first"] + (1 - first_share) * delta
        second = self._vectors["second"]
        square = delta * delta
        second_share = np.float32(numbers.decay_second)
        if numbers.kind == "adam":
            second = second_share * second + (1 - second_share) * square
        else:
            second = second - (1 - second_share) * square * np.sign(second - square)
        return {"first": first, "second": second}, first / (np.sqrt(second) + np.float32(numbers.adaptivity))

    def to_bytes(self) -> bytes:
        """Settings and state, for the store."""
        vectors = tuple(vector.astype("<f4").tobytes() for vector in self._vectors.values())
        state = _State(settings=self.settings, n_elements=self._n_elements, n_steps=self.n_steps, vectors=vectors)
        return msgspec.msgpack.encode(state)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Optimizer":
        """The optimiser that goes on where this one stood.

        Raises:
            BadMessage: bytes that `to_bytes` does not write.
        """
        try:
            state = msgspec.msgpack.decode(data, type=_State)
        except msgspec.MsgspecError as error:
            raise BadMessage(f"{len(data)} bytes are no optimiser's state: {error}") from error
        names = _STATES[state.settings.kind]
        lengths = [len(vector) for vector in state.vectors]
        if state.n_elements < 1 or state.n_steps < 0 or lengths != [4 * state.n_elements] * len(names):
            seen = f"{state.n_elements} elements, {state.n_steps} steps and vectors of {lengths} bytes"
            raise BadMessage(f"the state of {state.settings.kind} says {seen}")
        optimizer = cls(state.settings, state.n_elements)
        optimizer.n_steps = state.n_steps
        vectors = (np.frombuffer(vector, "<f4").astype(np.float32) for vector in state.vectors)
        optimizer._vectors = dict(zip(names, vectors, strict=True))
        if not all(np.isfinite(vector).all() for vector in optimizer._vectors.values()):
            raise BadMessage(f"the state of {state.settings.kind} is not finite")
        return optimizer


def plain(n_elements: int, rate: float = 1.0) -> Optimizer:
    """FedAvg (rate 1), and the server's side of FedProx."""
    return Optimizer(Settings(kind="plain", rate=rate), n_elements)


def momentum(n_elements: int, rate: float = 1.0, decay: float = 0.9) -> Optimizer:
    """FedAvgM: the old step's share is added to the mean."""
    return Optimizer(Settings(kind="momentum", rate=rate, decay_first=decay), n_elements)


def adam(n_elements: int, rate: float = 0.03, adaptivity: float = 1e-3) -> Optimizer:
    """FedAdam: the step of each element over the root of its mean square; for devices with unlike data."""
    return Optimizer(Settings(kind="adam", rate=rate, adaptivity=adaptivity), n_elements)


def yogi(n_elements: int, rate: float = 0.03, adaptivity: float = 1e-3) -> Optimizer:
    """FedYogi: as FedAdam, but its mean square falls slowly where the updates grow small."""
    return Optimizer(Settings(kind="yogi", rate=rate, adaptivity=adaptivity), n_elements)
