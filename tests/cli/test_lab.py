"""`hybrid lab` as a shell sees it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
import typer

from devices.lab import check
from devices.shape import Direction, Shape
from hybrid.cli import main
from hybrid.cli.lab_link import figures, link_and_steps
from hybrid.errors import ExitCode
from tests.odd_models import ODD

KINDS = [pytest.param("tun", marks=pytest.mark.root), "proxy"]
ASK = """
import os, sys, time, urllib.request
request = urllib.request.Request(os.environ["HYBRID_GATEWAY"] + sys.argv[1])
if "HYBRID_TOKEN" in os.environ:
    request.add_header("Authorization", "Bearer " + os.environ["HYBRID_TOKEN"])
began_s = time.monotonic()
with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as answer:
    print(answer.status, time.monotonic() - began_s, answer.read().decode()[:200].replace("\\n", " "))
"""


def python(code: str, *words: str) -> list[str]:
    return [sys.executable, "-c", code, *words]


@pytest.mark.parametrize("kind", KINDS)
def test_a_program_s_output_and_exit_code_are_its_own(run_hybrid, kind):
    program = python("import sys; print('hello', sys.argv[1:]); sys.exit(7)", "--device", "x")
    done = run_hybrid("lab", "run", "--kind", kind, "--link", "rtt_s=0.01", "--", *program)
    assert done.returncode == 7, done.stderr
    assert done.stdout == "hello ['--device', 'x']\n"
    lines = done.stderr.splitlines()
    assert [line.split()[0] for line in lines[:7]] == ["lab", "device", "link", "command", "lab:", "up", "down"]
    assert lines[1] == "device   this machine, not slowed down"
    assert lines[2].startswith("link     rtt_s=0.01: no limit up, no limit down, 10 ms round trip; ")
    assert ("real packets (TUN), congestion control" if kind == "tun" else "shaped proxy") in lines[2]
    assert lines[4].startswith("lab: exit code 7 after ")
    quiet = run_hybrid("lab", "run", "-q", "--kind", kind, "--link", "rtt_s=0.01", "--", *program)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (7, "hello ['--device', 'x']\n", "")


@pytest.mark.parametrize("kind", KINDS)
def test_a_command_of_the_user_s_stands_behind_the_link(run_hybrid, kind, tmp_path):
    (tmp_path / "page").write_text("through the link")
    port = "8123" if kind == "tun" else str(free_port())
    done = run_hybrid(
        "lab", "run", "--kind", kind, "--link", "rate_bps=1e7,rtt_s=0.1", "--gateway-port", port, "--json",
        "--gateway-command", f"{sys.executable} -m http.server --bind {{host}} {{port}}", "--", *python(ASK, "/page"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["data"]
    status, seconds, *words = next(line for line in done.stderr.splitlines() if line.startswith("200 ")).split()
    assert status == "200"
    assert words == ["through", "the", "link"]
    assert float(seconds) >= 0.2, "a connection and a request are two round trips"
    assert told["exit_code"] == 0
    assert told["kind"] == kind
    assert told["statistics"]["up"]["n_bytes"] > 50
    assert 0.1 <= told["rtt_s"] < 0.3
    assert told["gateway"].startswith("http://")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_gateway_of_ours_is_started_with_a_model_and_named(run_hybrid, kind, tmp_path):
    onnx.save(ODD["output_used_later"]().model, tmp_path / "My model.onnx")
    done = run_hybrid(
        "lab", "run", "--kind", kind, "--link", "rtt_s=0.02", "--model", "My model.onnx", "--",
        *python(ASK, "/v2/models/my-model"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    status, _, *words = done.stdout.split()
    assert status == "200"
    assert '"my-model"' in " ".join(words)
    assert "hybrid gateway serve, with My model.onnx" in done.stderr


def test_a_trace_is_played_and_a_device_paced(run_hybrid, tmp_path):
    (tmp_path / "mine.csv").write_text("time_s,up_bps,down_bps,rtt_s,loss_ratio\n0,1e6,1e6,0.02,0\n5,1e6,1e6,0.02,0\n")
    program = python("import os; print(os.environ['HYBRID_PACE'])")
    flags = ["--device", "rpi-4b", "--slowdown", "pacing", "--kind", "proxy", "--trace", "mine.csv"]
    done = run_hybrid("lab", "run", *flags, "--", *program)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 1
    assert "device   rpi-4b: " in done.stderr
    assert "plays mine" in done.stderr


@pytest.mark.parametrize(
    ("words", "exit_code", "said"),
    [
        (["--link", "nosuch"], ExitCode.NOT_FOUND, "error[catalog_unknown]: no link is called 'nosuch'"),
        (["--device", "nosuch"], ExitCode.NOT_FOUND, "error[catalog_unknown]: no machine is called 'nosuch'"),
        (["--link", "speed=3"], ExitCode.USAGE, "rate_bps"),
        (["--trace", "draw"], ExitCode.USAGE, "hybrid devices"),
        (["--trace", "nosuch.csv"], ExitCode.NOT_FOUND, "error[trace_missing]: there is no file nosuch.csv"),
        (["--model", "nosuch.onnx"], ExitCode.NOT_FOUND, "error[model_missing]: --model nosuch.onnx: no such file"),
        (["--kind", "proxy", "--model", "own.csv"], ExitCode.FAILED, "error[model_invalid]: the gateway in the lab"),
        (["--serve", "--gateway-command", "x"], ExitCode.USAGE, "--gateway-command"),
        (["--kind", "proxy", "--congestion-control", "cubic"], ExitCode.FAILED, "proxy"),
        (
            ["--kind", "proxy", "--gateway-command", "false", "--gateway-port", "FREE"],
            ExitCode.UNREACHABLE,
            "--gateway-command",
        ),
        (["--kind", "proxy", "--gateway-command", "x", "--gateway-port", "TAKEN"], ExitCode.REFUSED, "in use"),
    ],
)
def test_what_cannot_be_is_told_before_the_program_runs(run_hybrid, tmp_path, words, exit_code, said):
    (tmp_path / "own.csv").write_text("time_s\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = {"FREE": str(free_port()), "TAKEN": str(taken.getsockname()[1])}
        done = run_hybrid("lab", "run", *(ports.get(word, word) for word in words), "--", "echo", "ran")
    assert done.returncode == exit_code, done.stderr
    assert done.stdout == ""
    assert said in done.stderr
    if exit_code == ExitCode.NOT_FOUND:
        assert done.stderr.startswith("error["), "before anything is built"


@pytest.mark.parametrize("kind", KINDS)
def test_a_program_that_is_not_there(run_hybrid, kind):
    done = run_hybrid("lab", "run", "--kind", kind, "--", "no-such-program")
    assert done.returncode == 127
    assert "no-such-program: No such file or directory" in done.stderr


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("kind", KINDS)
def test_being_stopped_takes_everything_along(
    hybrid_command: Path, tmp_path: Path, kind: str, number: int, exit_code: int
) -> None:
    serve = f"{sys.executable} -m http.server --bind {{host}} {{port}}"
    program = python(
        f"import os, time; open({str(tmp_path / 'pids')!r}, 'a').write(f'{{os.getpid()}} {{os.getppid()}} '); "
        "print('runs', flush=True); time.sleep(600)"
    )
    port = "8123" if kind == "tun" else str(free_port())
    process = subprocess.Popen(
        [
            str(hybrid_command), "lab", "run", "--kind", kind, "--gateway-command", serve, "--gateway-port", port,
            "--", *program,
        ],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    with process.stdout as lines:
        assert lines.readline() == "runs\n"
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        assert process.wait(20) == exit_code
    pid, parent = (int(word) for word in (tmp_path / "pids").read_text().split())
    assert parent == process.pid
    end_s = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end_s:
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}").exists()
    assert not [words for words in command_lines() if "http.server" in words and port in words]


@pytest.mark.parametrize("kind", KINDS)
def test_a_check_that_is_stopped_says_so_in_a_line(hybrid_command: Path, kind: str) -> None:
    """Ctrl-C reaches the whole process group, as from a terminal."""
    command = [str(hybrid_command), "lab", "check", "--kind", kind]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, text=True
    )  # fmt: skip
    end_s = time.monotonic() + 30
    while not (asking := children(process.pid)) and time.monotonic() < end_s:
        time.sleep(0.02)
    assert asking
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (ExitCode.INTERRUPTED, "", "interrupted\n")


def children(pid: int) -> list[str]:
    """Processes that measure for this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # gone meanwhile
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append((path.parent / "cmdline").read_text().replace("\0", " "))
    return [words for words in found if "traffic.py ask" in words]


