"""The blob store: resumable, verified, atomic; a full disk, a kill and a rival leave nothing half-stored."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_gateway.blobs import BlobStore
from hybrid.errors import BadMessage, Conflict, CorruptContent, DiskFull, TooLarge

DATA = os.urandom(1 << 20)
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no small file system here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _put(store: BlobStore, data: bytes, sha256: str = SHA, total_bytes: int | None = None) -> Path:
    with store.begin(sha256, offset=0, total_bytes=len(data) if total_bytes is None else total_bytes) as upload:
        upload.append(data)
        return upload.finish()


def test_in_pieces_over_several_lives(tmp_path):
    for start in range(0, len(DATA), 300_000):
        store = BlobStore(tmp_path)  # a new process would do the same
        assert store.offset(SHA) == start
        assert store.find(SHA) is None
        with store.begin(SHA, offset=start, total_bytes=len(DATA)) as upload:
            upload.append(DATA[start : start + 300_000])
            if upload.is_complete:
                upload.finish()
    assert store.find(SHA).read_bytes() == DATA
    assert _files(tmp_path) == [f"blobs/{SHA[:2]}/{SHA}"]
    assert store.find(SHA).stat().st_nlink == 1


def test_the_empty_blob(store):
    empty = hashlib.sha256(b"").hexdigest()
    assert _put(store, b"", empty).read_bytes() == b""


def test_other_bytes_are_dropped(store, tmp_path):
    with pytest.raises(CorruptContent):
        _put(store, DATA[:-1] + bytes([DATA[-1] ^ 1]))
    assert store.find(SHA) is None
    assert store.offset(SHA) == 0
    assert _files(tmp_path) == []
    assert _put(store, DATA).read_bytes() == DATA


def test_a_part_that_rotted_on_the_disk_is_found(store, tmp_path):
    with store.begin(SHA, offset=0, total_bytes=len(DATA)) as upload:
        upload.append(DATA[:500_000])
    [part] = (tmp_path / "parts").iterdir()
    with part.open("r+b") as file:
        file.seek(1000)
        file.write(b"rot")
    with store.begin(SHA, offset=500_000, total_bytes=len(DATA)) as upload:
        upload.append(DATA[500_000:])
        with pytest.raises(CorruptContent):
            upload.finish()
    assert store.offset(SHA) == 0


@pytest.mark.parametrize("offset", [1, 500_001, len(DATA)])
def test_a_wrong_offset_says_where_it_stands(store, offset):
    with store.begin(SHA, offset=0, total_bytes=len(DATA)) as upload:
        upload.append(DATA[:500_000])
    with pytest.raises(Conflict) as caught:
        store.begin(SHA, offset=offset, total_bytes=len(DATA))
    assert caught.value.fields["upload_offset"] == 500_000
    assert store.offset(SHA) == 500_000


def test_one_writer_at_a_time(store):
    with store.begin(SHA, offset=0, total_bytes=len(DATA)) as first:
        with pytest.raises(Conflict):
            BlobStore(store.path(SHA).parents[2]).begin(SHA, offset=0, total_bytes=len(DATA))
        first.append(DATA)
        first.finish()
    assert store.find(SHA).read_bytes() == DATA


def test_many_writers_at_once_end_with_one_blob(store, tmp_path):
    def work():
        while store.find(SHA) is None:
            try:
                offset = store.offset(SHA)
                with store.begin(SHA, offset=offset, total_bytes=len(DATA)) as upload:
                    upload.append(DATA[offset : offset + 100_000])
                    if upload.is_complete:
                        upload.finish()
            except Conflict:
                continue

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert store.find(SHA).read_bytes() == DATA
    assert _files(tmp_path) == [f"blobs/{SHA[:2]}/{SHA}"]


def test_more_than_announced_is_refused(store):
    with store.begin(SHA, offset=0, total_bytes=10) as upload, pytest.raises(BadMessage):
        upload.append(bytes(11))


@pytest.mark.parametrize(("offset", "total_bytes"), [(-1, 10), (11, 10), (0, -1)])
def test_nonsense_sizes_are_refused(store, offset, total_bytes):
    with pytest.raises(BadMessage):
        store.begin(SHA, offset=offset, total_bytes=total_bytes)


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_what_is_no_digest_is_refused(store, digest):
    with pytest.raises(BadMessage):
        store.begin(digest, offset=0, total_bytes=1)
    with pytest.raises(BadMessage):
        store.find(digest)


def test_too_large_is_refused_before_a_byte(tmp_path):
    with pytest.raises(TooLarge):
        BlobStore(tmp_path, max_blob_bytes=100).begin(SHA, offset=0, total_bytes=101)
    assert _files(tmp_path) == []


def test_old_parts_are_swept_young_ones_stay(store, tmp_path):
    other = hashlib.sha256(b"other").hexdigest()
    for sha256 in (SHA, other):
        with store.begin(sha256, offset=0, total_bytes=100) as upload:
            upload.append(b"some")
    old_s = time.time() - 90_000
    os.utime(tmp_path / "parts" / f"{SHA}.part", (old_s, old_s))
    reopened = BlobStore(tmp_path)
    assert reopened.offset(SHA) == 0
    assert reopened.offset(other) == 4


def test_what_would_not_fit_is_refused_before_a_byte(small_disk):
    store = BlobStore(small_disk)
    with pytest.raises(DiskFull) as caught:
        store.begin(SHA, offset=0, total_bytes=8 << 20)
    assert caught.value.fields["wanted_bytes"] == 8 << 20
    assert _files(small_disk) == []


def test_a_disk_that_fills_up_meanwhile_gives_its_room_back(small_disk):
    store = BlobStore(small_disk)
    upload = store.begin(SHA, offset=0, total_bytes=2 << 20)
    upload.append(bytes(500_000))
    filler = small_disk / "filler"
    filler.write_bytes(bytes(3 << 20))
    with pytest.raises(DiskFull):
        upload.append(bytes(1_500_000))
    upload.close()
    assert _files(small_disk) == ["filler"]
    filler.unlink()
    assert _put(store, DATA).read_bytes() == DATA


def test_the_limit_of_a_file_is_a_full_disk(tmp_path):
    script = """
