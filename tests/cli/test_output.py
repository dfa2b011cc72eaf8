"""The shared way to speak: results, streams, notes, progress, and amounts in real units."""

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
from rich.console import Console

from hybrid.cli import output
from hybrid.cli.main import main
from hybrid.cli.table import table
from tests.odd_models import ODD


@dataclass(frozen=True)
class Row:
    name: str
    path: Path


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _loud():
    yield
    output.be_quiet(quiet=False)


ROWS = [("", "name", "what it is"), ("*", "a", "short"), ("", "bee", "a long text that nobody can put on such a line")]


def test_a_table_is_aligned_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert table(ROWS)[:2] == ["   name  what it is", "*  a     short"]
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert table([*ROWS, ("", "x" * 200, "")])[0].startswith("   name   "), "a file has all the room that there is"


def test_a_table_is_blocks_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert table(ROWS) == [
        "name        * a",
        "what it is  short",
        "",
        "name        bee",
        "what it is  a long text that nobody can",
        "            put on such a line",
    ]


@pytest.mark.parametrize("words", ["devices", "devices show lte", "explain", "plan sound.onnx"])
def test_commands_fit_a_narrow_terminal(monkeypatch, tmp_path, capsys, words) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(ODD["output_used_later"]().model, "sound.onnx")
    monkeypatch.setenv("COLUMNS", "60")
    assert main(words.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    wide = [line for line in lines if len(line) > 60 and "https://" not in line]
    assert [line for line in wide if "  " in line.strip()] == [], "nothing that is aligned breaks"


def test_one_result_for_two_readers(capsys) -> None:
    output.result([Row("a", Path("/x"))], "a  /x", json=True)
    assert json.loads(capsys.readouterr().out) == {"ok": True, "data": [{"name": "a", "path": "/x"}], "error": None}
    output.result([Row("a", Path("/x"))], "a  /x", json=False)
    assert capsys.readouterr().out == "a  /x\n"


def test_a_stream_is_one_object_a_line(capsys) -> None:
    output.event({"n": 1}, "one", json=True)
    output.event({"n": 2}, "two", json=True)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [{"n": 1}, {"n": 2}]


def test_notes_go_to_stderr_and_can_be_kept_back(capsys) -> None:
    output.note("next: hybrid demo")
    output.be_quiet(quiet=True)
    output.note("nobody reads this")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "next: hybrid demo\n")


@pytest.mark.parametrize(
    ("settings", "decorated"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)], ids=str
)
def test_decoration_only_on_a_willing_terminal(monkeypatch, settings, decorated) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert output.decorated(Terminal()) is decorated
    assert output.decorated(io.StringIO()) is False


def test_without_a_terminal_progress_is_a_line_every_five_seconds() -> None:
    clock, lines = [0.0], []
    progress = output._Lines("pushing", 120e6, "bytes", write=lines.append, now_s=lambda: clock[0])
    for second in range(11):
        clock[0] = float(second)
        progress.advance(10e6)
    assert lines == ["pushing: 60.0 / 120.0 MB", "pushing: 110.0 / 120.0 MB"]


def test_progress_writes_nothing_to_stdout(capsys) -> None:
    with output.progress("counting", 3, "devices") as bar:
        for _ in range(3):
            bar.advance(1)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("room", [40, 60, 80, 120])
def test_a_long_label_leaves_the_figures_and_the_time_left_whole(room) -> None:
    shown = io.StringIO()
    console = Console(file=shown, width=room, force_terminal=True, color_system=None)
    with output._bar("compressing", 1800, "s of the budget", console) as bar:
        bar.rename("model.onnx: training pruned-50 int8 U8S8 minmax bias-corrected, 35%")
        bar.advance(123)
    last = [line for line in shown.getvalue().splitlines() if "1800" in line][-1]
    assert "123/1800 s" in last
    assert len(re.findall(r"(\d:\d\d|-:--):(\d\d|--)", last)) == 2, last
    assert room < 60 or "model.onnx: tr" in last


@pytest.mark.parametrize(
    ("done", "total", "unit", "text"),
    [
        (12, 14, "devices", "12 / 14 devices"),
        (34.1e6, 120e6, "bytes", "34.1 / 120.0 MB"),
        (0, 0, "bytes", "0.0 / 0.0 bytes"),
    ],
)
def test_amounts_have_real_units(done, total, unit, text) -> None:
    assert output.amount(done, total, unit) == text
