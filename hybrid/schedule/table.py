"""A set of prospects as columns of numbers: made once, weighed for every request."""

from collections.abc import Sequence
from hashlib import blake2b
from math import nan

import msgspec
import numpy as np

from hybrid.schedule.beliefs import TableRecord
from hybrid.schedule.prospect import Constraints, Key, Prospect, refusal


class Table:
    """All ways of a route, the whole model on this device first.

    Attributes:
        prospects: the ways; the first one is local.
        id: names the table in a log: the same prospects have the same id.
        local: indices of the local ones.
        remote: indices of the others, in the order of the columns.
        column_of: the column of each of those.
        urls: the gateways of the remote ones.
        gateway_of: for each remote one, the place of its gateway in `urls`.
        device_s: column of the remote ones: head and encoding, NaN where unknown.
        encode_s, bytes_up, bytes_down, tail_s, rest_s: columns of the remote ones, NaN where unknown.
        has_own_rest: whether some rest is not that of the best local prospect.
        most_bytes_up, most_bytes_down: the largest of them.
    """

    def __init__(self, prospects: Sequence[Prospect]) -> None:
        if not prospects or prospects[0].placement != "local":
            raise ValueError("the first prospect must be the whole model on this device (placement local)")
        self.prospects = tuple(prospects)
        self.id = blake2b(msgspec.json.encode(self.prospects), digest_size=8).hexdigest()
        self.local = tuple(i for i, prospect in enumerate(prospects) if prospect.placement == "local")
        self.remote = tuple(i for i, prospect in enumerate(prospects) if prospect.placement != "local")
        self.column_of = {index: column for column, index in enumerate(self.remote)}
        far = [prospects[i] for i in self.remote]
        self.urls = tuple(dict.fromkeys(prospect.gateway for prospect in far))
        self.gateway_of = np.array([self.urls.index(prospect.gateway) for prospect in far], dtype=np.intp)
        self.device_s = _column([prospect.head_s for prospect in far])
        self.encode_s = _column([prospect.encode_s for prospect in far])
        self.device_s += self.encode_s
        self.bytes_up = _column([prospect.bytes_up for prospect in far])
        self.bytes_down = _column([prospect.bytes_down for prospect in far])
        self.tail_s = _column([prospect.tail_s for prospect in far])
        self.rest_s = _column([prospect.rest_s for prospect in far])
        self.has_own_rest = any(prospect.rest_s is not None for prospect in far)
        self.most_bytes_up = max((prospect.bytes_up for prospect in far), default=0)
        self.most_bytes_down = max((prospect.bytes_down for prospect in far), default=0)
        self._index_of = {prospect.key: i for i, prospect in enumerate(prospects)}
        self._barred: dict[tuple[float, bool, bool], tuple[np.ndarray | None, frozenset[int]]] = {}

    def index_of(self, key: Key) -> int:
        """Place of a prospect, -1 where it is not among them."""
        return self._index_of.get(key, -1)

    def barred(self, constraints: Constraints) -> tuple[np.ndarray | None, frozenset[int]]:
        """What the constraints refuse whatever the moment: NaN (else 0) for each remote one, and the local indices.

        The column is None where nothing remote is refused.
        """
        key = (constraints.max_accuracy_drop, constraints.raw_input_may_leave, constraints.lossy_allowed)
        known = self._barred.get(key)
        if known is None:
            ever = Constraints(max_accuracy_drop=key[0], raw_input_may_leave=key[1], lossy_allowed=key[2])
            column = np.array([nan if refusal(self.prospects[i], ever) else 0.0 for i in self.remote])
            here = frozenset(i for i in self.local if refusal(self.prospects[i], ever))
            known = self._barred[key] = (column if np.isnan(column).any() else None, here)
        return known

    def record(self) -> TableRecord:
        """The line of a log that decisions refer to."""
        return TableRecord(id=self.id, prospects=self.prospects)


def _column(values: Sequence[float | None]) -> np.ndarray:
    return np.array([nan if value is None else value for value in values], dtype=np.float64)