import resource, sys
from pathlib import Path
from cloud_gateway.blobs import BlobStore
from hybrid.errors import DiskFull
store = BlobStore(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
upload = store.begin("0" * 64, offset=0, total_bytes=1 << 20)
try:
    upload.append(bytes(1 << 20))
except DiskFull as exc:
    upload.close()
    print("DiskFull", exc)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("DiskFull"), done.stderr
    assert _files(tmp_path) == []


KILLED = """
import os, sys
from pathlib import Path
from cloud_gateway.blobs import BlobStore
store = BlobStore(Path(sys.argv[1]))
data = Path(sys.argv[2]).read_bytes()
upload = store.begin(sys.argv[3], offset=0, total_bytes=len(data))
for start in range(0, len(data), 4096):
    upload.append(data[start:start + 4096])
    print(start, flush=True)
upload.finish()
print("finished", flush=True)
"""


@pytest.mark.parametrize("after", [1, 17, 100, 200])
def test_a_killed_writer_leaves_a_part_that_goes_on(tmp_path, after):
    (tmp_path / "source").write_bytes(DATA)
    folder = tmp_path / "store"
    writer = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), str(tmp_path / "source"), SHA], stdout=subprocess.PIPE, text=True
    )
    for _ in range(after):
        line = writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    store = BlobStore(folder)
    offset = store.offset(SHA)
    if store.find(SHA) is None:
        assert offset >= int(line) + 4096
        with store.begin(SHA, offset=offset, total_bytes=len(DATA)) as upload:
            upload.append(DATA[offset:])
            upload.finish()
    assert store.find(SHA).read_bytes() == DATA
