"""The rules of the house that a program can check: sizes, first lines, floors, weight of imports, style and types."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = Path(sys.executable).parent
PACKAGES = ("hybrid", "edge_agent", "cloud_gateway", "compression", "devices")
MODULES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
SCRIPTS = ("tests", "benchmarks", "examples", "docs", "requirements")
OTHER = sorted(path.relative_to(ROOT) for folder in SCRIPTS for path in (ROOT / folder).rglob("*.py"))
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
FORBIDDEN_NAMES = {"util", "utility", "helper", "manager", "common", "base", "impl", "misc"}
ENGINES = {"torch", "tensorflow", "tflite_runtime", "ai_edge_litert"}
HEAVY = ENGINES | {"aiohttp", "onnx", "zeroconf", "typer", "rich", "cryptography", "PIL", "zstandard"}

COSTLY = {"asyncio", "hashlib", "msgspec", "shutil", "sqlite3", "ssl", "subprocess", "tempfile", "urllib.request"}
"""Of the standard library and of what we stand on: each takes milliseconds to come in."""

MOST_ADDED, MOST_OWN = 20, 30


def dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def in_fresh_python(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, *options, "-c", code)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)


def test_the_house_has_its_rooms() -> None:
    for name in (*PACKAGES, "tests", "benchmarks", "examples", "docs"):
        assert (ROOT / name).is_dir(), name
    for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "Makefile", ".ci/run"):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("path", MODULES + OTHER, ids=str)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    n_lines = text.count("\n")
    assert n_lines <= MAX_FILE_LINES, f"{path} has {n_lines} lines: give a part of it a room of its own"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            length = (node.end_lineno or node.lineno) - first + 1
            assert length <= MAX_FUNCTION_LINES, f"{path}:{node.lineno} {node.name} has {length} lines"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_a_module_says_its_job_in_its_first_line(path: Path) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert text.startswith('"""'), f"{path}: the first line is the docstring"
    docstring = ast.get_docstring(ast.parse(text)) or ""
    first = docstring.split("\n\n")[0]
    assert first.endswith("."), f"{path}: the docstring's first paragraph is one sentence"
    assert first == docstring.splitlines()[0], f"{path}: the sentence stands on one line"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_names_say_what_a_module_holds(path: Path) -> None:
    words = {word.rstrip("s") for part in path.with_suffix("").parts for word in part.split("_")}
    assert not words & FORBIDDEN_NAMES, f"{path}: a name says what a thing is, not that it assists"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_nobody_imports_its_own_package_root(path: Path) -> None:
    package = path.parts[0]
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert package not in {alias.name for alias in node.names}, f"{path}:{node.lineno}: import the leaf module"
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            leaves = {leaf.stem for leaf in (ROOT / package).iterdir()} | {"__version__"}
            if node.module == package:
                assert {alias.name for alias in node.names} <= leaves, f"{path}:{node.lineno}: import the leaf module"


def test_imports_fall() -> None:
    """The floors of docs/architecture.md, checked by import-linter."""
    done = run(TOOLS / "lint-imports", "--no-cache")
    assert done.returncode == 0, done.stdout


def test_style() -> None:
    done = run(TOOLS / "ruff", "check", "--output-format", "concise", ".")
    assert done.returncode == 0, done.stdout


def test_format() -> None:
    done = run(TOOLS / "ruff", "format", "--check", ".")
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_types() -> None:
    done = run(sys.executable, "-m", "mypy")
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_module_is_importable_alone() -> None:
    """Each in a process where none of ours is loaded yet, warnings being errors: nobody leans on another's imports."""
    light, heavy = [], []
    for path in MODULES:
        if path.name != "__main__.py":
            text = (ROOT / path).read_text(encoding="utf-8")
            (heavy if re.search(r"^(import|from) torch\b", text, re.MULTILINE) else light).append(dotted(path))
    words = [*sorted(FOREIGN), "--", *light, "--", "torch", "--", *heavy]
    done = run(sys.executable, "-W", "error", "-c", IMPORT_EACH, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(len(light)), str(len(heavy))]


