"""Other people's tools, each in an environment of its own: made at first use, and said where one cannot be made."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CACHE: Final = Path(__file__).resolve().parents[2] / ".cache" / "tools"
TOOLS: Final = Path(__file__).resolve().parent / "tools"
INSTALL_S: Final = 900
RUN_S: Final = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A foreign tool.

    Attributes:
        title: its row.
        environment: which environment it runs in.
        script: in `tools/`.
        more: further arguments.
    """

    title: str
    environment: str
    script: str
    more: tuple[str, ...] = ()


REQUIREMENTS: Final = {
    "nncf": ("nncf==3.4.0", "onnx==1.23.2", "onnxruntime==1.31.1"),
    "aimet": ("torch==2.13.0", "aimet-onnx==2.42.0"),
    "onnxsim": ("onnxsim==0.8.1", "onnxruntime==1.31.1"),
    "tflite-runtime": ("tflite-runtime==2.14.0", "numpy==1.26.4"),
}
"""What each environment holds, installed in this order; numpy 1.26 because tflite-runtime fails on 2."""

QUANTIZERS: Final = (
    Tool(title="NNCF 3.4 PTQ", environment="nncf", script="nncf_ptq"),
    Tool(title="AIMET 2.42 QDQ", environment="aimet", script="aimet_ptq"),
    Tool(title="onnxsim 0.8 static", environment="onnxsim", script="onnxsim_ptq"),
    Tool(title="onnxsim 0.8 static, full graph", environment="onnxsim", script="onnxsim_ptq", more=("full",)),
)


class Unavailable(Exception):
    """A tool that cannot be installed, or that failed: its last line says why."""


def python_of(environment: str) -> Path:
    """The interpreter of an environment, made if it is not there.

    Raises:
        Unavailable: it cannot be installed.
    """
    folder = CACHE / environment
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.is_file() and not _imports(python, environment):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _ran([sys.executable, "-m", "venv", str(folder)], INSTALL_S)
        for requirement in REQUIREMENTS[environment]:
            _ran([str(python), "-m", "pip", "install", "--quiet", requirement], INSTALL_S)
    done.touch()
    return python


def run(tool: Tool, model: Path, calibration: Path, out: Path) -> None:
    """Lets a tool write its form of a model.

    Raises:
        Unavailable: it cannot be installed, or it failed.
    """
    script = TOOLS / f"{tool.script}.py"
    _ran([str(python_of(tool.environment)), str(script), str(model), str(calibration), str(out), *tool.more], RUN_S)
    if not out.is_file():
        raise Unavailable(f"{tool.title} wrote nothing")


def _imports(python: Path, environment: str) -> bool:
    name = {"aimet": "aimet_onnx", "tflite-runtime": "tflite_runtime"}.get(environment, environment)
    if not python.is_file():
        return False
    return subprocess.run([str(python), "-c", f"import {name}"], capture_output=True, check=False).returncode == 0


def _ran(command: list[str], limit_s: float) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired as exc:
        raise Unavailable(f"{Path(command[0]).name} took more than {limit_s:g} s") from exc
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no word"]
        raise Unavailable(lines[-1][:200])
