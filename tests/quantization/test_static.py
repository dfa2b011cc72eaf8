"""Static int8: near the float model, the same bytes each time, nothing left behind, clear refusals."""

import logging
import tempfile

import numpy as np
import onnx
import pytest

from compression.errors import NotQuantizable
from compression.quantization.prepare import prepare
from compression.quantization.recipe import Int8Recipe
from compression.quantization.static import quantize
from tests import zoo
from tests.quantization.nets import answers, apart, convnet, images
from tests.shaped_nets import mobilenet_v2, resnet50


@pytest.mark.parametrize("pair", [("uint8", "int8"), ("int8", "int8"), ("uint8", "uint8"), ("int8", "uint8")])
@pytest.mark.parametrize("ranges", ["minmax", "entropy", "percentile", "mse"])
def test_every_pair_and_range_is_near_the_float_model(pair, ranges):
    model = convnet()
    recipe = Int8Recipe(activations=pair[0], weights=pair[1], ranges=ranges)
    made = quantize(model, images(16), recipe)
    assert (made.n_int8, made.n_float) == (4, 0)
    onnx.checker.check_model(made.model)
    assert 0.0 < apart(model, made.model, images(8, seed=2)) < 0.06
    assert recipe.pair == "".join({"uint8": "U8", "int8": "S8"}[kind] for kind in pair)


def test_seven_bits_are_coarser_than_eight():
    model, samples = convnet(), images(16)
    eight = apart(model, quantize(model, samples).model, samples)
    seven = apart(model, quantize(model, samples, Int8Recipe(reduce_range=True)).model, samples)
    assert eight < seven < 4 * eight


def test_a_scale_for_each_channel_saves_unlike_channels():
    model, samples = convnet(spread=1.5), images(16)
    each = apart(model, quantize(model, samples).model, samples)
    one = apart(model, quantize(model, samples, Int8Recipe(per_channel=False)).model, samples)
    assert each < 0.6 * one


def test_the_same_gives_the_same_bytes():
    model, samples = convnet(), images(6)
    recipe = Int8Recipe(ranges="mse", equalized=True, bias_corrected=True)
    first, second = (quantize(model, samples, recipe) for _ in range(2))
    assert first.model.SerializeToString() == second.model.SerializeToString()
    assert first.notes == second.notes
    other = quantize(model, images(6, seed=9), recipe)
    assert first.model.SerializeToString() != other.model.SerializeToString()


def test_it_leaves_nothing_behind_and_the_model_alone(tmp_path, monkeypatch, capfd):
    temporary, work = tmp_path / "a", tmp_path / "b"
    work.mkdir()
    temporary.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    model, root = convnet(), logging.getLogger()
    before, handlers, filters = model.SerializeToString(), list(root.handlers), list(root.filters)
    quantize(model, images(4), Int8Recipe(equalized=True, bias_corrected=True))
    assert model.SerializeToString() == before
    assert sorted(tmp_path.rglob("*")) == [temporary, work]
    assert (root.handlers, root.filters) == (handlers, filters)
    assert capfd.readouterr() == ("", "")


def test_a_batch_left_open_stays_open():
    model = convnet(batch="n")
    made = quantize(model, [*images(4), *images(4, batch=3)])
    many = images(2, batch=5, seed=3)
    assert apart(model, made.model, many) < 0.06
    assert answers(made.model, many)[0].shape == (5, 10)


def test_a_prepared_model_gives_what_the_model_gives():
    model, samples = convnet(), images(4)
    prepared = prepare(model)
    assert prepare(prepared) is prepared
    assert [node.op_type for node in prepared.graph.node].count("BatchNormalization") == 0
    assert apart(model, prepared, samples) < 1e-6
    assert quantize(prepared, samples).model == quantize(model, samples).model


def test_nodes_kept_float_are_float():
    model, samples = convnet(), images(8)
    made = quantize(model, samples, Int8Recipe(kept_float=("c0", "head")))
    assert (made.n_int8, made.n_float) == (2, 2)
    by_name = {node.name: node for node in made.model.graph.node}
    constants = {tensor.name: tensor.data_type for tensor in made.model.graph.initializer}
    for name in ("c0", "head"):
        assert constants[by_name[name].input[1]] == onnx.TensorProto.FLOAT
    assert by_name["c1"].input[1] not in constants  # a DequantizeLinear makes it
    all_int8 = apart(model, quantize(model, samples).model, samples)
    assert apart(model, made.model, samples) < all_int8


