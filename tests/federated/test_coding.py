"""Forms of a vector: what they say, what they leave out, and how few bytes they take."""

import numpy as np
import pytest

from hybrid.errors import BadMessage, DigestMismatch, TensorMismatch
from hybrid.federated.coding.catalog import form as form_of
from hybrid.federated.coding.form import Form
from hybrid.federated.coding.gaps import decode_gaps, encode_gaps
from hybrid.federated.coding.versions import follow, link, links_pay, view_digest
from hybrid.federated.layout import Layout

MLP = Layout(names=("w", "b", "v", "c"), shapes=((64, 64), (64,), (64, 10), (10,)))
ODD = Layout(names=("scalar", "row", "wide"), shapes=((), (7,), (3, 5000)))
NAMES = ("float32", "int8", "int4", "top-k 0.01", "top-k 0.3", "top-k 1")
LOSSY = NAMES[1:]


def form(text: str) -> Form:
    """By its name, and for `top-k` its share."""
    name, _, share = text.partition(" ")
    return form_of(name, float(share or 0.01))


def heavy_tailed(layout: Layout, seed: int = 0) -> np.ndarray:
    """Most elements small, few large, and every tensor of its own size: as updates are."""
    rng = np.random.default_rng(seed)
    vector = rng.standard_t(3, layout.n_elements).astype(np.float32)
    for number, (_, _, place) in enumerate(layout.places()):
        vector[place] *= np.float32(10.0 ** -(number % 4))
    return vector


@pytest.mark.parametrize("layout", [MLP, ODD], ids=["mlp", "odd"])
@pytest.mark.parametrize("name", NAMES)
def test_bytes_and_residual_together_are_the_vector(name, layout):
    wanted, residual = heavy_tailed(layout), heavy_tailed(layout, 1) / np.float32(10)
    content, left = form(name).encode(wanted, layout, np.random.default_rng(2), residual)
    said = form(name).decode(content, layout)
    assert said.dtype == left.dtype == np.float32
    assert said.flags.writeable
    np.testing.assert_allclose(said + left, wanted + residual, rtol=0, atol=1e-6 * np.abs(wanted).max())
    assert len(content) <= form(name).max_bytes(layout)
    assert form(name).decode(memoryview(content), layout).tobytes() == said.tobytes()


@pytest.mark.parametrize(("name", "top"), [("int8", 127), ("int4", 7)])
def test_an_element_is_off_by_less_than_its_own_blocks_step(name, top):
    wanted = heavy_tailed(MLP)
    said = form(name).decode(form(name).encode(wanted, MLP, np.random.default_rng(3)).content, MLP)
    for _, _, place in MLP.places():
        step = np.abs(wanted[place]).max() / top
        assert 0 < np.abs(said[place] - wanted[place]).max() <= 1.001 * step


def test_a_large_element_costs_only_its_own_block_precision():
    wanted = np.full(ODD.n_elements, 0.01, np.float32)
    wanted[20] = 1000.0
    said = form("int8").decode(form("int8").encode(wanted, ODD, np.random.default_rng(0)).content, ODD)
    assert abs(said[20] - 1000.0) < 10
    np.testing.assert_allclose(said[8 + 4096 :], 0.01, atol=1e-4)
    assert np.abs(said[8 : 8 + 4096] - wanted[8 : 8 + 4096]).max() > 1e-3


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_rounding_is_right_in_the_mean(name):
    wanted = np.array([1.0, *np.linspace(-0.9, 0.9, 9)], np.float32) * np.float32(0.001)
    layout = Layout(names=("w",), shapes=((10,),))
    rng = np.random.default_rng(4)
    said = [form(name).decode(form(name).encode(wanted, layout, rng).content, layout) for _ in range(2000)]
    step = 0.001 / (127 if name == "int8" else 7)
    np.testing.assert_allclose(np.mean(said, axis=0), wanted, atol=5 * step * 0.5 / np.sqrt(2000))


