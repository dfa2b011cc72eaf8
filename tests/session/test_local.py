"""A session without a gateway is onnxruntime's session: results, errors, methods."""

import asyncio
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import hybrid
from compression.errors import UnknownCodec
from hybrid.errors import DeadlinePassed, GatewayUnreachable, ModelInvalid, ModelUnsupported
from hybrid.session.inference import _gateway_urls
from tests import zoo


@pytest.fixture(scope="module")
def pair() -> tuple[hybrid.InferenceSession, onnxruntime.InferenceSession]:
    path = zoo.path("ppocr_cls")
    return hybrid.InferenceSession(path, gateway=None), onnxruntime.InferenceSession(path)


def same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> bool:
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", ["ppocr_cls", "silero", "magika", "minilm"])
def test_bit_for_bit_as_onnxruntime(name: str) -> None:
    feeds = zoo.feeds(name)
    with hybrid.InferenceSession(str(zoo.path(name)), gateway=None) as session:
        assert same(session.run(None, feeds), onnxruntime.InferenceSession(zoo.path(name)).run(None, feeds))
        assert session.report is not None
        assert session.report.placement == "local"
        assert 0 < session.report.total_s < 60
        assert session.report.fallback is None


def test_model_given_as_bytes() -> None:
    feeds = zoo.feeds("ppocr_cls")
    data = zoo.path("ppocr_cls").read_bytes()
    ours = hybrid.InferenceSession(data, gateway=None).run(None, feeds)
    assert same(ours, onnxruntime.InferenceSession(data).run(None, feeds))


@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"y": np.zeros((1, 3, 48, 192), np.float32)},
        {"x": np.zeros((1, 3, 48, 192), np.float64)},
        {"x": np.zeros((3, 48, 192), np.float32)},
        {"x": np.zeros((1, 4, 48, 192), np.float32)},
        {"x": "not an array"},
    ],
    ids=["missing", "unknown name", "dtype", "rank", "channels", "no array"],
)
@pytest.mark.parametrize("gateway", [None, "http://127.0.0.1:9"])
def test_wrong_feeds_raise_what_onnxruntime_raises(feeds: dict[str, object], gateway: str | None) -> None:
    theirs = onnxruntime.InferenceSession(zoo.path("ppocr_cls"))
    with pytest.raises(Exception) as wanted:  # noqa: PT011  (whatever onnxruntime raises, ours must raise the same)
        theirs.run(None, feeds)
    with (
        hybrid.InferenceSession(zoo.path("ppocr_cls"), gateway=gateway) as session,
        pytest.raises(type(wanted.value)) as raised,
    ):
        session.run(None, feeds)
    assert str(raised.value) == str(wanted.value)


def test_unknown_output_raises_what_onnxruntime_raises(
    pair: tuple[hybrid.InferenceSession, onnxruntime.InferenceSession],
) -> None:
    ours, theirs = pair
    with pytest.raises(Exception) as wanted:  # noqa: PT011
        theirs.run(["nothing"], zoo.feeds("ppocr_cls"))
    with pytest.raises(type(wanted.value)):
        ours.run(["nothing"], zoo.feeds("ppocr_cls"))


def test_other_methods_are_the_local_sessions(
    pair: tuple[hybrid.InferenceSession, onnxruntime.InferenceSession],
) -> None:
    ours, theirs = pair
    assert [node.name for node in ours.get_inputs()] == [node.name for node in theirs.get_inputs()]
    assert ours.get_providers() == theirs.get_providers()
    binding = ours.io_binding()
    feeds = zoo.feeds("ppocr_cls")
    binding.bind_cpu_input("x", feeds["x"])
    for node in ours.get_outputs():
        binding.bind_output(node.name)
    ours.run_with_iobinding(binding)
    assert same(binding.copy_outputs_to_cpu(), theirs.run(None, feeds))
    with pytest.raises(AttributeError):
        _ = ours.no_such_method


def test_thread_settings_are_onnxruntimes() -> None:
    options = hybrid.SessionOptions()
    options.intra_op_num_threads = 1
    session = hybrid.InferenceSession(zoo.path("ppocr_cls"), options, ["CPUExecutionProvider"], gateway=None)
    assert session.get_session_options().intra_op_num_threads == 1


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelInvalid, match=r"nothing\.onnx"):
        hybrid.InferenceSession(tmp_path / "nothing.onnx", gateway=None)


