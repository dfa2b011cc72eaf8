"""Interleaved rANS in numpy: symbols under static integer tables to bytes and exactly those symbols back.

Design: symbol `i` belongs to lane `i % n_lanes` and row `i // n_lanes`; a row is one handful of numpy calls, so many
lanes make few calls. Lanes cost bytes twice, and both are kept small. Where a lane ends for the decoder, the last
`n_quiet` rows are coded without moving words, so that a lane may begin at a small power of two instead of 2**16; where
it begins, only the bits that its state has are written. One lane is coded by plain Python, which is faster below some
thousand symbols. Whatever the bytes are, a decoder takes time and memory of the declared symbols alone.

Source: Duda, "Asymmetric numeral systems" (2013); Giesen, "Interleaved entropy coders" (2014), for lanes in one stream.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from compression.errors import CorruptPayload

PRECISION_BITS: Final = 12
"""Frequencies of a table sum to 2**12."""

MAX_ROWS: Final = 2048
LANES: Final = (32, 64, 128, 256, 512, 1024, 2048)
MAX_SYMBOLS_OF_ONE_LANE: Final = 4096
MAX_SYMBOLS: Final = MAX_ROWS * LANES[-1]

_TOTAL: Final = 1 << PRECISION_BITS
_WORD_BITS: Final = 16
_LEAST: Final = 1 << _WORD_BITS
_WORD: Final = _LEAST - 1
_ROOM_BITS: Final = 2 * _WORD_BITS - PRECISION_BITS
_TOO_MUCH: Final = 1 << 40
_STARTS: Final = _WORD_BITS + 1
"""Powers of two that a lane may begin at: 2**0 to 2**16."""


def lanes_for(n_symbols: int) -> int:
    """How many lanes: one for few symbols, else about 300 rows; each lane costs about a byte."""
    if n_symbols <= MAX_SYMBOLS_OF_ONE_LANE:
        return 1
    return next((lanes for lanes in LANES if n_symbols <= 300 * lanes), LANES[-1])


def encode(frequencies: np.ndarray, starts: np.ndarray, n_lanes: int) -> bytes:
    """Bytes of a sequence of symbols, each given by its share of 2**12 and where that share starts.

    Args:
        frequencies: int64, 1 to 2**12, one a symbol.
        starts: int64, one a symbol.
        n_lanes: 1 or one of `LANES`; rows are at most `MAX_ROWS`.
    """
    if n_lanes == 1:
        return _encode_one(frequencies.tolist(), starts.tolist())
    n_rows = -(-len(frequencies) // n_lanes)
    rows = [slice(row * n_lanes, min((row + 1) * n_lanes, len(frequencies))) for row in range(n_rows)]
    states, n_quiet = _quiet(frequencies, starts, rows, n_lanes)
    limits = frequencies << _ROOM_BITS
    chunks: list[np.ndarray] = []
    for row in reversed(rows[: n_rows - n_quiet]):
        width = row.stop - row.start
        x = states[:width]
        over = x >= limits[row]
        moved = x[over]
        if moved.size:
            chunks.append(moved & _WORD)
            x[over] = moved >> _WORD_BITS
        whole, rest = np.divmod(x, frequencies[row])
        states[:width] = (whole << PRECISION_BITS) + rest + starts[row]
    words = np.concatenate(chunks[::-1]) if chunks else np.zeros(0, np.int64)
    return n_quiet.to_bytes(2, "little") + _states_out(states) + words.astype("<u2").tobytes()


def _quiet(frequencies: np.ndarray, starts: np.ndarray, rows: Sequence[slice], n_lanes: int) -> tuple[np.ndarray, int]:
    """The lanes' states after as many last rows as need no words, each lane begun as low as its state allows."""
    states = np.repeat(1 << np.arange(_STARTS, dtype=np.int64)[:, None], n_lanes, axis=1)
    n_quiet = 0
    for row in reversed(rows):
        width = row.stop - row.start
        whole, rest = np.divmod(states[:, :width], frequencies[row])
        tried = np.minimum((whole << PRECISION_BITS) + rest + starts[row], _TOO_MUCH)
        if not ((tried >= _LEAST) & (tried < _LEAST << _WORD_BITS)).any(axis=0).all():
            break
        states[:, :width] = tried
        n_quiet += 1
    lowest = (states >= _LEAST).argmax(axis=0)
    return states[lowest, np.arange(n_lanes)], n_quiet


def _encode_one(frequencies: list[int], starts: list[int]) -> bytes:
    words: list[int] = []
    for start in range(_STARTS):
        x = 1 << start
        words.clear()
        for share, first in zip(reversed(frequencies), reversed(starts), strict=True):
            if x >= share << _ROOM_BITS:
                words.append(x & _WORD)
                x >>= _WORD_BITS
            x += x // share * (_TOTAL - share) + first
        if x >= _LEAST:
            break
    return _states_out(np.array([x])) + np.array(words[::-1], "<u2").tobytes()


def _states_out(states: np.ndarray) -> bytes:
    """Four bits a lane for the length of its state, the bits between its first and its last 16, then these."""
    high = states >> _WORD_BITS
    lengths = np.frexp(high.astype(np.float64))[1] - 1
    places = np.arange(_WORD_BITS)
    nibbles = (lengths[:, None] >> np.arange(4)) & 1
    bits = (high[:, None] >> places) & 1
    stream = np.concatenate([nibbles.ravel(), bits[places < lengths[:, None]]]).astype(np.uint8)
    return np.packbits(stream, bitorder="little").tobytes() + (states & _WORD).astype("<u2").tobytes()


