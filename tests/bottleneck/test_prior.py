"""The entropy coder of latents: exact for every latent, bounded for every payload, and short."""

import hashlib
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from compression.bottleneck import rans
from compression.bottleneck.prior import Prior
from compression.bottleneck.tables import SPAN, TOTAL, bits_of, shared, spread, table_of
from compression.codecs import entropy
from compression.errors import CorruptPayload, NotEncodable


def smooth_latent(seed: int, *shape: int, scale: float = 3.0) -> np.ndarray:
    """Neighbours resemble each other, channels differ in strength."""
    rng = np.random.default_rng(seed)
    noise = rng.laplace(size=shape)
    if len(shape) == 4:
        noise = (noise + np.roll(noise, 1, 2) + np.roll(noise, 1, 3) + np.roll(noise, (1, 1), (2, 3))) / 2
    strengths = np.linspace(0.2, 1.5, shape[1]).reshape(-1, *(1,) * (len(shape) - 2))
    return np.clip(np.round(noise * strengths * scale), -128, 127).astype(np.int8)


@pytest.fixture(scope="module")
def prior() -> Prior:
    return Prior.fitted(smooth_latent(0, 30, 6, 9, 8))


LATENTS = st.tuples(st.integers(0, 3), st.just(6), st.integers(0, 9), st.integers(0, 9)).flatmap(
    lambda shape: hnp.arrays(np.int8, shape, elements=st.one_of(st.integers(-128, 127), st.integers(-2, 2)))
)


@settings(max_examples=150, deadline=None)
@given(latent=LATENTS)
def test_every_latent_comes_back(prior: Prior, latent: np.ndarray) -> None:
    payload = prior.encode(latent)
    assert len(payload) <= latent.size + 1
    back = prior.decode(payload, latent.shape)
    assert back.dtype == np.int8
    assert back.flags.writeable
    np.testing.assert_array_equal(back, latent)


@settings(max_examples=100, deadline=None)
@given(latent=LATENTS)
def test_the_coder_alone_gives_every_latent_back(prior: Prior, latent: np.ndarray) -> None:
    """Also where another way is shorter and would be taken."""
    if latent.size:
        payload = prior._by_rans(latent)
        np.testing.assert_array_equal(prior.decode(payload, latent.shape), latent)


@pytest.mark.parametrize(
    "shape", [(1, 6), (4, 6), (2, 6, 5), (1, 6, 1, 1), (1, 6, 1, 7), (1, 6, 7, 1), (3, 6, 40, 40), (1, 6, 90, 91)]
)
@pytest.mark.parametrize("scale", [0.0, 0.4, 3.0, 60.0])
def test_forms_and_sizes(prior: Prior, shape: tuple[int, ...], scale: float) -> None:
    latent = smooth_latent(1, *shape, scale=scale)
    payload = prior._by_rans(latent.reshape((*shape, 1, 1)[:4]))
    np.testing.assert_array_equal(prior.decode(payload, shape), latent)
    np.testing.assert_array_equal(prior.decode(prior.encode(latent), shape), latent)


@pytest.mark.parametrize("n_lanes", rans.LANES)
def test_every_number_of_lanes(n_lanes: int) -> None:
    """Whatever the number of rows, a last one that is not full, and shares from rare to nearly certain."""
    rng = np.random.default_rng(n_lanes)
    counts = np.zeros(2 * SPAN)
    counts[SPAN - 3 : SPAN + 4] = (1, 2, 30, 4000, 200, 3, 1)
    table = table_of(counts)
    frequencies = np.array(table.frequencies)
    starts = np.cumsum(frequencies) - frequencies
    shares, rests, symbols = spread([table])
    for n_symbols in (n_lanes, 3 * n_lanes + 1, 40 * n_lanes - 1):
        chosen = rng.choice(len(frequencies), n_symbols, p=frequencies / TOTAL)
        payload = rans.encode(frequencies[chosen], starts[chosen], n_lanes)
        decoder = rans.Decoder(memoryview(payload), n_symbols, n_lanes, rans.Slots(shares, rests))
        cut = n_symbols // 3
        places = np.concatenate([decoder.take(np.zeros(n, np.int64)) for n in (cut, n_symbols - cut)])
        decoder.end()
        wanted = np.append(np.arange(table.low, table.low + len(frequencies) - 1), SPAN)[chosen]
        np.testing.assert_array_equal(symbols[places], wanted)


