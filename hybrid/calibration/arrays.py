"""Ready inputs from numpy's files: one file with a sample an entry, or one file a sample."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from zipfile import BadZipFile

import numpy as np

from compression.tensor import BYTES, NUMPY_OF, TensorSpec
from hybrid.errors import BadMessage, TensorMismatch

Feeds = dict[str, np.ndarray]
SUFFIXES: Final = frozenset({".npz", ".npy"})


@dataclass(frozen=True, slots=True, kw_only=True)
class StackedSamples:
    """Arrays with a sample an entry, and others that are the same for every sample."""

    stacks: Mapping[str, np.ndarray]
    constant: Mapping[str, np.ndarray]

    @property
    def names(self) -> Sequence[str]:
        """The samples' numbers."""
        return [str(index) for index in range(len(next(iter(self.stacks.values()))) if self.stacks else 1)]

    def feeds(self, index: int) -> Feeds:
        """The inputs of one request."""
        return {name: stack[index] for name, stack in self.stacks.items()} | dict(self.constant)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSamples:
    """A folder with one request a file."""

    folder: Path
    files: Sequence[Path]
    inputs: Sequence[TensorSpec]

    @property
    def names(self) -> Sequence[str]:
        """The files below the folder."""
        return [file.relative_to(self.folder).as_posix() for file in self.files]

    def feeds(self, index: int) -> Feeds:
        """The inputs of one request; raises as `read_arrays`."""
        path = self.files[index]
        arrays = read_arrays(path, self.inputs)
        return {spec.name: _typed(path, spec, arrays[spec.name]) for spec in self.inputs}


def stacked(path: Path, inputs: Sequence[TensorSpec]) -> StackedSamples:
    """The samples of one file.

    An array with one more dimension than its input holds a sample in each entry. So does one with as many, more than
    one entry, and an input that takes batches of 1 or any size. Any other is the same for every sample.

    Raises:
        BadMessage, TensorMismatch: as `read_arrays`, or numbers of samples that differ.
    """
    arrays = read_arrays(path, inputs)
    stacks: Feeds = {}
    constant: Feeds = {}
    for spec in inputs:
        array = _typed(path, spec, arrays[spec.name])
        rank = len(spec.shape)
        if rank and not array.size and array.shape[0] == 0:
            raise BadMessage(f"{path}: {spec.name!r} holds no sample; give one at least")
        if array.ndim == rank + 1:
            stacks[spec.name] = array
        elif array.ndim == rank and rank and spec.shape[0] in (1, None) and array.shape[0] > 1:
            stacks[spec.name] = array[:, None]
        elif array.ndim == rank and rank and spec.shape[0] not in (None, array.shape[0]):
            raise TensorMismatch(_rows_of_batches(path, spec, array))
        elif array.ndim == rank:
            constant[spec.name] = array
        else:
            raise TensorMismatch(
                f"{path}: {spec.name!r} has shape {list(array.shape)} where the input has {rank} dimensions; give one "
                "more for the samples"
            )
    lengths = {name: len(stack) for name, stack in stacks.items()}
    if len(set(lengths.values())) > 1:
        raise TensorMismatch(f"{path}: different numbers of samples: {lengths}; give as many for each input")
    return StackedSamples(stacks=stacks, constant=constant)


def _rows_of_batches(path: Path, spec: TensorSpec, array: np.ndarray) -> str:
    """What is wrong with rows for a model that takes several at once, and how they must lie."""
    n_rows, size = array.shape[0], int(spec.shape[0] or 1)
    shape = [n_rows // size or 1, size, *array.shape[1:]]
    left = f" (the last {n_rows % size} left out)" if n_rows % size and n_rows > size else ""
    return (
        f"{path}: {spec.name!r} has {n_rows} rows, and the model takes {size} at once, no more and no fewer: give an "
        f"array of shape {shape}{left}, an entry for each run, or export the model with an open batch or one of 1, "
        "which labels of single samples need"
    )


def read_arrays(path: Path, inputs: Sequence[TensorSpec]) -> Feeds:
    """The arrays of a file by input name; each input is there.

    Raises:
        BadMessage: no file of numpy arrays.
        TensorMismatch: an input is missing.
    """
    arrays = load(path)
    if set(arrays) == {""}:
        if len(inputs) != 1:
            names = ", ".join(spec.name for spec in inputs)
            raise TensorMismatch(f"{path}: one array for {len(inputs)} inputs; give an .npz with {names}")
        arrays = {inputs[0].name: arrays[""]}
    missing = [spec.name for spec in inputs if spec.name not in arrays]
    if missing:
        raise TensorMismatch(f"{path}: no array {missing[0]!r}; it holds {', '.join(arrays) or 'nothing'}")
    return arrays


def load(path: Path) -> Feeds:
    """All arrays of an .npz by name, or the one of an .npy under an empty name; nothing pickled is read.

    Raises:
        BadMessage: no such file.
    """
    try:
        with path.open("rb") as file:  # numpy itself leaves the file of a damaged archive open
            if path.suffix.lower() == ".npy":
                return {"": np.load(file, allow_pickle=False)}
            with np.load(file, allow_pickle=False) as loaded:
                return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, TypeError, AttributeError, BadZipFile) as exc:
        raise BadMessage(f"{path}: no numpy arrays to be read ({exc}); write it with numpy.savez") from exc


def _typed(path: Path, spec: TensorSpec, array: np.ndarray) -> np.ndarray:
    """The array in the input's datatype: floats are rounded to it, whole numbers must be kept exactly."""
    if spec.dtype == BYTES:
        if array.dtype.kind not in "SUO":
            raise TensorMismatch(f"{path}: {spec.name!r} holds {array.dtype}, the input takes strings")
        return array.astype(object)
    wanted = NUMPY_OF[spec.dtype]
    both_floats = array.dtype.kind == "f" and wanted.kind == "f"
    both_whole = array.dtype.kind in "iub" and wanted.kind in "iub"
    typed = array.astype(wanted) if both_floats or both_whole else None
    if typed is None or (both_whole and not np.array_equal(typed, array)):
        raise TensorMismatch(
            f"{path}: {spec.name!r} holds {array.dtype}, the input takes {wanted}; give it as the model wants it"
        )
    return typed
