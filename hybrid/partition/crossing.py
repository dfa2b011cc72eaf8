"""What crosses a cut for given inputs, and what its head answers with itself."""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import numpy as np

from hybrid.partition.cut import Cut

Feeds = Mapping[str, np.ndarray]


class Named(Protocol):
    """An input of an open model."""

    @property
    def name(self) -> str:
        """Of the tensor."""
        ...


class Engine(Protocol):
    """A model that is open, as onnxruntime has it."""

    def get_inputs(self) -> Sequence[Named]:
        """Its inputs."""
        ...

    def run(self, output_names: Sequence[str] | None, input_feed: dict[str, np.ndarray]) -> Sequence[np.ndarray]:
        """The outputs of these names, all without any."""
        ...


def fed(engine: Engine, feeds: Feeds) -> dict[str, np.ndarray]:
    """Those of the arrays that are a model's inputs."""
    return {port.name: feeds[port.name] for port in engine.get_inputs()}


def head_names(cut: Cut, feeds: Collection[str]) -> list[str]:
    """What a head computes: crossing tensors that are none of these inputs, and the outputs that it answers with."""
    computed = [tensor.name for tensor in cut.tensors if tensor.name not in feeds]
    return list(dict.fromkeys((*computed, *cut.head_outputs)))


def crossed(head: Engine | None, cut: Cut, feeds: Feeds) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What crosses a cut, and the outputs that the head answers with; the input cut has no head.

    Raises:
        Exception: the engine's, for inputs that it does not take.
    """
    names = head_names(cut, feeds) if head is not None else []
    computed = dict(zip(names, head.run(names, fed(head, feeds)), strict=True)) if head is not None else {}
    crossing = {spec.name: computed[spec.name] if spec.name in computed else feeds[spec.name] for spec in cut.tensors}
    return crossing, {name: computed[name] for name in cut.head_outputs if name in computed}
