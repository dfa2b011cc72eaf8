"""What a latent's values probably are, as static integer tables, and the entropy coder that they make.

The payload: one byte with the format's version (2 bits, now 1), whether escapes follow, and the way (5 bits):
the values as they are, zstd, or rANS in 1, 32, 64, … 2048 lanes. The encoder takes the shortest. docs/bottleneck.md
has the bytes one by one. Decoding takes time and memory of the declared shape alone, whatever the bytes are.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, Final

import numpy as np

from compression.bottleneck import lattice, rans
from compression.bottleneck.tables import SPAN, TOTAL, Table, bits_of, shared, spread
from compression.codecs import entropy
from compression.codecs.codec import Payload
from compression.errors import CorruptPayload, NotEncodable

FORMAT: Final = "hybrid-prior"
VERSION: Final = 1
MAX_CHANNELS: Final = 4096
MAX_TABLES: Final = 256

_WAY_RAW, _WAY_ZSTD, _WAY_ONE_LANE, _WAY_LANES = 0, 1, 2, 3
_ESCAPES: Final = 1 << 5
_WAYS: Final = _ESCAPES - 1
_MAX_NUMBER_BYTES: Final = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Prior:
    """Tables for the latents of one encoder; safe to use from any thread.

    Attributes:
        tables: shares of symbols.
        table_of: which table each channel takes in each context: uint8, (channels, `lattice.N_CONTEXTS`).
        predicted: which channels are coded as distances from the mean of their neighbours: bool, (channels,).
    """

    tables: tuple[Table, ...]
    table_of: np.ndarray = field(repr=False)
    predicted: np.ndarray = field(repr=False)

    @property
    def n_channels(self) -> int:
        """Channels of the latents."""
        return len(self.table_of)

    @classmethod
    def fitted(cls, latents: Sequence[np.ndarray] | np.ndarray, *, n_tables: int = 48) -> "Prior":
        """The tables that code these latents shortest; each, or the one array, int8, (n, c[, h[, w]]).

        Raises:
            NotEncodable: no latent, or one of another dtype or shape.
        """
        each = [latents] if isinstance(latents, np.ndarray) else latents
        counted = [_counts(_four(latent, None)) for latent in each]
        if not counted:
            raise NotEncodable("a prior is fitted to latents, none was given")
        plain, distant = (np.sum([pair[which] for pair in counted], axis=0) for which in (0, 1))
        n_channels = len(plain)
        predicted = _cost(distant) < _cost(plain)
        counts = np.where(predicted[:, None, None], distant, plain)
        tables, chosen = shared(counts.reshape(-1, 2 * SPAN), min(n_tables, MAX_TABLES))
        return cls(tables=tuple(tables), table_of=chosen.reshape(n_channels, -1).astype(np.uint8), predicted=predicted)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Prior":
        """The prior that `to_json` wrote.

        Raises:
            CorruptPayload: no such JSON, another version, or tables that do not fit together.
        """
        try:
            return cls(**_read(json.loads(text)))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise CorruptPayload(f"no prior of version {VERSION} ({type(error).__name__}: {error})") from error

    def to_json(self) -> str:
        """The same tables as text; equal priors give equal text."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "precision_bits": rans.PRECISION_BITS,
            "predicted": [int(one) for one in self.predicted],
            "table_of": self.table_of.tolist(),
            "tables": [{"low": table.low, "frequencies": list(table.frequencies)} for table in self.tables],
        }
        return json.dumps(content, separators=(",", ":")) + "\n"

    def bits(self, latent: np.ndarray) -> float:
        """What the tables say that this latent takes, without what the payload adds."""
        latent = _four(latent, self.n_channels)
        return float(
            sum(
                self._bits[tables, np.clip(symbols, -SPAN, SPAN - 1) + SPAN].sum()
                for tables, symbols in _coded(latent, self)
            )
        )

    def encode(self, latent: np.ndarray) -> bytes:
        """The shortest payload of an int8 array (n, c), (n, c, l) or (n, c, h, w).

        Raises:
            NotEncodable: another dtype, rank or number of channels.
        """
        latent = _four(latent, self.n_channels)
        plain = latent.tobytes()
        found = [_headed(_WAY_RAW, plain), _headed(_WAY_ZSTD, entropy.squeeze(plain))]
        if 0 < latent.size <= rans.MAX_SYMBOLS:
            found.append(self._by_rans(latent))
        return min(found, key=len)

    def decode(self, payload: Payload, shape: Sequence[int]) -> np.ndarray:
        """The latent of this shape, writable.

        Raises:
            CorruptPayload: bytes that are not exactly one such latent, or a shape that is none.
        """
        shape = tuple(int(size) for size in shape)
        if not 2 <= len(shape) <= 4 or min(shape) < 0 or shape[1] != self.n_channels:
            raise CorruptPayload(f"shape {shape} was declared, (n, {self.n_channels}[, h[, w]]) was expected")
        view = memoryview(payload).cast("B")
        if not view or view[0] >> 6 != VERSION:
            raise CorruptPayload(f"a latent's payload begins with a byte of version {VERSION}")
        way, has_escapes, body = view[0] & _WAYS, bool(view[0] & _ESCAPES), view[1:]
        if has_escapes and way < _WAY_ONE_LANE:
            raise CorruptPayload("escapes are declared where values lie as they are")
        n_bytes = prod(shape)
        if way == _WAY_RAW:
            if len(body) != n_bytes:
                raise CorruptPayload(f"{len(body)} values lie here, {n_bytes} were expected")
            return np.frombuffer(body, np.int8).reshape(shape).copy()
        if way == _WAY_ZSTD:
            return np.frombuffer(entropy.expand(body, n_bytes), np.int8).reshape(shape).copy()
        return self._from_rans(body, way, shape, has_escapes=has_escapes)

    def _by_rans(self, latent: np.ndarray) -> bytes:
        coded = list(_coded(latent, self))
        tables = np.concatenate([one.ravel() for one, _ in coded])
        symbols = np.concatenate([one.ravel() for _, one in coded])
        lows, sizes = self._extents[0][tables], self._extents[1][tables]
        places = symbols - lows
        outside = (places < 0) | (places >= sizes)
        places[outside] = sizes[outside]
        at = self._extents[2][tables] + places
        n_lanes = rans.lanes_for(len(symbols))
        way = _WAY_ONE_LANE if n_lanes == 1 else _WAY_LANES + rans.LANES.index(n_lanes)
        body = rans.encode(self._shares[0][at], self._shares[1][at], n_lanes)
        if not outside.any():
            return _headed(way, body)
        values = np.concatenate([part.of(latent).ravel() for part in lattice.parts(latent)])
        escaped = values[outside].astype(np.int8).tobytes()
        return _headed(way | _ESCAPES, _number_out(len(escaped)) + escaped + body)

    def _from_rans(self, body: memoryview, way: int, shape: tuple[int, ...], *, has_escapes: bool) -> np.ndarray:
        n_symbols = prod(shape)
        if not n_symbols or way - _WAY_LANES >= len(rans.LANES):
            raise CorruptPayload(f"way {way} of coding {n_symbols} values is not known")
        escaped = memoryview(b"")
        if has_escapes:
            n_escaped, body = _number_in(body)
            if not 0 < n_escaped <= min(len(body), n_symbols):
                raise CorruptPayload(f"{n_escaped} escapes are declared before {len(body)} bytes")
            escaped, body = body[:n_escaped], body[n_escaped:]
        n_lanes = 1 if way == _WAY_ONE_LANE else rans.LANES[way - _WAY_LANES]
        decoder = rans.Decoder(body, n_symbols, n_lanes, self._slots)
        latent = np.zeros((*shape, 1, 1)[:4], np.int16)
        n_read = 0
        for part in lattice.parts(latent):
            near = lattice.neighbourhood(latent, part, self.predicted)
            tables = self.table_of[np.arange(self.n_channels)[None, :, None, None], near.context]
            symbols = self._symbols[decoder.take(tables.ravel())].reshape(tables.shape)
            values = symbols + np.where(self.predicted[None, :, None, None], near.mean, 0)
            at = symbols == SPAN
            n_here = int(np.count_nonzero(at))
            if n_here:
                values[at] = _part(escaped, n_read, n_here)
                n_read += n_here
            if values.min() < -128 or values.max() > 127:
                raise CorruptPayload("a value beyond int8 was decoded: damaged bytes, or another prior's")
            part.of(latent)[...] = values
        decoder.end()
        if n_read != len(escaped):
            raise CorruptPayload(f"{n_read} of {len(escaped)} escapes were used")
        return latent.astype(np.int8).reshape(shape)

    @cached_property
    def _slots(self) -> rans.Slots:
        shares, rests, _ = self._spread
        return rans.Slots(shares, rests)

    @cached_property
    def _symbols(self) -> np.ndarray:
        return self._spread[2]

    @cached_property
    def _spread(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return spread(self.tables)

    @cached_property
    def _extents(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each table: its first symbol, how many it has, and where its shares begin."""
        sizes = np.array([len(table.frequencies) for table in self.tables])
        lows = np.array([table.low for table in self.tables])
        return lows, sizes - 1, np.cumsum(sizes) - sizes

    @cached_property
    def _shares(self) -> tuple[np.ndarray, np.ndarray]:
        """Frequencies of all tables one after another, and where in 2**12 each of them starts."""
        frequencies = [np.array(table.frequencies, np.int64) for table in self.tables]
        return np.concatenate(frequencies), np.concatenate([np.cumsum(one) - one for one in frequencies])

    @cached_property
    def _bits(self) -> np.ndarray:
        return np.stack([bits_of(table) for table in self.tables])


def _headed(way: int, body: bytes) -> bytes:
    return bytes([VERSION << 6 | way]) + body


def _number_out(number: int) -> bytes:
    """Seven bits a byte, the lowest first; all bytes but the last have their highest bit set."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _number_in(body: memoryview) -> tuple[int, memoryview]:
    number = 0
    for at, one in enumerate(body[:_MAX_NUMBER_BYTES]):
        number |= (one & 127) << 7 * at
        if one < 128:
            return number, body[at + 1 :]
    raise CorruptPayload("the number of escapes does not end")


def _part(escaped: memoryview, at: int, n: int) -> np.ndarray:
    if at + n > len(escaped):
        raise CorruptPayload(f"the {len(escaped)} escapes run out")
    return np.frombuffer(escaped[at : at + n], np.int8)


def _four(latent: np.ndarray, n_channels: int | None) -> np.ndarray:
    """The latent as int16 (n, c, h, w)."""
    if latent.dtype != np.int8 or not 2 <= latent.ndim <= 4 or n_channels not in (None, latent.shape[1]):
        wanted = "c" if n_channels is None else n_channels
        raise NotEncodable(f"{latent.dtype} {latent.shape} was given, int8 (n, {wanted}[, h[, w]]) was expected")
    return latent.reshape((*latent.shape, 1, 1)[:4])


def _coded(latent: np.ndarray, prior: Prior) -> "list[tuple[np.ndarray, np.ndarray]]":
    """For each part of a latent: the table of each symbol, and the symbols."""
    latent = latent.astype(np.int16)
    channels = np.arange(latent.shape[1])[None, :, None, None]
    predicted = prior.predicted[None, :, None, None]
    found = []
    for part in lattice.parts(latent):
        near = lattice.neighbourhood(latent, part, prior.predicted)
        symbols = part.of(latent) - np.where(predicted, near.mean, 0).astype(np.int16)
        found.append((prior.table_of[channels, near.context].astype(np.int64), symbols.astype(np.int64)))
    return found


def _counts(latent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How often each symbol occurs in each channel and context: of channels that are not predicted, and that are."""
    latent = latent.astype(np.int16)
    n_channels = latent.shape[1]
    channels = np.arange(n_channels)[None, :, None, None]
    found = []
    for predicted in (False, True):
        counts = np.zeros(n_channels * lattice.N_CONTEXTS * 2 * SPAN, np.int64)
        for part in lattice.parts(latent):
            near = lattice.neighbourhood(latent, part, np.full(n_channels, predicted))
            symbols = part.of(latent) - (near.mean if predicted else 0)
            places = (channels * lattice.N_CONTEXTS + near.context) * 2 * SPAN + SPAN + symbols
            counts += np.bincount(places.ravel(), minlength=len(counts))
        found.append(counts.reshape(n_channels, lattice.N_CONTEXTS, 2 * SPAN))
    return found[0], found[1]


def _cost(counts: np.ndarray) -> np.ndarray:
    """Bits of each channel, had each of its contexts a table of its own."""
    totals = counts.sum(axis=2, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    bits: np.ndarray = -(counts * np.log2(np.where(shares > 0, shares, 1))).sum(axis=(1, 2))
    return bits


def _read(content: Any) -> dict[str, Any]:
    """The fields of a prior, each checked: what comes from a file may be anything."""
    if (content["format"], content["version"], content["precision_bits"]) != (FORMAT, VERSION, rans.PRECISION_BITS):
        raise ValueError(f"format, version or precision are not {FORMAT}, {VERSION}, {rans.PRECISION_BITS}")
    tables = tuple(_table(one) for one in content["tables"])
    table_of = np.array(content["table_of"], np.int64)
    predicted = np.array(content["predicted"], np.int64)
    if not 1 <= len(tables) <= MAX_TABLES:
        raise ValueError(f"{len(tables)} tables, 1 to {MAX_TABLES} were expected")
    if table_of.ndim != 2 or table_of.shape[1] != lattice.N_CONTEXTS or not 1 <= len(table_of) <= MAX_CHANNELS:
        raise ValueError(f"table_of has the shape {table_of.shape}, (channels, {lattice.N_CONTEXTS}) was expected")
    if table_of.min() < 0 or table_of.max() >= len(tables):
        raise ValueError("table_of names a table that is not there")
    if predicted.shape != (len(table_of),) or not np.isin(predicted, (0, 1)).all():
        raise ValueError("predicted is not one 0 or 1 a channel")
    return {"tables": tables, "table_of": table_of.astype(np.uint8), "predicted": predicted.astype(bool)}


def _table(content: Any) -> Table:
    low, frequencies = int(content["low"]), tuple(int(one) for one in content["frequencies"])
    if len(frequencies) < 2 or min(frequencies) < 1 or sum(frequencies) != TOTAL:
        raise ValueError(f"frequencies of a table are at least 1 each, {TOTAL} together, the last of the escape")
    if not -SPAN <= low <= low + len(frequencies) - 2 < SPAN:
        raise ValueError(f"a table's symbols lie between {-SPAN} and {SPAN - 1}")
    return Table(low=low, frequencies=frequencies)
