"""A service's log: bounded, turned over, of the form that the journal reads, and never in the way."""

import io
import logging
import sys
import threading
from pathlib import Path

import pytest

from hybrid.hosting import service_log
from hybrid.hosting.service_log import ServiceLog

log = logging.getLogger("hybrid.test")


def test_lines_have_a_date_and_under_systemd_the_journals_priority(monkeypatch: pytest.MonkeyPatch):
    for environment, begins in (({}, "20"), ({"JOURNAL_STREAM": "8:1"}, "<4>hybrid.test one")):
        text = io.StringIO()
        monkeypatch.setattr(sys, "stderr", text)
        with ServiceLog("warning", environment=environment):
            log.info("not this")
            log.warning("%s\ntwo", "one")
        lines = text.getvalue().splitlines()
        assert lines[0].startswith(begins)
        assert lines[1] == ("<4>two" if environment else "two")
        assert len(lines) == 2


def test_a_line_that_does_not_fit_its_arguments_costs_no_request(monkeypatch: pytest.MonkeyPatch):
    text = io.StringIO()
    monkeypatch.setattr(sys, "stderr", text)
    monkeypatch.setattr(logging.getLogger("hybrid"), "propagate", False)  # pytest's own handler would raise
    with ServiceLog("info", environment={}):
        log.info("number=%d", "one")
        log.info("and on")
    assert text.getvalue().splitlines()[-1].endswith("and on")
    assert "number=%d" in text.getvalue()


def test_files_are_turned_over_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    file = tmp_path / "logs" / "agent.log"
    with ServiceLog("info", file, max_bytes=2000, n_files=2, environment={}) as running:
        for index in range(200):
            log.info("event number=%d", index)
        running.set_level("error")
        log.info("not this")
    found = sorted(path.name for path in file.parent.iterdir())
    assert found == ["agent.log", "agent.log.1", "agent.log.2"]
    assert all(path.stat().st_size <= 2000 for path in file.parent.iterdir())
    assert "number=199" in file.read_text()
    assert running.n_lost == 0


def test_the_handlers_that_were_there_come_back(monkeypatch: pytest.MonkeyPatch):
    before = logging.getLogger("hybrid").handlers
    was = list(before), logging.getLogger("hybrid").level
    with ServiceLog("debug", environment={}):
        assert list(logging.getLogger("hybrid").handlers) != was[0]
    assert (list(logging.getLogger("hybrid").handlers), logging.getLogger("hybrid").level) == was


def test_a_reader_that_stopped_costs_records_and_no_time(monkeypatch: pytest.MonkeyPatch):
    reads = threading.Event()

    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            reads.wait()
            return len(text)

    monkeypatch.setattr(sys, "stderr", Stuck())
    monkeypatch.setattr(service_log, "_MOST_WAITING", 50)
    with ServiceLog("info", environment={}) as running:
        for index in range(2000):
            log.info("event number=%d", index)  # one that waited for the reader would wait for ever
        assert running.n_lost > 1900
        reads.set()


def test_a_file_that_cannot_be_written_costs_records_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = io.StringIO()
    monkeypatch.setattr(sys, "stderr", text)
    with ServiceLog("info", Path("/dev/full"), max_bytes=0, environment={}) as running:
        log.info("event")
    assert running.n_lost == 1
    assert "event" in text.getvalue()
    assert "Traceback" not in text.getvalue()
    assert not list(tmp_path.iterdir())