FOREIGN = {
    "aiohttp.web", "asyncio", "concurrent.futures.process", "cryptography.x509", "ctypes.util", "email.utils",
    "html.parser", "http.server", "importlib.metadata", "logging.handlers", "mmap", "msgspec",
    "multiprocessing.connection", "multiprocessing.spawn", "numpy.ma", "numpy.random", "onnx", "onnxruntime",
    "psutil", "rich.live", "rich.table", "secrets", "sqlite3", "statistics", "typer", "uuid", "zeroconf.asyncio",
    "zstandard",
}  # fmt: skip
"""What is heavy and not ours is loaded once; each of our modules is then imported in a fork of that process. Torch, by
which forks become slow, is loaded before those alone that need it."""

IMPORT_EACH = """
import importlib, os, sys, traceback, warnings
warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)  # the engines' threads do nothing here
foreign, light, heaviest, heavy = (words.split() for words in " ".join(sys.argv[1:]).split("--"))
ours = {name.partition(".")[0] for name in light + heavy}
n_done = n_running = 0

def one_ends():
    global n_done, n_running
    n_done += os.waitstatus_to_exitcode(os.wait()[1]) == 0
    n_running -= 1

def import_each(names):
    for name in names:
        start(name)
    while n_running:
        one_ends()

def start(name):
    global n_running
    if n_running == len(os.sched_getaffinity(0)):
        one_ends()
    n_running += 1
    if not os.fork():
        code = 1
        try:
            importlib.import_module(name)
            code = 0
        except BaseException:
            print(name, traceback.format_exc(), file=sys.stderr, flush=True)
        os._exit(code)
n_failed = 0
for given, names in ((foreign, light), (heaviest, heavy)):
    for name in given:
        importlib.import_module(name)
    assert not [name for name in sys.modules if name.partition(".")[0] in ours]
    n_done = 0
    import_each(names)
    print(n_done)
    n_failed += len(names) - n_done
sys.exit(n_failed > 0)
"""


@pytest.mark.parametrize("code", ["import hybrid", "import hybrid; hybrid.InferenceSession; hybrid.Options"])
def test_the_library_stays_light(code: str) -> None:
    """Everything heavy comes at its first use: neither the name `hybrid` nor the class loads it."""
    done = in_fresh_python(f"{code}; import json, sys; print(json.dumps(sorted(sys.modules)))")
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert not loaded & HEAVY
    assert not loaded & {"edge_agent", "cloud_gateway"}


def test_importing_brings_little_beside_the_engine() -> None:
    """What the time of `benchmarks/import_time.py` is made of: modules beyond those that onnxruntime brings itself."""
    code = "import {}; import json, sys; print(json.dumps(sorted(sys.modules)))"
    ours, engine = (
        set(json.loads(in_fresh_python(code.format(name)).stdout))
        for name in ("hybrid; hybrid.InferenceSession", "onnxruntime")
    )
    added = {name for name in ours - engine if not name.startswith(("hybrid", "devices", "__editable__"))}
    assert not added & COSTLY
    assert len(added) <= MOST_ADDED
    assert len(ours - engine - added) <= MOST_OWN


def test_python_ends_below_3_14() -> None:
    """From Python 3.14 the standard library has a package `compression` (PEP 784), and gzip and lzma use it.

    A folder of that name on sys.path would shadow it: `import gzip` would fail in a checkout, and our own package would
    not be found from an installed wheel. Whoever lifts this bound must rename the folder, or move it below `hybrid`.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == ">=3.11,<3.14"
    assert (ROOT / "compression").is_dir()
    assert "compression" not in sys.stdlib_module_names


def test_the_public_face_is_complete() -> None:
    import hybrid

    for name in hybrid.__all__:
        assert getattr(hybrid, name) is not None, name
    assert set(hybrid.__all__) <= set(dir(hybrid))
    with pytest.raises(AttributeError, match="InferenceSession"):
        hybrid.Session  # noqa: B018