@pytest.mark.parametrize(("side", "stride", "n_in"), [(16, 2, 3), (16, 1, 3), (16, 2, 1), (20, 1, 5)])
def test_a_wide_stem_answers_bit_by_bit_the_same(side, stride, n_in):
    model = convnet(side=side, stride=stride, n_in=n_in)
    samples = images(5, side=side, n_in=n_in)
    plain, wide = (quantize(model, samples, Int8Recipe(wide_stems=flag)).model for flag in (False, True))
    kinds = {node.op_type for node in wide.graph.node} - {node.op_type for node in plain.graph.node}
    assert kinds == {"SpaceToDepth" if stride == 2 else "Pad"}
    for one, other in zip(answers(plain, samples), answers(wide, samples), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("padding", ["SAME_UPPER", "SAME_LOWER", "VALID", [0, 0, 1, 1], [2, 1, 0, 3], [3, 3, 3, 3]])
@pytest.mark.parametrize("size", [3, 4, 5])
def test_a_folded_stride_knows_every_padding(padding, size):
    model = convnet(side=20, batch_norm=False)
    stem = model.graph.node[0]
    kept = [entry for entry in stem.attribute if entry.name not in ("pads", "kernel_shape")]
    del stem.attribute[:]
    stem.attribute.extend(kept)
    name = "auto_pad" if isinstance(padding, str) else "pads"
    stem.attribute.append(onnx.helper.make_attribute(name, padding))
    weight = np.random.default_rng(size).standard_normal((24, 3, size, size)).astype(np.float32)
    model.graph.initializer[2].CopyFrom(onnx.numpy_helper.from_array(weight, "w0"))
    samples = images(3, side=20)
    plain, wide = (quantize(model, samples, Int8Recipe(wide_stems=flag)).model for flag in (False, True))
    assert {"SpaceToDepth", "Pad"} & {node.op_type for node in wide.graph.node}
    for one, other in zip(answers(plain, samples), answers(wide, samples), strict=True):
        np.testing.assert_array_equal(one, other)


def test_known_ranges_take_the_place_of_samples():
    model, samples = convnet(), images(4)
    wide = quantize(model, samples, ranges={"a0": (0.0, 1e4)})
    assert apart(model, wide.model, samples) > 3 * apart(model, quantize(model, samples).model, samples)
    for ranges, said in (({"nobody": (0.0, 1.0)}, "no float tensor 'nobody'"), ({"a0": (1.0, 0.0)}, "two finite ends")):
        with pytest.raises(NotQuantizable, match=said):
            quantize(model, samples, ranges=ranges)


@pytest.mark.parametrize("make", [mobilenet_v2, resnet50])
def test_shaped_nets_become_int8_whole(make):
    model = make(size=64, width=0.25)
    samples = [{"image": feeds["x"]} for feeds in images(5, side=64)]
    made = quantize(model, samples[:4])
    assert made.n_float == 0
    assert made.model.ByteSize() < 0.35 * model.ByteSize()
    assert apart(model, made.model, samples[4:]) < 0.12


def test_efficientnet_answers_the_same_about_a_photo():
    """With its trained weights, calibrated on other photographs; docs/quantization.md has the whole table."""
    from PIL import Image

    def photo(name, box=None):
        picture = Image.open(zoo.photo(name)).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC, box)
        pixels = (np.asarray(picture, np.float32) - 127.5) / 127.5
        return {"image": np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])}

    model = onnx.load(zoo.path(zoo.EFFICIENTNET))
    made = quantize(model, [photo(name) for name in ("astronaut.png", "rocket.jpg", "motorcycle_left.png")])
    assert made.model.ByteSize() * 3.5 < model.ByteSize()
    seen = [photo("coffee.png"), photo("chelsea.png"), photo("motorcycle_right.png")]
    for have, right in zip(answers(made.model, seen), ({504, 967}, {281, 282, 285}, {665, 670}), strict=True):
        assert int(have.argmax()) in right
