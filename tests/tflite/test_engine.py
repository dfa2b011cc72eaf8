"""The engine's border: which files an old runtime must not run, and which numpy it cannot live with."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from devices.errors import DeviceError, ModelFileMissing, ModelRejected, OperatorUnsupported
from devices.tflite_details import keeps_state, public_names, refusal, wrong_on_old_runtime
from devices.tflite_engine import TfliteSession, engine_version, interpreter_module, numpy_refusal
from devices.tflite_magic import is_tflite
from devices.tflite_selfcheck import fault
from hybrid.tflite.model_file import read, schema, write
from tests import zoo
from tests.tflite.made import dense, feeds_for, voice

WEIGHTS = np.arange(-12, 12).reshape(4, 6).astype(np.int8)


def opened(path: Path):
    return interpreter_module().Interpreter(model_path=str(path))


def test_old_runtimes_refuse_what_they_compute_wrongly(tmp_path: Path) -> None:
    kinds = schema().TensorType
    dynamic = opened(dense(tmp_path / "dynamic.tflite", WEIGHTS, kind=kinds.INT8))
    static = opened(dense(tmp_path / "static.tflite", WEIGHTS, activations=kinds.INT8, kind=kinds.INT8))
    floats = opened(dense(tmp_path / "floats.tflite", WEIGHTS.astype(np.float32)))
    wide = opened(dense(tmp_path / "wide.tflite", WEIGHTS, activations=kinds.INT16, kind=kinds.INT8))
    for interpreter, word in ((dynamic, "dynamic-range"), (wide, "16-bit")):
        assert word in wrong_on_old_runtime(interpreter)
        assert word in refusal("tflite-runtime 2.14.0", interpreter)
        assert refusal("LiteRT 2.3.0", interpreter) == ""
    assert refusal("tflite-runtime 2.14.0", static) == ""
    assert refusal("tflite-runtime 2.14.0", floats) == ""
    assert refusal("tflite-runtime 2.14.0", opened(zoo.tflite("face"))) == ""


def test_old_runtimes_need_an_old_numpy() -> None:
    assert "numpy<2" in numpy_refusal("tflite-runtime 2.14.0", "2.4.6")
    assert numpy_refusal("tflite-runtime 2.14.0", "1.26.4") == ""
    assert numpy_refusal(engine_version(), np.__version__) == ""


class Broken:
    """An interpreter whose answers are all one too large: a real one behind it."""

    def __init__(self, model_content: bytes) -> None:
        self._real = interpreter_module().Interpreter(model_content=model_content)

    def __getattr__(self, name: str):
        return getattr(self._real, name)

    def get_tensor(self, index: int) -> np.ndarray:
        return self._real.get_tensor(index) + 2


def test_an_engine_that_computes_something_else_is_seen() -> None:
    assert fault(interpreter_module()) == ""
    assert "where [225, 110, -135] is right" in fault(SimpleNamespace(Interpreter=Broken))
    assert "does not run" in fault(SimpleNamespace())


def test_files_are_told_by_their_bytes(tmp_path: Path) -> None:
    assert is_tflite(zoo.tflite("face"))
    assert is_tflite(zoo.tflite("face").read_bytes())
    assert not is_tflite(zoo.path("silero"))
    assert not is_tflite(tmp_path / "nothing.tflite")
    assert not is_tflite(b"")


def test_what_cannot_be_opened_says_why(tmp_path: Path) -> None:
    with pytest.raises(ModelFileMissing):
        TfliteSession(tmp_path / "nothing.tflite")
    damaged = tmp_path / "damaged.tflite"
    damaged.write_bytes(zoo.tflite("face").read_bytes()[:4000])
    with pytest.raises(ModelRejected, match="damaged"):
        TfliteSession(damaged)
    with pytest.raises(ModelRejected, match="delegate"):
        TfliteSession(zoo.tflite("face"), providers=["/nowhere/libdelegate.so"])


def test_an_operator_that_nobody_has_is_named() -> None:
    from hybrid.tflite.model_file import read, write

    model = read(zoo.tflite("selfie"))
    for code in model.operatorCodes:
        if code.customCode:
            code.customCode = "Unheard"
    with pytest.raises(OperatorUnsupported, match="Unheard"):
        TfliteSession(write(model))


def test_a_run_that_was_stopped_does_not_begin() -> None:
    import onnxruntime

    session = TfliteSession(zoo.tflite("face"))
    options = onnxruntime.RunOptions()
    options.terminate = True
    with pytest.raises(DeviceError, match="terminated"):
        session.run(None, feeds_for(session), options)


def test_runs_without_delegates_are_the_same() -> None:
    one, other = TfliteSession(zoo.tflite("face"), 1), TfliteSession(zoo.tflite("face"), 1, ["CPU"])
    feeds = feeds_for(one)
    assert "without" in other.get_providers()[-1]
    for mine, theirs in zip(one.run(None, feeds), other.run(None, feeds), strict=True):
        assert np.abs(mine - theirs).max() < 1e-4 * np.abs(theirs).max()


def test_state_is_seen_and_can_be_begun_anew() -> None:
    session = TfliteSession(zoo.tflite("wake_word"))
    assert session.keeps_state
    assert not keeps_state(opened(zoo.tflite("face")))
    frames = voice(session)
    first = [session.run(None, feeds)[0].item() for feeds in frames]
    again = session.run(None, frames[0])[0].item()
    assert again != first[0]
    session.reset_variables()
    assert [session.run(None, feeds)[0].item() for feeds in frames] == first


def test_names_that_are_shared_or_empty_get_the_tensors_number() -> None:
    assert public_names([(0, "x"), (3, "y"), (5, "x"), (7, "")]) == {0: "x#0", 3: "y", 5: "x#5", 7: "tensor#7"}
    assert public_names([(2, "x"), (2, "x")]) == {2: "x"}


def test_a_size_that_the_engine_refuses_costs_no_other_request(tmp_path: Path) -> None:
    model = read(dense(tmp_path / "layer.tflite", np.ones((3, 4), np.float32)))
    graph = model.subgraphs[0]
    graph.tensors[int(graph.inputs[0])].shapeSignature = [-1, -1]
    session = TfliteSession(write(model))
    good = {"x": np.ones((1, 4), np.float32)}
    assert session.run(None, good)[0].tolist() == [[4.0, 4.0, 4.0]]
    with pytest.raises(DeviceError):
        session.run(None, {"x": np.ones((1, 5), np.float32)})
    assert session.run(None, good)[0].tolist() == [[4.0, 4.0, 4.0]]