@pytest.mark.parametrize("name", LOSSY)
def test_what_is_left_out_comes_later(name):
    """The same small update over and over: with the residual its sum arrives, also where a single one says nothing."""
    wanted = heavy_tailed(MLP) * np.float32(0.01)
    rng = np.random.default_rng(5)
    arrived, residual = np.zeros(MLP.n_elements, np.float64), None
    for _ in range(400):
        content, residual = form(name).encode(wanted, MLP, rng, residual)
        arrived += form(name).decode(content, MLP)
    np.testing.assert_allclose(arrived + residual, 400.0 * wanted, atol=2e-4)
    assert np.linalg.norm(arrived - 400.0 * wanted) < 0.3 * np.linalg.norm(400.0 * wanted)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_writes_the_same_bytes(name):
    first, again = (form(name).encode(heavy_tailed(MLP), MLP, np.random.default_rng(6)).content for _ in range(2))
    assert first == again


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, 1e-44, -3e38])
def test_extreme_vectors_come_through(name, value):
    wanted = np.full(MLP.n_elements, value, np.float32)
    content, left = form(name).encode(wanted, MLP, np.random.default_rng(0))
    said = form(name).decode(content, MLP)
    assert np.isfinite(said).all()
    assert np.isfinite(left).all()
    np.testing.assert_allclose(said.astype(np.float64) + left, wanted, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_never_sent(name, value):
    wanted = np.zeros(MLP.n_elements, np.float32)
    wanted[7] = value
    with pytest.raises(TensorMismatch, match="element 7"):
        form(name).encode(wanted, MLP, np.random.default_rng(0))
    huge = np.full(MLP.n_elements, 3e38, np.float32)
    with pytest.raises(TensorMismatch, match="element 0"):
        form(name).encode(huge, MLP, np.random.default_rng(0), huge)


@pytest.mark.parametrize("name", NAMES)
def test_a_vector_of_another_layout_is_refused(name):
    short, wide = np.zeros(3, np.float32), np.zeros(MLP.n_elements, np.float64)
    for wrong in (short, wide):
        with pytest.raises(TensorMismatch, match="the layout says"):
            form(name).encode(wrong, MLP, np.random.default_rng(0))
    with pytest.raises(TensorMismatch, match="residual"):
        form(name).encode(np.zeros(MLP.n_elements, np.float32), MLP, np.random.default_rng(0), short)


def test_sizes():
    """Of a vector without any structure: the zstd stage gains nothing here."""
    noise = np.random.default_rng(7).uniform(-1, 1, MLP.n_elements).astype(np.float32)
    n_bytes = {name: len(form(name).encode(noise, MLP, np.random.default_rng(0)).content) for name in NAMES}
    assert n_bytes["float32"] == 4 * 4810
    assert n_bytes["int8"] <= 4810 + 40
    assert n_bytes["int4"] <= 4810 / 2 + 100
    assert n_bytes["top-k 0.01"] <= 110
    assert n_bytes["top-k 1"] <= 4810 + 4810 / 8 + 10
    skewed = len(form("int8").encode(heavy_tailed(MLP), MLP, np.random.default_rng(0)).content)
    assert skewed < 0.8 * 4810


@pytest.mark.parametrize("name", ["int2", "", "topk", "INT8"])
def test_a_form_that_is_not_there(name):
    with pytest.raises(BadMessage, match="float32, int8, int4, top-k"):
        form_of(name)


@pytest.mark.parametrize("share_ratio", [0.0, 1.5, float("nan"), -1.0])
def test_a_share_that_cannot_be(share_ratio):
    with pytest.raises(BadMessage, match="share"):
        form_of("top-k", share_ratio)


@pytest.mark.parametrize("share", [0.0002, 0.01, 0.2, 0.5, 0.9, 1.0])
def test_gaps_come_back_in_few_bits(share):
    n_elements = 20_000
    rng = np.random.default_rng(8)
    indices = np.sort(rng.permutation(n_elements)[: max(1, int(share * n_elements))])
    parameter, code = encode_gaps(indices)
    assert np.array_equal(decode_gaps(memoryview(code), parameter, len(indices), n_elements), indices)
    entropy = -(share * np.log2(share) + (1 - share) * np.log2(1 - share)) if share < 1 else 0.0
    assert 8 * len(code) <= 1.05 * n_elements * entropy + n_elements * (share > 0.6) + 32


def test_both_sides_of_a_chain_hold_the_same_view_and_it_follows_the_weights():
    for name in ("int8", "top-k 0.05"):
        rng = np.random.default_rng(9)
        weights = heavy_tailed(MLP)
        view = held = weights.copy()
        start = weights.copy()
        for _ in range(30):
            weights = weights + rng.normal(size=MLP.n_elements).astype(np.float32) * np.float32(0.01)
            made = link(form(name), view, weights, MLP, rng)
            held = follow(form(name), held, made.content, MLP, view_digest(made.view))
            view = made.view
            assert held.tobytes() == view.tobytes()
        assert np.linalg.norm(view - weights) < 0.9 * np.linalg.norm(start - weights)
        for _ in range(60):
            view = link(form(name), view, weights, MLP, rng).view
        np.testing.assert_allclose(view, weights, atol=1e-4)


def test_another_view_is_told_by_its_digest():
    weights = heavy_tailed(MLP)
    made = link(form("int8"), weights, weights * np.float32(1.1), MLP, np.random.default_rng(0))
    other = weights.copy()
    other[3] = np.nextafter(other[3], np.float32(9))
    with pytest.raises(DigestMismatch, match="fetch it whole"):
        follow(form("int8"), other, made.content, MLP, view_digest(made.view))


def test_many_links_are_not_worth_it():
    assert links_pay([4826] * 3, MLP)
    assert not links_pay([4826] * 4, MLP)
