"""Rows of several requests in one message: unsure ones wait a moment for company, never beyond what they can spare.

Design: requests that escalate at the same time share the cost of a message and of a run of the large model. One thread
sends; who asks waits for its own rows. A group goes when it holds enough rows or bytes, or when its first request has
waited as long as was allowed; a request in a hurry makes its group go earlier. Rows of other shapes, or asked for other
outputs, make a group of their own.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition, Thread
from time import monotonic
from typing import Any, NamedTuple

import numpy as np

from hybrid.errors import DeadlinePassed, HybridError, Overloaded, ProtocolError

Feeds = Mapping[str, np.ndarray]


class Replied(NamedTuple):
    """What came back for one group of rows.

    Attributes:
        outputs: by name.
        gateway: who computed them.
        bytes_up, bytes_down: of the tensors of this caller's rows.
        network_s, queue_s, compute_s: of the message.
    """

    outputs: dict[str, np.ndarray]
    gateway: str = ""
    bytes_up: int = 0
    bytes_down: int = 0
    network_s: float = 0.0
    queue_s: float = 0.0
    compute_s: float = 0.0


Ask = Callable[[Feeds, Sequence[str], float | None], Replied]
"""Asks the large model for these outputs of these rows within so many seconds; blocks; raises HybridError."""

_Kind = tuple[Any, ...]


@dataclass(slots=True)
class _Group:
    kind: _Kind
    names: tuple[str, ...]
    goes_s: float
    items: list[tuple[Feeds, int, float | None, "Future[Replied]"]] = field(default_factory=list)

    @property
    def n_rows(self) -> int:
        return sum(n for _, n, _, _ in self.items)


class Together:
    """Joins rows of concurrent requests.

    Args:
        ask: sends one message.
        hold_s: the longest wait for company; 0 sends each at once, on the caller's own thread.
        max_rows: of one message.
        max_waiting: rows that may wait; further ones are refused.
    """

    def __init__(self, ask: Ask, *, hold_s: float = 0.002, max_rows: int = 64, max_waiting: int = 1024) -> None:
        self._ask = ask
        self._hold_s = hold_s
        self._max_rows = max_rows
        self._max_waiting = max_waiting
        self._changed = Condition()
        self._groups: list[_Group] = []
        self._thread: Thread | None = None
        self._is_closed = False
        self.n_messages = 0

    def ask(self, feeds: Feeds, names: Sequence[str], left_s: float | None, *, joins: bool = True) -> Replied:
        """The large model's outputs for these rows; blocks until they are there.

        Args:
            feeds: arrays by input name.
            names: outputs that are wanted.
            left_s: seconds until they must be there; None for no limit.
            joins: whether they are rows that may lie beside those of others.

        Raises:
            HybridError: they did not come.
        """
        if self._hold_s <= 0 or not joins:
            self.n_messages += 1
            return self._ask(feeds, names, left_s)
        future: Future[Replied] = Future()
        until_s = None if left_s is None else monotonic() + left_s
        n_rows = len(next(iter(feeds.values())))
        hold_s = self._hold_s if left_s is None else min(self._hold_s, left_s / 8)  # the rest is for the way
        with self._changed:
            if self._is_closed or sum(group.n_rows for group in self._groups) + n_rows > self._max_waiting:
                raise Overloaded(f"{self._max_waiting} rows wait for the large model; ask again", retry_after_s=0.1)
            self._put(_kind(feeds, names), tuple(names), (feeds, n_rows, until_s, future), monotonic() + hold_s)
            if self._thread is None:
                self._thread = Thread(target=self._run, name="hybrid-cascade", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        try:
            return future.result(left_s)
        except TimeoutError as exc:
            if isinstance(exc, HybridError):
                raise
            raise DeadlinePassed("the large model did not answer in time") from exc

    def close(self) -> None:
        """Sends nothing more; who waits gets an error."""
        with self._changed:
            self._is_closed = True
            groups, self._groups = self._groups, []
            self._changed.notify_all()
        for group in groups:
            for _, _, _, future in group.items:
                future.set_exception(Overloaded("the session is closed", retry_after_s=0.0))

    def forked(self) -> None:
        """In a forked child: the thread stayed with the parent."""
        self._changed = Condition()
        self._groups, self._thread = [], None

    def _put(
        self,
        kind: _Kind,
        names: tuple[str, ...],
        item: tuple[Feeds, int, float | None, "Future[Replied]"],
        goes_s: float,
    ) -> None:
        for group in self._groups:
            if group.kind == kind and group.n_rows + item[1] <= self._max_rows:
                group.items.append(item)
                group.goes_s = min(group.goes_s, goes_s)
                return
        self._groups.append(_Group(kind, names, goes_s, [item]))

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._is_closed and not (group := self._due()):
                    soonest_s = min((found.goes_s for found in self._groups), default=None)
                    self._changed.wait(None if soonest_s is None else max(0.0, soonest_s - monotonic()))
                if self._is_closed:
                    return
                assert group is not None
                self._groups.remove(group)
            # Each group goes on a thread of its own: an answer that hangs must not hold the next ones.
            Thread(target=self._send, args=(group,), name="hybrid-cascade-send", daemon=True).start()

    def _due(self) -> _Group | None:
        now_s = monotonic()
        return next((group for group in self._groups if group.goes_s <= now_s or group.n_rows >= self._max_rows), None)

    def _send(self, group: _Group) -> None:
        dues_s = [until_s for _, _, until_s, _ in group.items if until_s is not None]
        left_s = None if len(dues_s) < len(group.items) else max(dues_s) - monotonic()
        self.n_messages += 1
        n_all = group.n_rows
        try:
            feeds = {name: np.concatenate([item[0][name] for item in group.items]) for name in group.items[0][0]}
            found = self._ask(feeds, group.names, left_s)
            other = next((name for name, array in found.outputs.items() if np.shape(array)[:1] != (n_all,)), None)
            if other is not None:
                raise ProtocolError(f"output {other!r} of the large model has not one row for each of {n_all}")
        except Exception as exc:  # noqa: BLE001  (whatever it is: each caller has its small answer)
            for _, _, _, future in group.items:
                future.set_exception(exc)
            return
        first = 0
        for _, n_rows, _, future in group.items:
            rows = slice(first, first + n_rows)
            first += n_rows
            future.set_result(
                found._replace(
                    outputs={name: array[rows] for name, array in found.outputs.items()},
                    bytes_up=found.bytes_up * n_rows // n_all,
                    bytes_down=found.bytes_down * n_rows // n_all,
                )
            )


def _kind(feeds: Feeds, names: Sequence[str]) -> _Kind:
    return (tuple(names), tuple((name, array.shape[1:], array.dtype.str) for name, array in sorted(feeds.items())))
