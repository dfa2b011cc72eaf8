"""One request through a cascade: the small model first, the large one for the rows of which it is not sure enough."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal, NamedTuple

import numpy as np

from hybrid.artifact.manifest import CascadeRule
from hybrid.cascade.confidence import confidences
from hybrid.cascade.together import Replied, Together
from hybrid.errors import HybridError

AnsweredBy = Literal["small", "large", "both"]
OnHard = Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray], float], None]
"""Told of each request with unsure rows: its inputs, the answer that was given, the least confidence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """What a cascade answered.

    Attributes:
        outputs: in the order asked for.
        by: which model answered; `both` where some rows are the one's and some the other's.
        confidence: the least of all rows.
        n_escalated: rows that the large model answered.
        replied: how it went there; None where nobody was asked.
        not_escalated: why the small one answered although it was not sure, or None.
    """

    outputs: list[Any]
    by: AnsweredBy
    confidence: float
    n_escalated: int = 0
    replied: Replied | None = None
    not_escalated: str | None = None


class Cascade:
    """Decides, row by row.

    Args:
        rule: what sure means.
        outputs: names of all outputs, in the model's order.
        small: runs the small model: `(names, feeds) -> arrays`.
        together: the way to the large one.
        may_send: why so many bytes may not leave now, or an empty string.
        takes_rows: whether the models take any number of rows, so that some of them may be sent alone.

    Attributes:
        on_hard: told of hard requests, after the answer is known; what it raises is its own business.
    """

    def __init__(
        self,
        rule: CascadeRule,
        outputs: Sequence[str],
        small: Callable[[list[str], Mapping[str, Any]], list[Any]],
        together: Together,
        *,
        may_send: Callable[[int], str] = lambda _n_bytes: "",
        takes_rows: bool = True,
    ) -> None:
        self._rule = rule
        self._outputs = list(outputs)
        self._small = small
        self._together = together
        self._may_send = may_send
        self._takes_rows = takes_rows
        self.on_hard: OnHard | None = None

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, Any], left_s: float | None = None) -> Weighed:
        """The wanted outputs; whatever the small model raises for these feeds.

        Args:
            names: wanted outputs, all when None or empty.
            feeds: arrays by input name.
            left_s: seconds until the answer must be there; None for no limit.
        """
        began_s = perf_counter()
        wanted = list(names or self._outputs)
        asked = list(dict.fromkeys([*wanted, self._rule.output]))
        found = dict(zip(asked, self._small(asked, feeds), strict=True))
        sure = confidences(found[self._rule.output], self._rule.kind, self._rule.temperature)
        least = float(sure.min(initial=1.0))
        unsure = np.flatnonzero(sure < self._rule.threshold)
        if self._rule.threshold >= 1.0:
            unsure = np.arange(len(sure))
        if not len(unsure):
            return Weighed(outputs=[found[name] for name in wanted], by="small", confidence=least)
        weighed = self._escalated(
            _Unsure(wanted, [found[name] for name in wanted], feeds, unsure, least, left_s, began_s)
        )
        if self.on_hard is not None:
            self.on_hard(feeds, dict(zip(wanted, weighed.outputs, strict=True)), least)
        return weighed

    def _escalated(self, request: "_Unsure") -> Weighed:
        unsure, small = request.rows, request.small
        n_rows = _n_rows(request.feeds, small) if self._takes_rows else None
        is_part = n_rows is not None and len(unsure) < n_rows
        arrays = {name: np.asarray(array) for name, array in request.feeds.items()}
        sent = {name: array[unsure] if is_part else array for name, array in arrays.items()}
        reason = self._may_send(sum(array.nbytes for array in sent.values()))
        left_s = None if request.left_s is None else request.left_s - (perf_counter() - request.began_s)
        if left_s is not None and left_s <= 0:
            reason = "deadline_passed: the small model left no time for the large one"
        if not reason:
            try:
                replied = self._together.ask(sent, request.names, left_s, joins=n_rows is not None)
                outputs = [
                    _with_rows(array, unsure, replied.outputs[name]) if is_part else replied.outputs[name]
                    for name, array in zip(request.names, small, strict=True)
                ]
            except HybridError as exc:
                reason = f"{exc.code}: {exc}"
            except (KeyError, ValueError, IndexError) as exc:
                reason = f"protocol: the large model's answer is not of the small one's form ({exc})"
            else:
                return Weighed(
                    outputs=outputs,
                    by="both" if is_part else "large",
                    confidence=request.least,
                    n_escalated=len(unsure) if is_part else n_rows or 1,
                    replied=replied,
                )
        return Weighed(outputs=small, by="small", confidence=request.least, not_escalated=reason)


class _Unsure(NamedTuple):
    """A request with rows of which the small model is not sure."""

    names: list[str]
    small: list[Any]
    feeds: Mapping[str, Any]
    rows: np.ndarray
    least: float
    left_s: float | None
    began_s: float


def _n_rows(feeds: Mapping[str, np.ndarray], outputs: Sequence[np.ndarray]) -> int | None:
    """Rows that inputs and outputs have in common in front; None where they have none."""
    sizes = {np.shape(array)[:1] for array in (*feeds.values(), *outputs)}
    return sizes.pop()[0] if len(sizes) == 1 and () not in sizes else None


def _with_rows(array: np.ndarray, places: np.ndarray, rows: np.ndarray) -> np.ndarray:
    if rows.dtype != array.dtype or rows.shape != (len(places), *array.shape[1:]):
        raise ValueError(f"{rows.dtype} {rows.shape} for {array.dtype} {array.shape}")
    joined = array.copy()
    joined[places] = rows
    return joined
