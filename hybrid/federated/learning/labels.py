"""Labels as samples bring them (JSON text), and which samples are never trained on.

A label is {"class": 3}, {"class": "cat"} where the artifact names its classes, or {"values": [0.1, 2]} for a model that
gives numbers; a bare 3, "cat" or [0.1, 2] says the same.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import msgspec
import numpy as np

from hybrid.errors import DataUnfit

HELD_OUT_RATIO: Final = 0.2
_SALT: Final = b"hybrid held out v1\0"
_MOST_TEXT: Final = 1 << 16
_MOST_VALUES: Final = 4096
_MOST_CLASS: Final = 1 << 24
_LONGEST_NAME: Final = 80
_LARGEST: Final = 1e39
"""Beyond all that float32 holds; integers of hundreds of digits are no floats at all."""

Target = int | tuple[float, ...]
"""A class number, or values."""


def target_of(text: str, classes: Sequence[str] | None = None) -> Target | None:
    """What a label's JSON says; None where nobody said anything (an empty text, or null).

    Raises:
        DataUnfit: it says something else.
    """
    if not text:
        return None
    if len(text) > _MOST_TEXT:
        raise DataUnfit(f"a label of {len(text)} characters; {_MOST_TEXT} are allowed")
    try:
        found = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
        raise DataUnfit(f"a label is no JSON ({exc}); " + _WANTED) from exc
    if isinstance(found, dict):
        known = [key for key in ("class", "values") if key in found]
        if len(known) != 1:
            raise DataUnfit(f"a label names {', '.join(map(str, list(found)[:5])) or 'nothing'}; " + _WANTED)
        if (known[0] == "values") != isinstance(found[known[0]], list):
            raise DataUnfit(f"a label's {known[0]!r} is {type(found[known[0]]).__name__}; " + _WANTED)
        found = found[known[0]]
    return None if found is None else _target(found, classes)


_WANTED: Final = '{"class": 3}, {"class": "NAME"} or {"values": [1.5]} is wanted'


def _target(found: Any, classes: Sequence[str] | None) -> Target:
    if isinstance(found, str):
        if classes is None or found not in classes:
            named = ", ".join((classes or ())[:5])
            has = f"the model's classes are {named}" if named else "the model names none; give its number"
            raise DataUnfit(f"no class is called {found[:_LONGEST_NAME]!r}; {has}")
        return list(classes).index(found)
    if isinstance(found, int) and not isinstance(found, bool):
        n_classes = len(classes) if classes else _MOST_CLASS
        if not 0 <= found < n_classes:
            raise DataUnfit(f"class {str(found)[:_LONGEST_NAME]}: the model has 0 to {n_classes - 1}")
        return found
    if isinstance(found, list) and 1 <= len(found) <= _MOST_VALUES:
        numbers = [one for one in found if isinstance(one, (int, float)) and not isinstance(one, bool)]
        values = [float(one) for one in numbers if abs(one) < _LARGEST]
        with np.errstate(over="ignore"):  # beyond float32 is not finite
            is_finite = bool(np.isfinite(np.array(values, np.float32)).all())
        if len(values) == len(found) and is_finite:
            return tuple(values)
    raise DataUnfit(f"a label is {type(found).__name__}; " + _WANTED)


@lru_cache(maxsize=4096)
def is_held_out(sample_id: str, ratio: float = HELD_OUT_RATIO) -> bool:
    """Whether a sample is kept for evaluation: by the hash of its id, so that nothing has to be remembered."""
    first = hashlib.sha256(_SALT + sample_id.encode()).digest()[:8]
    return int.from_bytes(first, "big") < ratio * 2**64


@dataclass(slots=True)
class Chosen:
    """Samples of a box by what they are for.

    Attributes:
        training, held_out: target by sample id; never one in both.
        n_unlabelled: that nobody labelled.
        refused: why a label was refused, by sample id.
    """

    training: dict[str, Target] = field(default_factory=dict)
    held_out: dict[str, Target] = field(default_factory=dict)
    n_unlabelled: int = 0
    refused: dict[str, str] = field(default_factory=dict)


def chosen(
    labels: Iterable[tuple[str, str]],
    classes: Sequence[str] | None = None,
    *,
    corrections: Mapping[str, str] | None = None,
    ratio: float = HELD_OUT_RATIO,
) -> Chosen:
    """Sorts samples by their labels.

    Args:
        labels: id and label text of each.
        classes: the artifact's.
        corrections: label texts that somebody gave later, by id; they stand in for the sample's own.
        ratio: share that is held out.
    """
    found = Chosen()
    later = corrections or {}
    for sample_id, text in labels:
        try:
            target = target_of(later.get(sample_id, text), classes)
        except DataUnfit as exc:
            found.refused[sample_id] = str(exc)
            continue
        if target is None:
            found.n_unlabelled += 1
        else:
            (found.held_out if is_held_out(sample_id, ratio) else found.training)[sample_id] = target
    return found


def of_one_kind(found: Mapping[str, Target]) -> dict[str, Target]:
    """The samples whose labels are of the kind that most have: classes, or so many values; ties go to the first."""
    kinds = Counter(0 if isinstance(one, int) else len(one) for one in found.values())
    if not kinds:
        return {}
    kind = kinds.most_common(1)[0][0]
    return {name: one for name, one in found.items() if (0 if isinstance(one, int) else len(one)) == kind}


def targets_of(found: Sequence[Target]) -> np.ndarray:
    """Targets as one array: int64 (n,) of classes, or float32 (n, values).

    Raises:
        DataUnfit: classes and values mixed, or rows of different lengths.
    """
    if all(isinstance(one, int) for one in found):
        return np.array(found, np.int64)
    lengths = {len(one) if isinstance(one, tuple) else 0 for one in found}
    if len(lengths) != 1:
        raise DataUnfit("some labels are classes and others values, or of different lengths; one kind is wanted")
    return np.array(found, np.float32)
