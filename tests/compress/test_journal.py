"""The journal: what is kept is there whole or not at all, and nothing unsound is believed."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hybrid.compress.journal import ASIDE, NOTE, Journal
from hybrid.errors import Conflict, DiskFull


def test_what_was_kept_is_found_by_a_later_call(tmp_path):
    with Journal(tmp_path, ["facts"]) as journal:
        journal.keep(["model", 1], {"a": 1}, {"model.onnx": b"bytes"})
    with Journal(tmp_path, ["facts"]) as journal:
        found = journal.find(["model", 1])
        assert found is not None
        assert (found.content, found.path("model.onnx").read_bytes()) == (b'{"a":1}', b"bytes")
        assert journal.find(["model", 2]) is None
        assert journal.n_known == 1


def test_what_depends_on_other_facts_is_not_found(tmp_path):
    with Journal(tmp_path, ["seed", 0]) as journal:
        journal.keep("key", 1)
    with Journal(tmp_path, ["seed", 1]) as journal:
        assert journal.find("key") is None


def test_again_begins_anew(tmp_path):
    with Journal(tmp_path, []) as journal:
        journal.keep("key", 1)
    with Journal(tmp_path, [], again=True) as journal:
        assert journal.find("key") is None


@pytest.mark.parametrize(
    "harm", ["file", "file missing", "note", "content", "no note", "another's place", "a file there"]
)
def test_what_is_not_sound_is_set_aside_and_can_be_kept_again(tmp_path, harm):
    with Journal(tmp_path, []) as journal:
        kept = journal.keep("key", {"drop": 1}, {"model.onnx": b"bytes"})
        other = journal.keep("other", {"drop": 2}, {"model.onnx": b"others"})
        note = kept.path(NOTE)
        match harm:
            case "file":
                kept.path("model.onnx").write_bytes(b"other")
            case "file missing":
                kept.path("model.onnx").unlink()
            case "note":
                note.write_bytes(note.read_bytes()[:-9])
            case "content":
                note.write_bytes(note.read_bytes().replace(b'"drop":1', b'"drop":7'))
            case "no note":
                note.unlink()
            case "another's place":
                note.write_bytes(other.path(NOTE).read_bytes())
                kept.path("model.onnx").write_bytes(b"others")
            case "a file there":
                for file in kept.folder.iterdir():
                    file.unlink()
                kept.folder.rmdir()
                kept.folder.write_bytes(b"")
        assert journal.find("key") is None
        assert journal.n_aside == 1
        assert len(list((tmp_path / ASIDE).iterdir())) == 1
        journal.keep("key", {"drop": 1}, {"model.onnx": b"bytes"})
        assert journal.find("key") is not None
        assert journal.find("other") is not None


def test_two_processes_do_not_share_a_folder(tmp_path):
    with Journal(tmp_path, []), pytest.raises(Conflict, match="in use by another process"):
        Journal(tmp_path, [])
    Journal(tmp_path, []).close()


def test_a_full_disk_leaves_nothing_half_kept(tmp_path, monkeypatch):
    with Journal(tmp_path, []) as journal:
        journal.keep("before", 1)

        def full(_handle: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("hybrid.compress.journal.os.fsync", full)
        with pytest.raises(DiskFull, match="no room"):
            journal.keep("key", 1, {"model.onnx": b"bytes"})
        monkeypatch.undo()
        assert journal.find("key") is None
        assert journal.find("before") is not None
    assert not list(tmp_path.glob(".tmp-*"))


def test_killed_at_any_moment_it_holds_only_what_is_whole(tmp_path):
    """A process that keeps one piece after the other is killed; every piece that is there is sound."""
    program = (
        "import sys; from pathlib import Path; from hybrid.compress.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]), [])\n"
        "for n in range(100000):\n"
        "    journal.keep(n, n, {'model.onnx': bytes([n % 256]) * 200000})\n"
        "    print(n, flush=True)\n"
    )
    for after in (1, 5):
        with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            for _ in range(after):
                child.stdout.readline()
            time.sleep(0.003 * after)
            child.send_signal(signal.SIGKILL)
        with Journal(tmp_path, []) as journal:
            for n in range(after):
                found = journal.find(n)
                assert found is not None
                assert found.path("model.onnx").read_bytes() == bytes([n % 256]) * 200000
            assert journal.n_aside == 0
    assert not _halves(tmp_path)


def _halves(folder: Path) -> list[Path]:
    return list(folder.glob(".tmp-*"))