def test_corrupt_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(zoo.path("ppocr_cls").read_bytes()[:1000])
    with pytest.raises(ModelInvalid, match=r"broken\.onnx") as raised:
        hybrid.InferenceSession(path, gateway=None)
    assert raised.value.fields["path"] == str(path)


def test_unsupported_operator_is_named(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Frobnicate", ["x"], ["y"])], "g", value[:1], value[1:])
    path = tmp_path / "odd.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with pytest.raises(ModelUnsupported, match="Frobnicate") as raised:
        hybrid.InferenceSession(path, gateway=None)
    assert "odd.onnx" in str(raised.value)
    assert raised.value.fields["operator"] == "Frobnicate"


def test_a_report_belongs_to_its_thread() -> None:
    session = hybrid.InferenceSession(zoo.path("ppocr_cls"), gateway=None)
    session.run(None, zoo.feeds("ppocr_cls"))
    seen: list[object] = []
    thread = threading.Thread(target=lambda: seen.append(session.report))
    thread.start()
    thread.join()
    assert session.report is not None
    assert seen == [None]


def test_a_report_belongs_to_its_task() -> None:
    session = hybrid.InferenceSession(zoo.path("ppocr_cls"), gateway=None)

    async def one(n_images: int) -> tuple[int, float]:
        feeds = {"x": np.zeros((n_images, 3, 48, 192), np.float32)}
        outputs = await session.run_awaitable(None, feeds)
        assert session.report is not None
        return outputs[0].shape[0], session.report.total_s

    async def both() -> list[tuple[int, float]]:
        return await asyncio.gather(one(1), one(64))

    (few, few_s), (many, many_s) = asyncio.run(both())
    assert (few, many) == (1, 64)
    assert few_s != many_s


def test_a_deadline_that_cannot_be_met_is_an_error_in_time() -> None:
    big = {"x": np.zeros((1, 3, 1600, 1600), np.float32)}
    session = hybrid.InferenceSession(zoo.path("ppocr_det"), gateway=None, options=hybrid.Options(deadline_s=0.05))
    with pytest.raises(DeadlinePassed, match=r"deadline_s=0\.05"):
        session.run(None, big)


def test_environment_can_keep_it_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_GATEWAY", "none")
    monkeypatch.setenv("HYBRID_TOKEN", "hyb_aaaaaaaa_" + "a" * 32)
    session = hybrid.InferenceSession(zoo.path("ppocr_cls"))
    session.run(None, zoo.feeds("ppocr_cls"))
    assert [candidate.placement for candidate in session.explain()] == ["local"]
    assert not session.prepare(zoo.feeds("ppocr_cls"), timeout_s=0.1)


def test_no_gateway_found_is_no_error() -> None:
    with hybrid.InferenceSession(zoo.path("ppocr_cls"), gateway="http://127.0.0.1:9") as session:
        outputs = session.run(None, zoo.feeds("ppocr_cls"))
        assert same(outputs, onnxruntime.InferenceSession(zoo.path("ppocr_cls")).run(None, zoo.feeds("ppocr_cls")))
        assert session.report is not None
        assert session.report.placement == "local"


def test_a_codec_that_there_is_not_is_named() -> None:
    with pytest.raises(UnknownCodec, match="mp3"):
        hybrid.InferenceSession(
            zoo.path("ppocr_cls"), gateway="http://127.0.0.1:9", options=hybrid.Options(codec="mp3")
        )


def test_an_address_that_is_none_is_named() -> None:
    with pytest.raises(GatewayUnreachable, match="localhost:8700"):
        hybrid.InferenceSession(zoo.path("ppocr_cls"), gateway="localhost:8700")


@pytest.mark.parametrize("gateway", [None, "none", "None", "", " ", [], [""], ["none"]])
def test_no_gateway_has_many_names(gateway: str | list[str] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_GATEWAY", "http://127.0.0.1:9")
    with hybrid.InferenceSession(zoo.path("ppocr_cls"), gateway=gateway) as session:
        assert session._connection is None
        assert session.run(None, zoo.feeds("ppocr_cls"))


@pytest.mark.parametrize(
    ("named", "urls"),
    [
        ("none", None),
        ("", ()),
        (" ", ()),
        ("auto", ()),
        ("http://a", ("http://a",)),
        ("http://a, http://b,", ("http://a", "http://b")),
    ],
)
def test_the_environment_names_gateways(
    named: str, urls: tuple[str, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYBRID_GATEWAY", named)
    assert _gateway_urls("auto") == urls
    assert _gateway_urls("http://c") == ("http://c",), "what the program names comes first"
