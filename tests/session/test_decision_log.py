"""The decision log: each decision can be made once more from it, and nothing is in it that does not belong there."""

import faulthandler
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hybrid
from hybrid.cli.stats import sums_of
from hybrid.errors import CorruptContent, ExitCode, NotFound
from hybrid.schedule.beliefs import Decision
from hybrid.schedule.prospect import Prospect
from hybrid.schedule.table import Table
from hybrid.session.alternatives import replayed
from hybrid.session.decision_log import LIMIT_VARIABLE, VARIABLE, DecisionLog, _files, read_log
from tests import zoo
from tests.live_gateway import LiveGateway

TABLE = Table((Prospect(placement="local", head_s=0.1),))


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "decisions.jsonl"
    monkeypatch.setenv(VARIABLE, str(path))
    return path


def run_some(gateway: LiveGateway, n: int = 12, **options: object) -> hybrid.InferenceSession:
    feeds = {"x": np.full((1, 3, 48, 192), 0.123456, np.float32)}
    session = hybrid.InferenceSession(
        zoo.path("ppocr_cls"),
        gateway=gateway.url,
        token=gateway.token,
        options=hybrid.Options(**options),  # type: ignore[arg-type]
    )
    session.prepare(feeds)
    for _ in range(n):
        session.run(None, feeds)
    return session


def test_every_decision_is_replayed_from_its_log(gateway: LiveGateway, log: Path) -> None:
    with run_some(gateway) as session:
        kept = session.decisions
    requests, tables = read_log(log)
    assert len(requests) == len(kept) == 12
    for record, (decision, report) in zip(requests, kept, strict=True):
        assert record.decision == decision
        assert record.report.total_s == report.total_s
        again = replayed(record, tables)
        assert again.is_same
        assert sum(alternative.chosen for alternative in again.alternatives) == 1
        assert {"local", "offload"} <= {alternative.prospect.placement for alternative in again.alternatives}
        assert all(alternative.reason for alternative in again.alternatives)
    assert sums_of(requests)["n"] == 12


def test_no_input_and_no_token_is_in_it(gateway: LiveGateway, log: Path) -> None:
    run_some(gateway, placement="offload").close()
    text = log.read_text()
    assert gateway.token not in text
    assert gateway.token.split("_")[2] not in text
    assert "0.123456" not in text
    assert log.stat().st_mode & 0o077 == 0


def test_it_is_put_aside_when_it_is_full(
    gateway: LiveGateway, log: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "20000")
    run_some(gateway, 60).close()
    aside = tmp_path / "decisions.jsonl.1"
    assert aside.stat().st_size < 30_000
    assert log.stat().st_size < 30_000
    for path in (aside, log):
        requests, tables = read_log(path)
        assert all(replayed(record, tables).is_same for record in requests), "each file stands alone"


def test_a_log_that_cannot_be_written_costs_no_request(
    gateway: LiveGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "missing" / "log"))
    with run_some(gateway, 2) as session:
        assert session.report is not None


def put(log: DecisionLog, gateway: str = "", n: int = 1) -> None:
    for _ in range(n):
        log.put("shape", TABLE, Decision(index=0), hybrid.RunReport(gateway=gateway))


def test_credentials_never_reach_it(log: Path) -> None:
    for url in ("http://user:s3cret@box:8700", "https://user:s3@cret@[::1]:8700/path", "http://s3cret@box"):
        decisions = DecisionLog()
        put(decisions, url)
        decisions.put("shape", None, Decision(index=0), hybrid.RunReport(fallback=f"link: {url} broke, as {url}x did"))
    text = log.read_text()
    assert "cret" not in text
    assert "user" not in text
    assert '"gateway":"http://box:8700"' in text
    assert len(read_log(log)[0]) == 6


def test_a_link_is_not_followed(log: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    victim = tmp_path / "precious"
    victim.write_text("mine")
    log.symlink_to(victim)
    put(DecisionLog())
    assert victim.read_text() == "mine"
    assert "decision_log.failed" in caplog.text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.timeout(20)
def test_a_pipe_holds_nobody_up(log: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(log)
    put(DecisionLog())
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    try:
        _files.clear()
        put(DecisionLog())
        assert os.read(reader, 100) == b""
    finally:
        os.close(reader)
    assert caplog.text.count("decision_log.failed") == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_forked_while_a_line_is_written_writes_its_own(log: Path) -> None:
    decisions = DecisionLog()
    put(decisions)
    with _files[str(log)]._lock:  # as if another thread were writing
        child = os.fork()
        if not child:
            faulthandler.dump_traceback_later(10, exit=True)
            put(decisions)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    put(decisions)
    requests, _ = read_log(log)
    assert [(record.n, record.process) for record in requests] == [(1, os.getpid()), (1, child), (2, os.getpid())]


WRITES_MANY = """
import hybrid
from hybrid.schedule.beliefs import Decision
from hybrid.session.decision_log import DecisionLog
from tests.session.test_decision_log import TABLE
log = DecisionLog()
for _ in range(600):
    log.put("shape", TABLE, Decision(index=0), hybrid.RunReport())
"""


def test_several_processes_keep_its_limit_together(
    log: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, root: Path
) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "100000")
    writers = [subprocess.Popen([sys.executable, "-c", WRITES_MANY], cwd=root) for _ in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    for path in (log, tmp_path / "decisions.jsonl.1"):
        assert path.stat().st_size < 110_000
        requests, tables = read_log(path)
        assert requests
        assert set(tables) == {TABLE.id}
    assert (tmp_path / "decisions.jsonl.1").stat().st_size >= 100_000, "it is put aside once it is full, and once only"


def test_a_line_cut_off_by_a_power_cut_is_skipped_and_rubbish_is_named(gateway: LiveGateway, log: Path) -> None:
    run_some(gateway, 3).close()
    whole = log.read_bytes()
    log.write_bytes(whole[:-20])
    assert len(read_log(log)[0]) == 2
    log.write_bytes(b"rubbish\n" + whole)
    with pytest.raises(CorruptContent, match="line 1"):
        read_log(log)
    with pytest.raises(NotFound, match="nowhere"):
        read_log(log.with_name("nowhere"))


def test_the_commands_say_it_in_words_and_in_json(gateway: LiveGateway, log: Path, run_hybrid) -> None:
    run_some(gateway, 5).close()
    done = run_hybrid("why", str(log), "--request", "3")
    assert done.returncode == ExitCode.OK, done.stderr
    assert "request 3 of process" in done.stdout
    assert "the replay decides the same" in done.stdout
    assert f"next: hybrid stats {log}" in done.stderr
    data = json.loads(run_hybrid("why", str(log), "--json").stdout)["data"]
    assert data["is_same"] is True
    assert data["request"]["n"] == 5
    assert data["request"]["process"] == os.getpid()
    done = run_hybrid("stats", str(log))
    assert done.returncode == ExitCode.OK, done.stderr
    assert done.stdout.splitlines()[0].split()[:2] == ["planned", "requests"]
    assert "hedges:" in done.stdout
    sums = json.loads(run_hybrid("stats", str(log), "--json").stdout)["data"]
    assert sums["n"] == 5
    assert run_hybrid("why", str(log), "--request", "99").returncode == ExitCode.NOT_FOUND
    assert run_hybrid("stats", "nowhere.jsonl").returncode == ExitCode.NOT_FOUND
