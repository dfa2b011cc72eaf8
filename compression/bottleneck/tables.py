"""Frequency tables of an entropy coder: integers that sum to 2**12, made of counts, shared by what is alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from compression.bottleneck.rans import PRECISION_BITS

TOTAL: Final = 1 << PRECISION_BITS
SPAN: Final = 256
"""Symbols lie between -256 and 255: an int8, or what an int8 is away from the mean of others."""

_FAINT: Final = 0.05
"""What a symbol inside a table counts that was never seen."""

_MAX_SYMBOLS: Final = 255
_ROUNDS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Shares of consecutive symbols and, last, of the escape that stands for all others.

    Attributes:
        low: the first symbol.
        frequencies: of `low`, `low + 1`, …, and of the escape; each at least 1, together 2**12.
    """

    low: int
    frequencies: tuple[int, ...]


def table_of(counts: np.ndarray) -> Table:
    """A table for symbols that were seen so often; `counts` begins at -`SPAN` and has 2 * `SPAN` entries."""
    seen = np.flatnonzero(counts)
    if not seen.size:
        return Table(low=0, frequencies=(TOTAL // 2, TOTAL // 2))
    mode = int(counts.argmax())
    first = max(int(seen[0]) - 1, mode - _MAX_SYMBOLS // 2, 0)
    last = min(int(seen[-1]) + 1, first + _MAX_SYMBOLS - 1, len(counts) - 1)
    inside = counts[first : last + 1].astype(np.float64)
    outside = float(counts.sum() - inside.sum())
    return Table(low=first - SPAN, frequencies=_whole(np.append(np.maximum(inside, _FAINT), max(outside, _FAINT))))


def _whole(weights: np.ndarray) -> tuple[int, ...]:
    """Integers of at least 1 in these proportions, together 2**12; the largest take what rounding leaves."""
    shares = np.maximum(1, np.floor(weights / weights.sum() * TOTAL)).astype(np.int64)
    order = np.argsort(-shares, kind="stable")
    left = TOTAL - int(shares.sum())
    if left > 0:
        shares[order[0]] += left
    for at in order:
        if left >= 0:
            break
        taken = min(-left, int(shares[at]) - 1)
        shares[at] -= taken
        left += taken
    return tuple(int(share) for share in shares)


def bits_of(table: Table) -> np.ndarray:
    """Bits of each symbol from -`SPAN` to `SPAN` - 1 under a table; an escape takes the byte of its value as well."""
    frequencies = np.array(table.frequencies, np.float64)
    bits = np.full(2 * SPAN, PRECISION_BITS - np.log2(frequencies[-1]) + 8)
    first = table.low + SPAN
    bits[first : first + len(frequencies) - 1] = PRECISION_BITS - np.log2(frequencies[:-1])
    return bits


def shared(counts: np.ndarray, n_tables: int) -> tuple[list[Table], np.ndarray]:
    """At most so many tables for many counts, and which of them each takes: k-means under the cost in bits.

    Args:
        counts: one row for each thing counted, each as `table_of` takes them.
        n_tables: at least 1.
    """
    totals = counts.sum(axis=1)
    own = [table_of(row) for row in counts]
    cost = np.array([bits_of(table) @ row for table, row in zip(own, counts, strict=True)])
    order = np.lexsort((cost / np.maximum(totals, 1), totals == 0))
    chosen = np.zeros(len(counts), np.int64)
    for place, members in enumerate(np.array_split(order, min(n_tables, len(counts)))):
        chosen[members] = place
    tables: list[Table] = []
    for _ in range(_ROUNDS):
        tables = [table_of(counts[chosen == place].sum(axis=0)) for place in np.unique(chosen)]
        prices = counts @ np.stack([bits_of(table) for table in tables], axis=1)
        nearest = prices.argmin(axis=1)
        if (nearest == chosen).all():
            break
        chosen = nearest
    used, chosen = np.unique(chosen, return_inverse=True)
    return [tables[place] for place in used], chosen


def spread(tables: Sequence[Table]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of 2**12 places of each table: its symbol's frequency, its place in that share, and the symbol itself.

    The escape's symbol is `SPAN`.
    """
    shares, rests, symbols = [], [], []
    for table in tables:
        frequencies = np.array(table.frequencies, np.int64)
        starts = np.cumsum(frequencies) - frequencies
        shares.append(np.repeat(frequencies, frequencies))
        rests.append(np.arange(TOTAL) - np.repeat(starts, frequencies))
        values = np.append(np.arange(table.low, table.low + len(frequencies) - 1), SPAN)
        symbols.append(np.repeat(values, frequencies).astype(np.int16))
    return np.concatenate(shares), np.concatenate(rests), np.concatenate(symbols)
