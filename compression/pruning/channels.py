"""Which channels of an ONNX graph live and die together, found by walking it node by node.

Design: every tensor whose channels are understood has segments, one a source: a convolution makes a new group of
channels, a concatenation strings segments together, an addition makes two groups one, flattening repeats each channel
once a position. What is not understood freezes the groups that reach it, with its name as the reason: those channels
stay, and nothing is guessed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx
from onnx import numpy_helper


@dataclass(frozen=True, slots=True)
class Segment:
    """Neighbouring channels from one source: `n` channels of a group, each of them `repeat` elements long."""

    group: int
    n: int
    repeat: int = 1


@dataclass(frozen=True, slots=True)
class Channels:
    """Where a tensor has its channels, and whose they are."""

    axis: int
    segments: tuple[Segment, ...]

    @property
    def n_elements(self) -> int:
        """Length of the tensor along the axis."""
        return sum(segment.n * segment.repeat for segment in self.segments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A weight of one node whose axis follows the channels of a tensor."""

    node: str
    slot: int
    axis: int
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumer:
    """A node that weighs channels: products over them, so what one channel brought can be made up for by others.

    Attributes:
        node: its name.
        tensor: the activation that it weighs.
        channels: of that activation.
        axis: the axis of the weight that runs over them.
    """

    node: str
    tensor: str
    channels: Channels
    axis: int


@dataclass(slots=True)
class Walked:
    """A graph with everything that depends on its channels.

    Attributes:
        n_channels: of each group, by the number of the group.
        makers: names of the nodes that make the channels of a group, in the order of the graph.
        frozen: reason of each group that may not lose channels.
        slices: weights that follow channels.
        consumers: nodes that weigh channels.
        depthwise: nodes whose `group` is their number of channels, with the segments of their input.
        reshaped: nodes that reshape to a written size, which entry of it counts channels, and whose.
    """

    n_channels: dict[int, int] = field(default_factory=dict)
    makers: dict[int, list[str]] = field(default_factory=dict)
    frozen: dict[int, str] = field(default_factory=dict)
    slices: list[Slice] = field(default_factory=list)
    consumers: list[Consumer] = field(default_factory=list)
    depthwise: list[tuple[str, tuple[Segment, ...]]] = field(default_factory=list)
    reshaped: list[tuple[str, int, tuple[Segment, ...]]] = field(default_factory=list)
    _same: dict[int, int] = field(default_factory=dict)

    def find(self, group: int) -> int:
        """The group that this one has become part of."""
        while self._same[group] != group:
            group = self._same[group]
        return group

    def new_group(self, n_channels: int, maker: str) -> int:
        """A group of its own."""
        number = len(self._same)
        self._same[number] = number
        self.n_channels[number] = n_channels
        self.makers[number] = [maker]
        return number

    def unite(self, one: Sequence[Segment], other: Sequence[Segment], reason: str) -> None:
        """The channels of two tensors are the same from here on; freeze both where they do not line up."""
        if [(part.n, part.repeat) for part in one] != [(part.n, part.repeat) for part in other]:
            self.freeze([*one, *other], reason)
            return
        for left, right in zip(one, other, strict=True):
            first, second = sorted((self.find(left.group), self.find(right.group)))
            if first == second:
                continue
            self._same[second] = first
            self.makers[first] += self.makers.pop(second)
            self.n_channels.pop(second)
            if second in self.frozen:
                self.frozen.setdefault(first, self.frozen.pop(second))

    def freeze(self, segments: Sequence[Segment], reason: str) -> None:
        """These channels stay."""
        for segment in segments:
            self.frozen.setdefault(self.find(segment.group), reason)

    def groups(self) -> Iterator[tuple[int, str]]:
        """Number and name of each group."""
        for number, makers in self.makers.items():
            yield number, makers[0]


class Tensors:
    """What is known of a graph's tensors: constants, shapes, channels."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.shapes: dict[str, tuple[int | None, ...]] = {
            name: array.shape for name, array in self.weights.items()
        }  # fmt: skip
        for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
            kind = value.type.tensor_type
            if kind.HasField("shape"):
                self.shapes[value.name] = tuple(
                    dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim
                )
        self.channels: dict[str, Channels] = {}

    def rank(self, name: str) -> int | None:
        """How many axes a tensor has, if known."""
        shape = self.shapes.get(name)
        return None if shape is None else len(shape)

    def from_end(self, name: str) -> int | None:
        """The channels' axis counted from the end, as broadcasting counts."""
        rank = self.rank(name)
        return None if rank is None or name not in self.channels else rank - self.channels[name].axis

    def size(self, name: str, from_end: int) -> int | None:
        """The size of one axis, counted from the end; axes that a tensor lacks count as 1."""
        shape = self.shapes.get(name)
        if shape is None:
            return None
        return shape[-from_end] if from_end <= len(shape) else 1

    def n_positions(self, name: str) -> int | None:
        """Elements of one channel of one sample, if known: the product of the axes after the channels."""
        shape = self.shapes.get(name)
        if shape is None:
            return None
        after = shape[self.channels[name].axis + 1 :]
        known = [size for size in after if size is not None]
        return prod(known) if len(known) == len(after) else None


def attribute(node: onnx.NodeProto, name: str, default: object = None) -> object:
    """The value of an attribute, or the default."""
    for entry in node.attribute:
        if entry.name == name:
            return onnx.helper.get_attribute_value(entry)
    return default


def number(node: onnx.NodeProto, name: str, default: int) -> int:
    """The value of an attribute that is a whole number."""
    value = attribute(node, name, default)
    assert isinstance(value, int)
    return value


def axes_of(node: onnx.NodeProto, tensors: Tensors) -> list[int] | None:
    """The axes of a reduction, as an attribute or as a constant input; None when neither says them."""
    value = attribute(node, "axes")
    if value is None and len(node.input) > 1 and node.input[1] in tensors.weights:
        value = tensors.weights[node.input[1]].tolist()
    rank = tensors.rank(node.input[0])
    if value is None or rank is None:
        return None
    return [int(axis) % rank for axis in np.atleast_1d(np.asarray(value))]


def indices(segments: Sequence[Segment], keep: dict[int, np.ndarray], find: Walked) -> np.ndarray:
    """Positions along an axis that stay, when each group keeps these of its channels (all, where it is not named)."""
    parts, start = [], 0
    for segment in segments:
        kept = keep.get(find.find(segment.group), np.arange(segment.n))
        parts.append((start + kept[:, None] * segment.repeat + np.arange(segment.repeat)).ravel())
        start += segment.n * segment.repeat
    return np.concatenate(parts)
