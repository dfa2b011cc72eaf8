"""What is known of a tensor while a graph is read for rows: that it never changes, or along which axis its rows lie.

Design: a size is a whole number or a `Count`, so many for each row of the request. Rows of a tensor are blocks along
one axis: block i of `Count(k)` is its k entries from i·k on, and is made of row i of the inputs alone, for every number
of rows in the same way. What cannot be said so is refused, never guessed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final, NoReturn

import numpy as np
import onnx

from hybrid.errors import ModelUnsupported

TRIAL_ROWS: Final = 97
"""The number of rows for which sizes are inferred; rules say which size follows it, so that any number would do."""


@dataclass(frozen=True, slots=True)
class Count:
    """A size: `k` for each row."""

    k: int

    def __mul__(self, other: object) -> "Count":
        if type(other) is int and other > 0:
            return Count(self.k * other)
        raise TypeError("rows times something that is no size")

    __rmul__ = __mul__

    def __floordiv__(self, other: object) -> "Count | int":
        if type(other) is int and other > 0 and self.k % other == 0:
            return Count(self.k // other)
        if isinstance(other, Count) and self.k % other.k == 0:
            return self.k // other.k
        raise TypeError("rows that do not divide")


Size = int | Count


@dataclass(frozen=True, slots=True)
class Fixed:
    """A tensor that depends on no input's values; on the number of rows only where `value` holds a `Count`.

    Attributes:
        shape: its sizes; None where they are not known.
        value: elements as Python numbers and counts; None where there are many, or they were not computed.
    """

    shape: tuple[int, ...] | None
    value: np.ndarray | None = None

    @property
    def counts_rows(self) -> bool:
        """Whether an element follows the number of rows."""
        return self.value is not None and any(isinstance(item, Count) for item in self.value.flat)


@dataclass(frozen=True, slots=True)
class Rows:
    """A tensor whose blocks along one axis are rows; exactly one size is a `Count`."""

    shape: tuple[Size, ...]

    @property
    def axis(self) -> int:
        """Where the rows lie."""
        return next(axis for axis, size in enumerate(self.shape) if isinstance(size, Count))

    @property
    def count(self) -> Count:
        """The size there."""
        return next(size for size in self.shape if isinstance(size, Count))

    @property
    def back(self) -> int:
        """The axis counted from the end, as broadcasting does: 1 is the last."""
        return len(self.shape) - self.axis


Fact = Fixed | Rows


class Step:
    """One node with what is known of its inputs.

    Attributes:
        op: operator type.
        version: opset of the graph.
        inputs: facts; None for one that is left out.
        outputs: names.
    """

    def __init__(
        self, node: onnx.NodeProto, version: int, inputs: Sequence[Fact | None], sizes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self.op = node.op_type
        self.version = version
        self.inputs = list(inputs)
        self.outputs = list(node.output)
        self._name = node.name or (node.output[0] if node.output else "")
        self._attributes = {attribute.name: attribute for attribute in node.attribute}
        self._sizes = sizes

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
        """Refuse unless all of these inputs are left out, or neither change nor follow the number of rows."""
        for index in indices:
            fact = self.given(index)
            if fact is not None and (isinstance(fact, Rows) or fact.counts_rows):
                self.refuse(f"input {index} follows the rows")

    def numbers(self, index: int) -> list[Any]:
        """The elements of an input that must be known; none where it is left out."""
        fact = self.given(index)
        if fact is None:
            return []
        if isinstance(fact, Rows) or fact.value is None:
            self.refuse(f"input {index} is not known before a run")
        return list(fact.value.reshape(-1))

    def axes(self, found: Sequence[Any], rank: int) -> list[int]:
        """Axes counted from the front."""
        for axis in found:
            if isinstance(axis, Count) or not -rank <= int(axis) < rank:
                self.refuse(f"axis {axis} of {rank}")
        return [int(axis) % rank if rank else 0 for axis in found]

    def axis(self, default: int, rank: int) -> int:
        """The attribute `axis`, counted from the front."""
        return self.axes([self.attribute("axis", default)], rank)[0]

    def sized(self, output: int = 0) -> tuple[int, ...]:
        """Inferred sizes of an output, for `TRIAL_ROWS` rows; but for the rows' own they hold for any number."""
        if any(isinstance(fact, Fixed) and fact.counts_rows for fact in self.inputs):
            self.refuse("its size follows the number of rows")
        found = self._sizes.get(self.outputs[output])
        if found is None:
            self.refuse("its size is not known before a run")
        return found

    def along(self, axis: int, count: Count, output: int = 0) -> Rows:
        """An output with rows along this axis; its other sizes are the inferred ones."""
        found = self.sized(output)
        if not 0 <= axis < len(found) or found[axis] != TRIAL_ROWS * count.k:
            self.refuse(f"its output is {list(found)} for {TRIAL_ROWS} rows")
        return Rows((*found[:axis], count, *found[axis + 1 :]))

    def regrouped(self, source: Rows, sizes: Sequence[Size]) -> Rows:
        """The same elements in the same order, with other sizes.

        Rows stay blocks where as many elements lie before their axis, and each has as many as before.
        """
        found = [size for size in sizes if isinstance(size, Count)]
        if len(found) != 1:
            self.refuse(f"its sizes {_text(sizes)} do not follow the number of rows")
        target = Rows(tuple(sizes))
        if _before(source) != _before(target) or _of_a_row(source) != _of_a_row(target):
            self.refuse(f"from {_text(source.shape)} to {_text(sizes)} rows do not stay together")
        return target


def _before(rows: Rows) -> int:
    return prod(int(size) for size in rows.shape[: rows.axis] if not isinstance(size, Count))


def _of_a_row(rows: Rows) -> int:
    return rows.count.k * prod(size for size in rows.shape if not isinstance(size, Count))


def _text(sizes: Sequence[Size]) -> str:
    return "[" + ", ".join(f"{size.k}·rows" if isinstance(size, Count) else str(size) for size in sizes) + "]"
