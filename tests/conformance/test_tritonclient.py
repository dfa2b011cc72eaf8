"""The calls of tritonclient[http] 2.73, unmodified: values, forms and states compared, not only status codes."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import tritonclient.http as triton
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException

from tests.live_gateway import LiveGateway

_numbers = itertools.count()


@pytest.fixture
def client(open_gateway: LiveGateway) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(open_gateway.url.removeprefix("http://")) as client:
        yield client


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(7).standard_normal((2, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def y(model_files: dict[str, Path], x: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(str(model_files["mlp"])).run(None, {"x": x})[0]


def _input(array: np.ndarray, *, binary: bool, name: str = "x") -> triton.InferInput:
    tensor = triton.InferInput(name, list(array.shape), "FP32" if array.dtype == np.float32 else "INT32")
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def _statistics(client: triton.InferenceServerClient, name: str) -> dict[str, Any]:
    return client.get_inference_statistics(name)["model_stats"][0]


class TestHealth:
    def test_server_is_live_and_ready(self, client: triton.InferenceServerClient) -> None:
        assert client.is_server_live()
        assert client.is_server_ready()

    def test_model_and_version_are_ready_and_an_unknown_one_is_not(self, client: triton.InferenceServerClient) -> None:
        assert client.is_model_ready("mlp")
        assert client.is_model_ready("mlp", "1")
        assert not client.is_model_ready("mlp", "9")
        assert not client.is_model_ready("nobody")


class TestMetadata:
    def test_server_names_only_extensions_that_it_has(self, client: triton.InferenceServerClient) -> None:
        metadata = client.get_server_metadata()
        assert metadata["name"] == "hybrid"
        assert metadata["version"]
        assert set(metadata["extensions"]) == {
            "binary_tensor_data", "classification", "logging", "model_configuration", "model_repository",
            "statistics", "system_shared_memory", "trace",
        }  # fmt: skip

    def test_model_metadata_is_the_models_signature(self, client: triton.InferenceServerClient) -> None:
        assert client.get_model_metadata("mlp") == {
            "name": "mlp",
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 64]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 10]}],
        }

    def test_model_configuration_speaks_tritons_words(self, client: triton.InferenceServerClient) -> None:
        config = client.get_model_config("mlp")
        assert config["max_batch_size"] == 0
        assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 64]}]
        assert config["output"] == [{"name": "y", "data_type": "TYPE_FP32", "dims": [-1, 10]}]

    def test_an_unknown_model_is_an_exception_with_a_message(self, client: triton.InferenceServerClient) -> None:
        with pytest.raises(InferenceServerException, match="nobody") as caught:
            client.get_model_metadata("nobody")
        assert caught.value.status() == "404"


class TestStatistics:
    def test_counters_grow_by_exactly_what_was_asked(self, client: triton.InferenceServerClient, x: np.ndarray) -> None:
        before = _statistics(client, "counted")
        for _ in range(5):
            client.infer("counted", [_input(x, binary=True)])
        with pytest.raises(InferenceServerException):
            client.infer("counted", [_input(x[:, :5].copy(), binary=True)])
        after = _statistics(client, "counted")
        assert after["inference_count"] - before["inference_count"] == 5
        assert after["execution_count"] - before["execution_count"] == 5
        stats, was = after["inference_stats"], before["inference_stats"]
        assert stats["success"]["count"] - was["success"]["count"] == 5
        assert stats["fail"]["count"] - was["fail"]["count"] == 1
        for phase in ("queue", "compute_input", "compute_infer", "compute_output"):
            assert stats[phase]["count"] - was[phase]["count"] == 5
        phases_ns = sum(stats[phase]["ns"] - was[phase]["ns"] for phase in ("compute_input", "compute_infer"))
        assert 0 < phases_ns <= stats["success"]["ns"] - was["success"]["ns"]
        assert after["last_inference"] > before["last_inference"]

    def test_all_models_are_listed(self, client: triton.InferenceServerClient) -> None:
        names = {entry["name"] for entry in client.get_inference_statistics()["model_stats"]}
        assert {"mlp", "simple", "counted"} <= names


class TestRepository:
    def test_index_unload_load(self, client: triton.InferenceServerClient, x: np.ndarray) -> None:
        def state() -> str:
            return next(
                entry["state"] for entry in client.get_model_repository_index() if entry["name"] == "repository"
            )

        assert state() == "READY"
        before = client.infer("repository", [_input(x, binary=True)]).as_numpy("y")
        client.unload_model("repository")
        assert state() == "UNAVAILABLE"
        assert not client.is_model_ready("repository")
        with pytest.raises(InferenceServerException, match="not loaded") as caught:
            client.infer("repository", [_input(x, binary=True)])
        assert caught.value.status() == "404"
        with pytest.raises(InferenceServerException):
            client.get_inference_statistics("repository")
        client.load_model("repository")
        assert state() == "READY"
        assert client.is_model_ready("repository")
        np.testing.assert_array_equal(client.infer("repository", [_input(x, binary=True)]).as_numpy("y"), before)

    def test_an_unknown_model_cannot_be_loaded(self, client: triton.InferenceServerClient) -> None:
        with pytest.raises(InferenceServerException, match="nobody"):
            client.load_model("nobody")


class TestSettings:
    def test_tracing_is_off_and_says_so(self, client: triton.InferenceServerClient) -> None:
        assert client.get_trace_settings()["trace_level"] == ["OFF"]
        with pytest.raises(InferenceServerException, match="does not write traces"):
            client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]})

    def test_logging_level_is_read_and_changed(self, client: triton.InferenceServerClient) -> None:
        assert client.get_log_settings()["log_warning"] is True
        changed = client.update_log_settings({"log_verbose_level": 1})
        assert changed["log_verbose_level"] == 1
        assert client.get_log_settings()["log_verbose_level"] == 1
        changed = client.update_log_settings({"log_verbose_level": 0, "log_info": False})
        assert (changed["log_verbose_level"], changed["log_info"], changed["log_warning"]) == (0, False, True)


class TestInfer:
    @pytest.mark.parametrize("binary_in", [True, False])
    @pytest.mark.parametrize("binary_out", [True, False])
    def test_every_form_in_and_out(
        self, client: triton.InferenceServerClient, x: np.ndarray, y: np.ndarray, binary_in: bool, binary_out: bool
    ) -> None:
        wanted = [triton.InferRequestedOutput("y", binary_data=binary_out)]
        result = client.infer("mlp", [_input(x, binary=binary_in)], outputs=wanted)
        np.testing.assert_allclose(result.as_numpy("y"), y, rtol=1e-6, atol=1e-7)
        described = result.get_output("y")
        assert ("data" in described) is not binary_out
        assert ("binary_data_size" in described.get("parameters", {})) is binary_out

    def test_without_outputs_all_come_binary(
        self, client: triton.InferenceServerClient, x: np.ndarray, y: np.ndarray
    ) -> None:
        result = client.infer("mlp", [_input(x, binary=True)])
        np.testing.assert_array_equal(result.as_numpy("y"), y)
        assert result.get_response()["model_name"] == "mlp"
        assert result.get_response()["model_version"] == "1"

    def test_version_and_id_are_kept(self, client: triton.InferenceServerClient, x: np.ndarray, y: np.ndarray) -> None:
        result = client.infer("mlp", [_input(x, binary=True)], model_version="1", request_id="request 7")
        assert result.get_response()["id"] == "request 7"
        np.testing.assert_array_equal(result.as_numpy("y"), y)

    @pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
    def test_compressed_both_ways(
        self, client: triton.InferenceServerClient, model_files: dict[str, Path], algorithm: str
    ) -> None:
        many = np.tile(np.linspace(-1, 1, 64, dtype=np.float32), (200, 1))
        expected = ort.InferenceSession(str(model_files["mlp"])).run(None, {"x": many})[0]
        result = client.infer(
            "mlp",
            [_input(many, binary=True)],
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )
        np.testing.assert_array_equal(result.as_numpy("y"), expected)

    def test_classification_names_the_best_classes(
        self, client: triton.InferenceServerClient, x: np.ndarray, y: np.ndarray
    ) -> None:
        wanted = [triton.InferRequestedOutput("y", class_count=3)]
        found = client.infer("mlp", [_input(x, binary=True)], outputs=wanted).as_numpy("y")
        assert found.shape == (2, 3)
        for row, texts in zip(y, found, strict=True):
            best = np.argsort(-row)[:3]
            assert [int(text.decode().split(":")[1]) for text in texts] == best.tolist()
            values = [float(text.decode().split(":")[0]) for text in texts]
            np.testing.assert_allclose(values, row[best], atol=1e-6)

    def test_two_inputs_and_a_chosen_output(self, client: triton.InferenceServerClient) -> None:
        a = np.arange(16, dtype=np.int32).reshape(1, 16)
        b = np.full((1, 16), 3, np.int32)
        inputs = [_input(a, binary=True, name="INPUT0"), _input(b, binary=False, name="INPUT1")]
        outputs = [triton.InferRequestedOutput("OUTPUT1", binary_data=True)]
        result = client.infer("simple", inputs, outputs=outputs)
        np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), a - b)
        assert result.as_numpy("OUTPUT0") is None

    def test_many_in_flight(self, client: triton.InferenceServerClient, x: np.ndarray, y: np.ndarray) -> None:
        pending = [client.async_infer("mlp", [_input(x, binary=True)]) for _ in range(20)]
        for request in pending:
            np.testing.assert_array_equal(request.get_result().as_numpy("y"), y)

    def test_a_wrong_shape_is_an_exception_with_a_message(
        self, client: triton.InferenceServerClient, x: np.ndarray
    ) -> None:
        with pytest.raises(InferenceServerException, match=r"\[2, 63\]") as caught:
            client.infer("mlp", [_input(np.ascontiguousarray(x[:, :63]), binary=True)])
        assert caught.value.status() == "400"

    def test_infer_on_an_unknown_model(self, client: triton.InferenceServerClient, x: np.ndarray) -> None:
        with pytest.raises(InferenceServerException, match="nobody") as caught:
            client.infer("nobody", [_input(x, binary=True)])
        assert caught.value.status() == "404"


class TestSharedMemory:
    def test_status_register_infer_unregister(
        self, client: triton.InferenceServerClient, x: np.ndarray, y: np.ndarray
    ) -> None:
        number = next(_numbers)
        region_in, region_out = f"in{number}", f"out{number}"
        handle_in = shm.create_shared_memory_region(region_in, f"/hybrid_test_in{number}", x.nbytes)
        handle_out = shm.create_shared_memory_region(region_out, f"/hybrid_test_out{number}", y.nbytes)
        try:
            shm.set_shared_memory_region(handle_in, [x])
            client.register_system_shared_memory(region_in, f"/hybrid_test_in{number}", x.nbytes)
            client.register_system_shared_memory(region_out, f"/hybrid_test_out{number}", y.nbytes)
            status = {entry["name"]: entry for entry in client.get_system_shared_memory_status()}
            assert status[region_in] == {
                "name": region_in, "key": f"/hybrid_test_in{number}", "offset": 0, "byte_size": x.nbytes,
            }  # fmt: skip
            tensor = triton.InferInput("x", list(x.shape), "FP32")
            tensor.set_shared_memory(region_in, x.nbytes)
            wanted = triton.InferRequestedOutput("y", binary_data=True)
            wanted.set_shared_memory(region_out, y.nbytes)
            result = client.infer("mlp", [tensor], outputs=[wanted])
            described = result.get_output("y")
            assert described["parameters"]["shared_memory_region"] == region_out
            np.testing.assert_array_equal(shm.get_contents_as_numpy(handle_out, np.float32, list(y.shape)), y)
            client.unregister_system_shared_memory(region_in)
            assert region_in not in {entry["name"] for entry in client.get_system_shared_memory_status()}
            with pytest.raises(InferenceServerException, match=region_in):
                client.infer("mlp", [tensor])
            client.unregister_system_shared_memory()
            assert client.get_system_shared_memory_status() == []
        finally:
            shm.destroy_shared_memory_region(handle_in)
            shm.destroy_shared_memory_region(handle_out)

    def test_there_is_no_cuda_memory(self, client: triton.InferenceServerClient) -> None:
        assert client.get_cuda_shared_memory_status() == []
        with pytest.raises(InferenceServerException, match="CUDA"):
            client.register_cuda_shared_memory("gpu", b"handle", 0, 64)
        client.unregister_cuda_shared_memory()