@settings(max_examples=100, deadline=None)
@given(
    weights=st.lists(st.integers(0, 10**6), min_size=1, max_size=20),
    n_symbols=st.integers(1, 300),
    seed=st.integers(0, 2**32 - 1),
)
def test_one_lane_whatever_the_shares(weights: list[int], n_symbols: int, seed: int) -> None:
    counts = np.zeros(2 * SPAN)
    counts[SPAN : SPAN + len(weights)] = weights
    table = table_of(counts)
    frequencies = np.array(table.frequencies)
    starts = np.cumsum(frequencies) - frequencies
    chosen = np.random.default_rng(seed).integers(0, len(frequencies), n_symbols)
    payload = rans.encode(frequencies[chosen], starts[chosen], 1)
    shares, rests, _ = spread([table])
    decoder = rans.Decoder(memoryview(payload), n_symbols, 1, rans.Slots(shares, rests))
    found = decoder.take(np.zeros(n_symbols, np.int64))
    decoder.end()
    np.testing.assert_array_equal(np.searchsorted(np.cumsum(frequencies), found, side="right"), chosen)


def test_a_payload_is_about_as_long_as_its_tables_say(prior: Prior) -> None:
    """Few symbols cost a handful of bytes more; 64 lanes about two bytes each."""
    small, large = smooth_latent(2, 1, 6, 9, 8), smooth_latent(3, 1, 6, 56, 56)
    assert len(prior._by_rans(small)) <= prior.bits(small) / 8 + 6
    assert len(prior._by_rans(large)) <= prior.bits(large) / 8 + 2 * rans.lanes_for(large.size) + 4


def test_neighbours_are_worth_their_tables() -> None:
    """Against one table a channel: what lies around a value says what it probably is."""
    latent = smooth_latent(4, 20, 6, 16, 16)
    fitted = Prior.fitted(latent)
    alone = 0.0
    for channel in range(6):
        counts = np.bincount(latent[:, channel].ravel().astype(int) + 128)
        share = counts[counts > 0] / counts.sum()
        alone -= float((counts[counts > 0] * np.log2(share)).sum())
    assert fitted.bits(latent) < 0.95 * alone
    assert fitted.bits(latent) / 8 < 0.9 * len(entropy.squeeze(latent.tobytes()))


def test_the_shortest_way_is_taken(prior: Prior) -> None:
    noise = np.random.default_rng(0).integers(-128, 128, (1, 6, 9, 8)).astype(np.int8)
    repeated = np.tile(noise, (20, 1, 1, 1))
    ways = [prior.encode(latent)[0] & 31 for latent in (noise, repeated, smooth_latent(5, 1, 6, 9, 8))]
    assert ways == [0, 1, 2]


FIXED = {
    "format": "hybrid-prior",
    "version": 1,
    "precision_bits": 12,
    "predicted": [0, 1],
    "table_of": [[0] * 9 + [1] * 8, [1] * 9 + [0] * 8],
    "tables": [
        {"low": -2, "frequencies": [200, 700, 2000, 700, 400, 96]},
        {"low": -8, "frequencies": [250] * 16 + [96]},
    ],
}


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 2, 3, 3), "6202fd64fe8101af4f761983ea"),
        ((1, 2, 50, 50), "4abff95e02657bc2f66cb2b4"),
    ],
)
def test_the_payload_is_fixed(shape: tuple[int, ...], expected: str) -> None:
    """These bytes are a wire format: a change here needs another version."""
    fixed = Prior.from_json(json.dumps(FIXED))
    latent = (np.arange(np.prod(shape)) ** 2 % 13 % 7 - 3).astype(np.int8).reshape(shape)
    latent[0, 0, -1, -1] = 100
    payload = fixed._by_rans(latent)
    assert (payload.hex() if len(payload) < 32 else hashlib.sha256(payload).hexdigest()[:24]) == expected
    np.testing.assert_array_equal(fixed.decode(payload, shape), latent)


@pytest.mark.parametrize("shape", [(1, 6, 9, 8), (1, 6, 40, 40)])
def test_damaged_bytes_never_hurt(prior: Prior, shape: tuple[int, ...]) -> None:
    latent = smooth_latent(6, *shape)
    payload = prior._by_rans(latent)
    rng = np.random.default_rng(0)
    n_noticed = 0
    for _ in range(150):
        damaged = bytearray(payload)
        for _ in range(rng.integers(1, 4)):
            damaged[rng.integers(0, len(damaged))] ^= int(rng.integers(1, 256))
        n_noticed += refused(prior, bytes(damaged), shape)
    assert n_noticed > 100


@settings(max_examples=300, deadline=None)
@given(payload=st.binary(max_size=60), first=st.integers(0, 63))
def test_any_bytes_are_a_latent_or_refused(prior: Prior, payload: bytes, first: int) -> None:
    for shape in ((1, 6, 5, 5), (1, 6, 30, 30), (0, 6, 2, 2)):
        refused(prior, bytes([64 | first]) + payload, shape)


def refused(prior: Prior, payload: bytes, shape: tuple[int, ...]) -> bool:
    try:
        found = prior.decode(payload, shape)
    except CorruptPayload:
        return True
    assert found.shape == shape
    assert found.dtype == np.int8
    return False