def command_lines() -> list[str]:
    """Of every process of this machine."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # gone meanwhile
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return lines


def test_figures_of_a_link() -> None:
    up = Direction(rate_bps=5e6, delay_s=0.03, jitter_s=0.01, loss_ratio=0.02, queue_bytes=9000, keep_order=False)
    down = Direction(rate_bps=2e7, delay_s=0.03, jitter_s=0.01, loss_ratio=0.02, queue_bytes=9000, keep_order=False)
    text = "up_bps=5e6, down_bps=2e7,rtt_s=0.06,jitter_s=0.01,loss_ratio=0.02,queue_bytes=9000,keep_order=0"
    assert figures(text) == Shape(up=up, down=down)
    assert figures("rate_bps=1e6") == Shape.even(rate_bps=1e6)
    with pytest.raises(typer.BadParameter, match="no number"):
        figures("rate_bps=fast")


def test_a_drawn_trace_is_the_seed_s() -> None:
    _, one, duration_s, name = link_and_steps("lte", "draw", 3)
    _, same, _, _ = link_and_steps("lte", "draw", 3)
    _, other, _, _ = link_and_steps("lte", "draw", 4)
    assert one == same
    assert one != other
    assert one[-1].at_s < duration_s
    assert name == "lte seed=3"


def test_the_check_tells_what_it_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {
        "RATES_BPS": (5e6,),
        "_BULK_S": 0.3,
        "_WARM_UP_S": 0.1,
        "_N_TRACE_STEPS": 3,
        "_N_TRIES": 1,
    }.items():
        monkeypatch.setattr(check, name, value)
    monkeypatch.setattr(check, "_TRACE_STEP_S", 0.2)
    exit_code = main.main(["lab", "check", "--kind", "proxy", "--json"])
    told = json.loads(capsys.readouterr().out)["data"]
    assert [finding["what"] for finding in told["findings"]] == [
        "goodput at 5 Mbit/s", "round trip of 40 ms", "correlation with a trace",
    ]  # fmt: skip
    assert told["kind"] == "proxy"
    assert exit_code == (0 if told["ok"] else 1)
    assert told["ok"] == all(finding["ok"] for finding in told["findings"])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])
