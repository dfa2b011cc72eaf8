"""What is known of a tensor while a graph is read for rows: that it never changes, or along which axis its rows lie.

Design: rows of a tensor are blocks along one axis: block i is its `k` entries from i·k on, and is made of row i of the
inputs alone, for every number of rows in the same way. What cannot be said so is refused, never guessed. Sizes are
those that the engine itself gave for two numbers of rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NoReturn

import onnx

from hybrid.errors import ModelUnsupported


@dataclass(frozen=True, slots=True)
class Fixed:
    """A tensor that depends on no input.

    Attributes:
        shape: its sizes.
        values: elements of a small stored one; None where there are many, or where a node computes it.
    """

    shape: tuple[int, ...]
    values: tuple[Any, ...] | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """A tensor whose blocks along one axis are rows.

    Attributes:
        axis: where they lie.
        k: entries of a block.
        shape: its sizes for the smaller number of rows.
    """

    axis: int
    k: int
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def back(self) -> int:
        """The axis counted from the end, as broadcasting does: 1 is the last."""
        return len(self.shape) - self.axis

    @property
    def behind(self) -> int:
        """Elements of each entry."""
        return prod(self.shape[self.axis + 1 :])


Fact = Fixed | Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Sizes that the engine gave all tensors for so many rows."""

    n_rows: int
    sizes: Mapping[str, tuple[int, ...]]


class Step:
    """One node with what is known of its inputs.

    Attributes:
        op: operator type.
        version: opset of the graph.
        inputs: facts; None for one that is left out.
        outputs: names.
    """

    def __init__(
        self, node: onnx.NodeProto, version: int, inputs: Sequence[Fact | None], measured: Sequence[Measured]
    ) -> None:
        self.op = node.op_type
        self.version = version
        self.inputs = list(inputs)
        self.outputs = list(node.output)
        self._name = node.name or (node.output[0] if node.output else "")
        self._attributes = {attribute.name: attribute for attribute in node.attribute}
        self._measured = measured

    def refuse(self, why: str) -> NoReturn:
        """Raises `ModelUnsupported`: it is not proved that this node keeps rows apart."""
        raise ModelUnsupported(f"{self.op} {self._name!r} may mix the rows of a batch: {why}", operator=self.op)

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's value, or the default where it is not given."""
        found = self._attributes.get(name)
        return default if found is None else onnx.helper.get_attribute_value(found)

    def given(self, index: int) -> Fact | None:
        """The fact of an input, None where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def rows(self, index: int = 0) -> Rows:
        """An input that must have rows."""
        fact = self.given(index)
        if not isinstance(fact, Rows):
            self.refuse(f"input {index} is the same for all rows")
        return fact

    def need_fixed(self, *indices: int) -> None:
        """Refuse unless all of these inputs are left out, or the same for all rows."""
        for index in indices:
            if isinstance(self.given(index), Rows):
                self.refuse(f"input {index} follows the rows")

    def numbers(self, index: int) -> list[Any]:
        """The elements of an input that must be stored in the graph; none where it is left out."""
        fact = self.given(index)
        if fact is None:
            return []
        if isinstance(fact, Rows) or fact.values is None:
            self.refuse(f"input {index} is not stored in the graph")
        return list(fact.values)

    def axes(self, found: Sequence[Any], rank: int) -> list[int]:
        """Axes counted from the front."""
        for axis in found:
            if type(axis) is not int or not -rank <= axis < rank:
                self.refuse(f"axis {axis} of {rank}")
        return [axis % rank for axis in found]

    def axis(self, default: int, rank: int) -> int:
        """The attribute `axis`, counted from the front."""
        return self.axes([self.attribute("axis", default)], rank)[0]

    def along(self, axis: int, k: int, output: int = 0) -> Rows:
        """An output with blocks of `k` along this axis, as its measured sizes must have it."""
        few, many = (measured.sizes[self.outputs[output]] for measured in self._measured)
        fits = len(few) == len(many) and 0 <= axis < len(few)
        if not fits or any(
            (a, b) != (k * self._measured[0].n_rows, k * self._measured[1].n_rows) if at == axis else a != b
            for at, (a, b) in enumerate(zip(few, many, strict=True))
        ):
            self.refuse(f"its output is {list(few)} for {self._measured[0].n_rows} rows and then {list(many)}")
        return Rows(axis, k, few)

    def fixed(self, output: int) -> Fixed:
        """An output that no input reaches."""
        few, many = (measured.sizes[self.outputs[output]] for measured in self._measured)
        if few != many:
            self.refuse("it follows the number of rows")
        return Fixed(few)