class Slots(NamedTuple):
    """Tables spread out for decoding: 2**12 places for each table, one after another; int64.

    Attributes:
        shares: the frequency of the place's symbol.
        rests: the place less where that share starts.
    """

    shares: np.ndarray
    rests: np.ndarray


class Decoder:
    """Gives back a sequence of symbols part by part, since tables of later ones may depend on earlier ones."""

    def __init__(self, payload: memoryview, n_symbols: int, n_lanes: int, slots: Slots) -> None:
        """Reads the lanes' states.

        Raises:
            CorruptPayload: fewer bytes than the states take, half a word, or more rows than lanes may have.
        """
        n_rows = -(-n_symbols // n_lanes)
        if n_symbols > MAX_SYMBOLS_OF_ONE_LANE if n_lanes == 1 else n_rows > MAX_ROWS:
            raise CorruptPayload(f"{n_symbols} symbols in {n_lanes} lanes: an encoder takes more lanes")
        self._n_lanes, self._n_symbols, self._slots = n_lanes, n_symbols, slots
        self._at = 0
        self._loud = n_symbols
        if n_lanes > 1:
            n_quiet = int.from_bytes(_part(payload, 2), "little")
            payload = payload[2:]
            self._loud = max(0, n_rows - n_quiet) * n_lanes
        self._states, payload = _states_in(payload, n_lanes)
        if len(payload) % 2:
            raise CorruptPayload(f"{len(payload)} bytes of words: half a word too much")
        self._words = np.frombuffer(payload, "<u2").astype(np.int64)
        self._n_read = 0

    def take(self, tables: np.ndarray) -> np.ndarray:
        """The next symbols, as places in `Slots`; `tables` says under which table each of them was coded.

        Raises:
            CorruptPayload: the words run out.
        """
        found = self._take_one(tables) if self._n_lanes == 1 else self._take_rows(tables)
        self._at += len(tables)
        return found

    def end(self) -> None:
        """Checks that all is read, once all symbols are taken.

        Raises:
            CorruptPayload: words are left over, or the lanes do not end where an encoder begins them.
        """
        assert self._at == self._n_symbols
        if self._n_read < len(self._words):
            raise CorruptPayload(f"{len(self._words) - self._n_read} of {len(self._words)} words were left over")
        if (self._states > _LEAST).any() or (self._states < 1).any() or (self._states & (self._states - 1)).any():
            raise CorruptPayload("the coder's lanes do not end where an encoder begins them: damaged bytes")

    def _take_rows(self, tables: np.ndarray) -> np.ndarray:
        shares, rests = self._slots.shares, self._slots.rests
        found = tables.astype(np.int64) << PRECISION_BITS
        done, words, n_read = 0, self._words, self._n_read
        while done < len(found):
            at = self._at + done
            lane = at % self._n_lanes
            width = min(self._n_lanes - lane, len(found) - done)
            x = self._states[lane : lane + width]
            places = found[done : done + width]
            places += x & (_TOTAL - 1)
            x >>= PRECISION_BITS
            x *= shares[places]
            x += rests[places]
            if at < self._loud:
                low = x < _LEAST
                fed = x[low]
                if fed.size:
                    new = words[n_read : n_read + fed.size]
                    n_read += fed.size
                    if new.size < fed.size:
                        raise CorruptPayload(f"the coder's {len(words)} words run out before its symbols")
                    x[low] = (fed << _WORD_BITS) | new
            done += width
        self._n_read = n_read
        return found

    def _take_one(self, tables: np.ndarray) -> np.ndarray:
        """One lane: where no word is left, none was moved."""
        shares, rests = memoryview(self._slots.shares), memoryview(self._slots.rests)
        words, n_read, x = self._words.tolist(), self._n_read, int(self._states[0])
        n_words = len(words)
        found = []
        for table in tables.tolist():
            place = (table << PRECISION_BITS) + (x & (_TOTAL - 1))
            x = shares[place] * (x >> PRECISION_BITS) + rests[place]
            if x < _LEAST and n_read < n_words:
                x = (x << _WORD_BITS) | words[n_read]
                n_read += 1
            found.append(place)
        self._n_read, self._states[0] = n_read, x
        return np.array(found, np.int64)


def _part(payload: memoryview, n_bytes: int) -> memoryview:
    if len(payload) < n_bytes:
        raise CorruptPayload(f"{len(payload)} bytes are left where the coder's lanes take {n_bytes}")
    return payload[:n_bytes]


def _states_in(payload: memoryview, n_lanes: int) -> tuple[np.ndarray, memoryview]:
    """The states that `_states_out` wrote, and what follows them."""
    n_nibble_bytes = -(-n_lanes // 2)
    nibbles = np.frombuffer(_part(payload, n_nibble_bytes), np.uint8)
    lengths = np.stack([nibbles & 15, nibbles >> 4], axis=1).ravel()[:n_lanes].astype(np.int64)
    n_bits = 4 * n_lanes + int(lengths.sum())
    head = _part(payload, -(-n_bits // 8) + 2 * n_lanes)
    low = np.frombuffer(head[-2 * n_lanes :], "<u2").astype(np.int64)
    stream = np.unpackbits(np.frombuffer(head[: -2 * n_lanes], np.uint8), bitorder="little")
    if stream[n_bits:].any():
        raise CorruptPayload("bits are set behind those of the coder's lanes")
    bits = np.zeros((n_lanes, _WORD_BITS), np.int64)
    bits[np.arange(_WORD_BITS) < lengths[:, None]] = stream[4 * n_lanes : n_bits]
    high = (1 << lengths) + (bits << np.arange(_WORD_BITS)).sum(axis=1)
    return (high << _WORD_BITS) | low, payload[len(head) :]
