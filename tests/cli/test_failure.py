"""How failures are shown: every kind of exception becomes one code, one exit code and advice, never a traceback."""

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest

from compression.errors import UnknownCodec
from devices.errors import ModelFileMissing
from hybrid.cli.failure import failure_of
from hybrid.cli.main import main
from hybrid.cli.words import OWN_PACKAGES, SUMMARIES, MissingExtra, found
from hybrid.errors import CATALOG, DiskFull, ExitCode, GatewayUnreachable

COMMAND = """
error = None

class Command:
    def main(self, args, prog_name, standalone_mode):
        raise error

app = Command()
"""


@pytest.fixture
def run_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs `hybrid broken`, a subcommand that another installed package offers and that raises what a test gives it."""
    (tmp_path / "broken_command.py").write_text(COMMAND)
    (tmp_path / "broken-1.0.dist-info").mkdir()
    (tmp_path / "broken-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (tmp_path / "broken-1.0.dist-info" / "entry_points.txt").write_text(
        "[hybrid.commands]\nbroken = broken_command:app\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_command", raising=False)

    def run(error: BaseException, *arguments: str) -> int:
        import_module("broken_command").error = error
        return main(["broken", *arguments])

    return run


@pytest.mark.parametrize("kind", CATALOG.values(), ids=CATALOG)
def test_every_error_of_the_library_keeps_its_code_and_exit_code(kind, run_broken, capsys) -> None:
    assert run_broken(kind("seen this; wanted that; do so")) == kind.exit_code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error[{kind.code}]: seen this; wanted that; do so\n  do: ")


def test_as_json_a_failure_is_one_object_on_stdout(run_broken, capsys) -> None:
    assert run_broken(GatewayUnreachable("nothing listens on port 1"), "--json") == ExitCode.UNREACHABLE
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    assert answer["error"]["code"] == "gateway_unreachable"
    assert answer["error"]["what"] == "nothing listens on port 1"
    assert answer["error"]["docs"] == "docs/errors.md#gateway_unreachable"
    assert printed.err == ""


def _while_importing() -> ImportError:
    """What pybind11 makes of Ctrl-C while a module is set up."""
    error = ImportError("initialization failed")
    error.__cause__ = KeyboardInterrupt()
    return error


@pytest.mark.parametrize(
    ("error", "code", "exit_code"),
    [
        (KeyboardInterrupt(), "interrupted", ExitCode.INTERRUPTED),
        (_while_importing(), "interrupted", ExitCode.INTERRUPTED),
        (MissingExtra("gateway", "prometheus_client"), "missing_extra", ExitCode.FAILED),
        (ModuleNotFoundError("no", name="prometheus_client.core"), "missing_extra", ExitCode.FAILED),
        (ModuleNotFoundError("no", name="hybrid.cost.gone"), "internal", ExitCode.FAILED),
        (FileNotFoundError(2, "No such file", "model.onnx"), "not_found", ExitCode.NOT_FOUND),
        (PermissionError(13, "Permission denied", "data"), "forbidden", ExitCode.PERMISSION),
        (UnknownCodec("no codec 'zip'"), "unknown_codec", ExitCode.FAILED),
        (ModelFileMissing("no weights.bin", path="m.onnx"), "model_file_missing", ExitCode.NOT_FOUND),
        (DiskFull("no room", path="data"), "disk_full", ExitCode.REFUSED),
        (ZeroDivisionError("division by zero"), "internal", ExitCode.FAILED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_other_exceptions_get_a_code_too(error, code, exit_code) -> None:
    seen = failure_of(error)
    assert (seen.code, seen.exit_code) == (code, exit_code)
    assert seen.why
    assert seen.do


def test_a_traceback_only_when_asked_for(run_broken, capsys) -> None:
    run_broken(ZeroDivisionError("division by zero"))
    assert "Traceback" not in capsys.readouterr().err
    main(["-v", "broken"])
    assert "Traceback" in capsys.readouterr().err


def test_exit_codes_of_a_command_reach_the_shell(run_broken) -> None:
    """In one project `return typer.Exit(1)` made every failure exit 0; here the number must come through."""
    assert run_broken(SystemExit(5)) == 5
    assert run_broken(SystemExit("text")) == 1


def test_another_package_may_offer_a_subcommand(run_broken, capsys) -> None:
    assert main(["--help"]) == ExitCode.OK
    assert "broken      Offered by broken." in capsys.readouterr().out


def test_every_word_of_this_project_has_a_line_of_its_own() -> None:
    own = {word for word, point in found().items() if point.module.partition(".")[0] in OWN_PACKAGES}
    assert own == set(SUMMARIES)
