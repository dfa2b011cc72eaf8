"""The decision log: each decision can be made once more from it, and nothing is in it that does not belong there."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

import hybrid
from hybrid.cli.stats import sums_of
from hybrid.errors import CorruptContent, ExitCode, NotFound
from hybrid.session.alternatives import replayed
from hybrid.session.decision_log import LIMIT_VARIABLE, VARIABLE, read_log
from tests import zoo
from tests.live_gateway import LiveGateway


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
