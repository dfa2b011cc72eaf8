"""Channels leave ONNX graphs, the weights after them make up for it, and what cannot be followed is named."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from compression.errors import NotPrunable
from compression.pruning import without_source
from compression.pruning.counting import n_products, saved_by_channel
from compression.pruning.slicing import sliced
from compression.pruning.walking import walk
from compression.pruning.without_source import prune_graph
from compression.quantization.prepare import is_prepared, prepare
from tests.pruning import graphs
from tests.pruning.graphs import Graph


def answers(model: onnx.ModelProto, samples) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, feeds)[0].ravel() for feeds in samples])


def model_of(graph: Graph) -> onnx.ModelProto:
    return graph.done(graph.nodes[-1].output[0])


def error(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.square(one - other).mean() / np.square(one - one.mean()).mean())


@pytest.mark.parametrize(
    ("make", "groups"),
    [
        (graphs.chain, {"conv0", "conv3", "gemm6"}),
        (graphs.residual, {"conv0", "conv2"}),
        (graphs.inverted, {"conv0", "conv1", "conv6"}),
        (graphs.dense, {"conv0", "conv4", "conv9"}),
        (graphs.decoder, {"conv0", "convtranspose2"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_groups_are_followed_and_made_up_for(make, groups, monkeypatch) -> None:
    graph = make()
    model, samples = model_of(graph), graph.samples()
    before = model.SerializeToString()
    done = prune_graph(model, samples, 0.4, 4)

    assert model.SerializeToString() == before
    assert {group.name for group in done.groups} == groups
    assert all(group.n_after % 4 == 0 for group in done.groups)
    assert done.ratio == pytest.approx(0.4, abs=0.06)
    assert done.macs_ratio < 0.75
    assert done.parameters_ratio < 0.75
    onnx.checker.check_model(done.model, full_check=True)
    assert not is_prepared(done.model)
    assert done.model.ByteSize() < 0.85 * len(before)

    wanted = answers(model, samples)
    monkeypatch.setattr(without_source, "refit", lambda whole, smaller, *_: smaller)
    plain = prune_graph(model, samples, 0.4, 4)
    assert error(wanted, answers(done.model, samples)) < 0.6 * error(wanted, answers(plain.model, samples))


def test_products_over_the_last_axis() -> None:
    model, samples = model_of(graphs.tokens()), graphs.token_samples()
    done = prune_graph(model, samples, 0.25, 8)
    (group,) = done.groups
    assert (len(group.makers), group.n_before, group.n_after) == (2, 64, 48)
    assert error(answers(model, samples), answers(done.model, samples)) < 0.2


def test_two_equal_channels_cost_nothing() -> None:
    graph = Graph()
    at = graph.relu(graph.conv("x", 3, 16))
    graph.head(graph.relu(graph.conv(at, 16, 8)), 8)
    model = model_of(graph)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in ("k0", "k1"):
        value = onnx.numpy_helper.to_array(tensors[name]).copy()
        value[8:] = value[:8]
        tensors[name].CopyFrom(onnx.numpy_helper.from_array(value, name))
    samples = graph.samples()
    done = prune_graph(model, samples, {"conv0": 0.5}, 8)
    assert [group.n_after for group in done.groups] == [8, 8]
    assert error(answers(model, samples), answers(done.model, samples)) < 1e-3


def test_a_constant_channel_moves_into_the_bias() -> None:
    graph = Graph()
    at = graph.relu(graph.conv("x", 3, 8, 1))
    graph.head(graph.relu(graph.conv(at, 8, 8, 1)), 8)
    model = model_of(graph)
    kernel, bias = (onnx.numpy_helper.to_array(model.graph.initializer[place]).copy() for place in (0, 1))
    kernel[:2], bias[:2] = 0, 3.0
    for place, value in enumerate((kernel, bias)):
        model.graph.initializer[place].CopyFrom(onnx.numpy_helper.from_array(value, f"k{place}"))
    samples = graph.samples()
    done = prune_graph(model, samples, {"conv0": 0.25}, 2)
    assert [group.n_after for group in done.groups] == [6, 8]
    assert np.allclose(answers(model, samples), answers(done.model, samples), atol=2e-2)


def test_ratio_zero_is_the_same_model() -> None:
    graph = graphs.residual()
    model = model_of(graph)
    done = prune_graph(model, graph.samples(2), 0.0, 8)
    assert done.model == model
    assert done.model is not model
    assert (done.ratio, done.macs_ratio, done.parameters_ratio) == (0.0, 1.0, 1.0)


def test_nodes_without_names_are_counted_where_nothing_goes() -> None:
    graph = graphs.chain()
    model = model_of(graph)
    for node in model.graph.node:
        node.name = ""
    assert prune_graph(model, graph.samples(40), 0, 4).macs_ratio == 1
    assert prune_graph(model, graph.samples(40), 0.5, 4).macs_ratio < 1


def test_what_a_channel_takes_with_it() -> None:
    graph = Graph()
    at = graph.relu(graph.conv("x", 3, 32, 1))
    at = graph.conv(graph.relu(graph.conv(at, 32, 32, group=32)), 32, 10, 1, strides=[2, 2])
    graph.linear(graph.add("Flatten", at), 10 * 16, 5)
    whole = prepare(model_of(graph))
    walked = walk(whole)
    names = {name: number for number, name in walked.groups()}
    weights = saved_by_channel(whole, walked)
    macs = saved_by_channel(whole, walked, n_products(whole, graph.samples(1)[0]))
    assert weights[names["conv0"]] == (3 + 1) + (9 + 1) + 10
    assert macs[names["conv0"]] == 3 * 64 + 9 * 64 + 10 * 16
    assert weights[names["conv4"]] == 32 + 1 + 16 * 5
    assert macs[names["conv4"]] == 32 * 16 + 16 * 5


def test_bytes_are_saved_where_the_weights_are() -> None:
    graph = graphs.chain()
    model, samples = model_of(graph), graph.samples(12)
    fast, small = (
        {group.name: group.n_after for group in prune_graph(model, samples, 0.3, 1, saving=saving).groups}
        for saving in ("macs", "weights")
    )
    assert small["conv0"] > fast["conv0"]
    assert small["gemm6"] <= fast["gemm6"]


def test_each_group_by_itself_and_named_nodes_stay() -> None:
    graph = graphs.residual()
    done = prune_graph(model_of(graph), graph.samples(4), 0.5, 8, local=True, kept=["conv0"])
    assert [(group.name, group.n_before, group.n_after) for group in done.groups] == [("conv2", 48, 24)]
    assert ("conv0", "conv0 is to be kept") in done.left


def test_the_same_again() -> None:
    graph = graphs.dense()
    model, samples = model_of(graph), graph.samples(6)
    first, second = (prune_graph(model, samples, 0.3, 4).model.SerializeToString() for _ in range(2))
    assert first == second


def test_shared_weights_are_cut_apart() -> None:
    graph = Graph()
    kernel, scale = graph.weight(16, 16, 3, 3, gain=0.1), graph.weight(16, 1, 1)
    at = graph.relu(graph.conv("x", 3, 16))
    for _ in range(2):
        at = graph.relu(graph.add("Mul", graph.add("Conv", at, kernel, pads=[1, 1, 1, 1]), scale))
    graph.head(at, 16)
    model, samples = model_of(graph), graph.samples(8)
    done = prune_graph(model, samples, {"conv2": 0.5}, 4)
    after = {group.name: group.n_after for group in done.groups}
    assert (after["conv0"], after["conv2"], after["conv5"]) == (16, 8, 16)
    assert answers(done.model, samples).shape == (40,)


def batched(graph: Graph) -> onnx.ModelProto:
    graph.shape[0] = "rows"
    return model_of(graph)


def test_a_reshape_to_rows_follows_the_width() -> None:
    for rows in ([-1, 128], [1, -1], [0, 128]):
        graph = Graph()
        at = graph.relu(graph.conv("x", 3, 32, strides=[4, 4]))
        at = graph.add("Reshape", at, graph.constant(np.array(rows, np.int64)))
        graph.linear(at, 128, 5)
        done = prune_graph(model_of(graph), graph.samples(4), 0.5, 8)
        assert [group.n_after for group in done.groups] == [16]
        assert answers(done.model, graph.samples(4)).shape == (20,)


def test_any_batch_runs_afterwards() -> None:
    graph = graphs.chain()
    done = prune_graph(batched(graph), graph.samples(8), 0.4, 4)
    several = np.concatenate([feeds["x"] for feeds in graph.samples(3)])
    assert answers(done.model, [{"x": several}]) == pytest.approx(answers(done.model, graph.samples(3)), abs=1e-4)


def test_what_cannot_be_followed_is_left_and_named() -> None:
    graph = Graph()
    at = graph.relu(graph.conv("x", 3, 32))
    at = graph.relu(graph.conv(at, 32, 32, group=4))
    at = graph.relu(graph.conv(at, 32, 16))
    at = graph.add("LRN", at, size=3)
    at = graph.relu(graph.conv(at, 16, 16))
    graph.head(at, 16)
    done = prune_graph(model_of(graph), graph.samples(4), 0.5, 8)
    left = dict(done.left)
    assert left["conv0"] == "Conv (conv2) mixes or moves them"
    assert left["conv4"] == "LRN (lrn6) mixes or moves them"
    assert [group.name for group in done.groups] == ["conv7"]


def whole_channels() -> Graph:
    graph = Graph()
    at = graph.add("Softmax", graph.conv("x", 3, 8), axis=1)
    graph.head(at, 8)
    return graph


def split_channels() -> Graph:
    graph = Graph()
    at = graph.add("Split", graph.conv("x", 3, 8), n_outputs=2, axis=1)
    graph.head(at, 4)
    return graph


def inner_graph() -> Graph:
    graph = Graph()
    at = graph.conv("x", 3, 8)
    name = graph.constant(np.array(True))
    branch = helper.make_graph(
        [helper.make_node("Relu", [at], ["inside"])], "then", [], [helper.make_empty_tensor_value_info("inside")]
    )
    other = helper.make_graph(
        [helper.make_node("Abs", [at], ["other"])], "else", [], [helper.make_empty_tensor_value_info("other")]
    )
    flag = graph.add("Less", graph.add("ReduceMean", "x", keepdims=0), graph.constant(np.float32(0)))
    del name
    graph.head(graph.add("If", flag, then_branch=branch, else_branch=other), 8)
    return graph


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (whole_channels, r"conv0: Softmax \(softmax1\)"),
        (split_channels, r"conv0: Split \(split1\)"),
        (inner_graph, "conv0: a graph inside a node"),
    ],
)
def test_a_graph_that_cannot_be_followed_at_all(make, said) -> None:
    graph = make()
    with pytest.raises(NotPrunable, match=said):
        prune_graph(model_of(graph), graph.samples(2), 0.5, 4)


def test_a_misread_graph_is_found_out(monkeypatch) -> None:
    graph = graphs.chain()

    def misread(whole, walked, keep):
        wrong = {group: np.sort((kept + 1) % walked.n_channels[group]) for group, kept in keep.items()}
        return sliced(whole, walked, wrong)

    monkeypatch.setattr(without_source, "sliced", misread)
    with pytest.raises(NotPrunable, match="would be off by"):
        prune_graph(model_of(graph), graph.samples(4), 0.4, 4)


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([], "no sample was given"),
        ([{"x": np.zeros((1, 4, 8, 8), np.float32)}], "shape"),
        ([{"y": np.zeros((1, 3, 8, 8), np.float32)}], "lacks 'x'"),
    ],
)
def test_samples_that_do_not_fit(samples, said) -> None:
    with pytest.raises(NotPrunable, match=said):
        prune_graph(model_of(graphs.chain()), samples, 0.5, 4)


def test_a_quantized_model_is_refused() -> None:
    from compression.quantization.static import quantize

    graph = graphs.chain()
    int8 = quantize(model_of(graph), graph.samples(2)).model
    with pytest.raises(NotPrunable, match="quantized already"):
        prune_graph(int8, graph.samples(2), 0.5, 4)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"ratio": 1.0}, "lies in"),
        ({"ratio": {"conv0": -1.0}}, "lies in"),
        ({"ratio": 0.5, "multiple": 0}, "at least 1"),
        ({"ratio": 0.5, "kept": ["nowhere"]}, "no node is called nowhere; those with weights are conv0, conv3"),
        ({"ratio": {"nowhere": 0.5}}, "no node is called nowhere"),
    ],
)
def test_wrong_words(asked, said) -> None:
    graph = graphs.chain()
    with pytest.raises(ValueError, match=said):
        prune_graph(model_of(graph), graph.samples(2), **asked)


def test_walking_knows_every_maker_of_a_residual_stream() -> None:
    walked = walk(prepare(model_of(graphs.inverted())))
    makers = {tuple(names) for names in walked.makers.values()}
    assert ("conv1", "conv8") in makers
    assert len(makers) == 4