def test_a_cut_or_lengthened_payload_is_refused(prior: Prior) -> None:
    for shape in ((1, 6, 9, 8), (1, 6, 40, 40)):
        payload = prior._by_rans(smooth_latent(7, *shape))
        for length in range(0, len(payload), max(1, len(payload) // 40)):
            with pytest.raises(CorruptPayload):
                prior.decode(payload[:length], shape)
        for extra in (b"\0", b"\0\0"):
            with pytest.raises(CorruptPayload):
                prior.decode(payload + extra, shape)


def test_what_few_bytes_may_ask_for_is_bounded(prior: Prior) -> None:
    """One lane for millions of values would take minutes; an encoder never writes it."""
    for way in range(2, 10):
        with pytest.raises(CorruptPayload):
            prior.decode(bytes([64 | way]) + bytes(40), (1, 6, 2048, 2048))
    with pytest.raises(CorruptPayload, match="more lanes"):
        prior.decode(bytes([64 | 2]) + bytes(40), (1, 6, 100, 100))


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "version 1"),
        (b"\x00abc", "version 1"),
        (b"\xc2abc", "version 1"),
        (bytes([64 | 32]) + bytes(6), "escapes are declared"),
        (bytes([64 | 33]) + bytes(6), "escapes are declared"),
        (bytes([64]) + bytes(5), "6 were expected"),
        (bytes([64 | 1]) + b"no frame", "zstd"),
        (bytes([64 | 31]) + bytes(20), "not known"),
        (bytes([64 | 2]), "bytes are left"),
        (bytes([64 | 34]) + b"\xff\xff\xff\xff\xff", "does not end"),
        (bytes([64 | 34]) + b"\x00" + bytes(9), "0 escapes"),
        (bytes([64 | 34]) + b"\x09" + bytes(20), "9 escapes"),
    ],
)
def test_what_is_wrong_is_said(prior: Prior, payload: bytes, message: str) -> None:
    with pytest.raises(CorruptPayload, match=message):
        prior.decode(payload, (1, 6))


@pytest.mark.parametrize("shape", [(6,), (1, 5), (1, 6, 1, 1, 1), (-1, 6), ()])
def test_a_shape_that_is_none_is_refused(prior: Prior, shape: tuple[int, ...]) -> None:
    with pytest.raises(CorruptPayload, match="was declared"):
        prior.decode(b"\x40", shape)


@pytest.mark.parametrize("latent", [np.zeros((1, 5), np.int8), np.zeros((1, 6), np.uint8), np.zeros(6, np.int8)])
def test_other_arrays_are_not_encoded(prior: Prior, latent: np.ndarray) -> None:
    with pytest.raises(NotEncodable, match="was expected"):
        prior.encode(latent)


def test_a_prior_wants_latents() -> None:
    with pytest.raises(NotEncodable, match="none was given"):
        Prior.fitted([])


def test_json_there_and_back(prior: Prior) -> None:
    text = prior.to_json()
    again = Prior.from_json(text.encode())
    assert again.to_json() == text
    latent = smooth_latent(8, 2, 6, 9, 8)
    assert again.encode(latent) == prior.encode(latent)
    assert again.n_channels == 6


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), "other"),
        (("version",), 2),
        (("precision_bits",), 14),
        (("tables",), []),
        (("tables",), [{"low": 0, "frequencies": [2048, 2048]}] * 257),
        (("tables", 0, "low"), 600),
        (("tables", 0, "low"), -300),
        (("tables", 0, "low"), None),
        (("tables", 0, "frequencies"), [4096]),
        (("tables", 0, "frequencies"), [0, 4096]),
        (("tables", 0, "frequencies"), [4095, 2]),
        (("tables", 0, "frequencies"), "many"),
        (("table_of",), [[0]]),
        (("table_of",), []),
        (("table_of", 0, 0), 200),
        (("table_of", 0, 0), -1),
        (("predicted",), [0]),
        (("predicted", 0), 2),
    ],
)
def test_another_json_is_refused(prior: Prior, path: tuple[str | int, ...], value: object) -> None:
    content = json.loads(prior.to_json())
    place = content
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(CorruptPayload, match="no prior of version 1"):
        Prior.from_json(json.dumps(content))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "[" * 100_000, struct.pack("<I", 2**31), b"\xff\xfe"])
def test_no_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(CorruptPayload, match="no prior of version 1"):
        Prior.from_json(text)


@settings(max_examples=60, deadline=None)
@given(counts=hnp.arrays(np.int64, (5, 2 * SPAN), elements=st.sampled_from([0] * 8 + [1, 3, 50, 10**7])))
def test_tables_are_whole(counts: np.ndarray) -> None:
    """They sum to 2**12 whatever was counted, and shared ones are at most as many as wanted."""
    tables, chosen = shared(counts, 3)
    assert 1 <= len(tables) <= 3
    assert chosen.max() < len(tables)
    for table in tables:
        assert sum(table.frequencies) == TOTAL
        assert min(table.frequencies) >= 1
        assert np.isfinite(bits_of(table)).all()
