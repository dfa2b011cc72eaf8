"""KServe's REST client 0.21, unmodified, in an environment of its own."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from tests.live_gateway import LiveGateway

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def seen(kserve_python: Path, open_gateway: LiveGateway) -> dict[str, Any]:
    """What the client got from our gateway."""
    script = Path(__file__).with_name("kserve_calls.py")
    done = subprocess.run(
        [str(kserve_python), str(script), open_gateway.url], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_health_is_json_with_the_right_keys(seen: dict[str, Any]) -> None:
    assert (seen["live"], seen["ready"], seen["model_ready"]) == (True, True, True)


def test_an_unknown_model_is_not_ready(seen: dict[str, Any]) -> None:
    assert seen["unknown_ready"] == "False"


def test_infer_on_an_unknown_model_fails_as_the_client_expects(seen: dict[str, Any]) -> None:
    assert seen["unknown_infer"] == "HTTPStatusError 404"


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True])
def test_infer_in_all_four_forms(
    seen: dict[str, Any], model_files: dict[str, Path], binary_in: bool, binary_out: bool
) -> None:
    values = np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64)
    expected = ort.InferenceSession(str(model_files["mlp"])).run(None, {"x": values})[0]
    reply = seen[f"infer in={binary_in} out={binary_out}"]
    assert (reply["id"], reply["model"], reply["shape"]) == ("kserve-1", "mlp", [2, 10])
    np.testing.assert_allclose(np.array(reply["values"], np.float32).reshape(2, 10), expected, rtol=1e-6, atol=1e-7)
