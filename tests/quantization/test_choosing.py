"""Sensitivities, type pairs, and what is kept float for speed."""

import onnx
import pytest

from compression.errors import NotQuantizable
from compression.measuring import Timing
from compression.quantization.editing import Weights
from compression.quantization.recipe import Int8Recipe
from compression.quantization.sensitivity import sensitivities
from compression.quantization.speed import fastest_kept_float
from compression.quantization.type_pairs import fastest, type_pairs
from tests.quantization.nets import convnet, images


def timing(seconds):
    return Timing(p50_s=seconds, p95_s=seconds, low_s=seconds, n=1)


def spoiled():
    """A convolution whose weights int8 cannot hold: the largest multiply a channel that is always zero."""
    model = convnet(batch_norm=False)
    weights = Weights(model)
    bias, kernel = weights["b1"].copy(), weights["w2"].copy()
    bias[0], kernel[:, 0] = -1e3, 60.0
    weights["b1"], weights["w2"] = bias, kernel
    return model


@pytest.mark.parametrize("way", ["alone", "all_but"])
def test_the_layer_that_int8_spoils_comes_first(way):
    told = []
    found = sensitivities(spoiled(), images(6), way=way, watch=lambda done, n: told.append((done, n)))
    assert found[0].node == "c2"
    assert found[0].distance > 3 * found[1].distance
    assert {one.node for one in found} == {"c0", "c1", "c2", "head"}
    assert [one.distance for one in found] == sorted((one.distance for one in found), reverse=True)
    assert told == [(number, 4) for number in range(1, 5)]


def test_sensitivities_leave_out_what_is_float_already_and_refuse_strangers():
    found = sensitivities(convnet(), images(2), Int8Recipe(kept_float=("c1",)), nodes=["c0", "c1"])
    assert [one.node for one in found] == ["c0"]
    with pytest.raises(NotQuantizable, match="no node 'nobody'"):
        sensitivities(convnet(), images(2), nodes=["nobody"])


@pytest.mark.parametrize(
    ("architecture", "flags", "pairs"),
    [
        ("x86_64", ["avx2", "avx512_vnni"], ["U8S8", "S8S8"]),
        ("AMD64", ["AVX_VNNI"], ["U8S8", "S8S8"]),
        ("x86_64", ["avx2"], ["U8S8", "U8U8", "S8S8"]),
        ("aarch64", [], ["S8S8", "U8S8", "U8U8"]),
        ("riscv64", [], ["U8S8", "S8S8", "U8U8"]),
    ],
)
def test_what_is_worth_measuring_depends_on_the_machine(architecture, flags, pairs):
    recipes = type_pairs(architecture, flags)
    assert [recipe.pair for recipe in recipes] == pairs
    saturates = architecture == "x86_64" and flags == ["avx2"]
    assert recipes[0].reduce_range == saturates


def test_the_fastest_pair_is_the_one_that_the_device_says():
    seen = []

    def measure(paths, feeds):
        models = [onnx.load(path) for path in paths]
        seen.append((len(models), sorted(feeds)))
        kinds = [
            {t.data_type for t in model.graph.initializer if t.data_type == onnx.TensorProto.UINT8} for model in models
        ]
        return [timing(3.0), *(timing(2.0 if kind else 1.0) for kind in kinds[1:])]

    ranked = fastest(convnet(), images(2), type_pairs("aarch64"), measure)
    assert seen == [(4, ["x"])]
    assert [one.recipe.pair if one.recipe else None for one in ranked] == ["S8S8", "U8S8", "U8U8", None]
    assert ranked[-1].quantized is None
    with pytest.raises(NotQuantizable, match="no recipe"):
        fastest(convnet(), images(2), [], measure)


def is_float(path, name):
    model = onnx.load(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    return next(node for node in model.graph.node if node.name == name).input[1] in weights


@pytest.mark.parametrize(("gain", "kept"), [({"c0": 0.3, "c1": 0.2}, {"c0", "c1"}), ({"c1": 0.2}, {"c1"}), ({}, set())])
def test_nodes_that_are_faster_in_float_are_kept(gain, kept):
    def measure(paths, feeds):
        return [timing(1.0 - sum(part for name, part in gain.items() if is_float(path, name))) for path in paths]

    recipe, measured = fastest_kept_float(convnet(), images(2), Int8Recipe(), measure)
    assert set(recipe.kept_float) == kept
    assert {name for one in measured for name in one.nodes} == {"c0", "c1", "head"}
    best = measured[0].gain_ratio
    assert best == pytest.approx(sum(gain.values()))
