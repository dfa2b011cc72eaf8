"""Labels of samples: class numbers or names, from a text, a table or an array."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hybrid.calibration import arrays
from hybrid.errors import DataUnfit, NotFound


def read_labels(path: Path, names: Sequence[str], classes: Sequence[str] = ()) -> tuple[int, ...]:
    """One class index a sample.

    Args:
        path: .npy or .npz with whole numbers in the samples' order; .csv or .tsv with rows of file and label (a first
            row that names no sample is a heading); else, and where rows have one column, one label a line in the
            samples' order.
        names: the samples'.
        classes: names that labels may have instead of numbers.

    Raises:
        NotFound: no such file.
        DataUnfit: not one label for every sample.
    """
    if not path.is_file():
        raise NotFound(
            f"{path}: no such file; give labels as .npy, .csv or one a line", advice="Check the path of --labels."
        )
    suffix = path.suffix.lower()
    if suffix in arrays.SUFFIXES:
        array = next(iter(arrays.load(path).values()), np.empty(0))
        if array.dtype.kind not in "iu":
            raise DataUnfit(f"{path} holds {array.dtype}; labels are whole numbers, counted from 0")
        if array.ndim > 1 and array.size != len(names):
            shape = "x".join(map(str, array.shape))
            raise DataUnfit(
                f"{path} holds an array of shape {shape} for {len(names)} samples; one whole number each is wanted: "
                "of rows with a one in the place of the class, save their argmax(1)"
            )
        values = [str(value) for value in array.reshape(-1)]
    elif suffix in (".csv", ".tsv"):
        values = _of_table(path, names, "\t" if suffix == ".tsv" else ",")
    else:
        values = [line.strip() for line in _text(path).splitlines() if line.strip()]
    if len(values) != len(names):
        raise DataUnfit(f"{path} has {len(values)} labels for {len(names)} samples; give one for each, in their order")
    known = {name: index for index, name in enumerate(classes)}
    return tuple(_label(path, value, known) for value in values)


def _of_table(path: Path, names: Sequence[str], delimiter: str) -> list[str]:
    """Labels by file: its path below the folder, or its name alone where that is enough."""
    by_file: dict[str, str] = {}
    rows = [row for row in csv.reader(_text(path).splitlines(), delimiter=delimiter) if row]
    if all(len(row) == 1 for row in rows):
        values = [row[0].strip() for row in rows]
        return values[1:] if len(values) == len(names) + 1 and not values[0].isdigit() else values
    for row in rows:
        if len(row) >= 2:
            by_file[row[0].strip()] = row[1].strip()
    short: dict[str, list[str]] = {}
    for name in names:
        short.setdefault(Path(name).name, []).append(name)
    values = []
    for name in names:
        value = by_file.get(name)
        if value is None and len(short[Path(name).name]) == 1:
            value = by_file.get(Path(name).name)
        if value is None:
            raise DataUnfit(f"{path} has no row for {name!r}; rows of file and label are wanted")
        values.append(value)
    return values


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise DataUnfit(f"{path}: no text of labels ({exc})") from exc


def _label(path: Path, value: str, classes: Mapping[str, int]) -> int:
    if value in classes:
        return classes[value]
    if value.isascii() and value.isdigit():
        return int(value)
    raise DataUnfit(
        f"{path}: label {value[:80]!r} is no class number, and no class of the artifact has that name: give whole "
        "numbers from 0, in the order of the model's scores"
    )
