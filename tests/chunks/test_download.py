"""Updates as they happen: little crosses the link, every break is gone on from, and nothing wrong is ever kept."""

import random
from pathlib import Path

import pytest

from hybrid.artifact.chunk_messages import IndexAnswer, IndexCall, RangesCall, compress, digest_of
from hybrid.artifact.chunks import Chunk, ChunkIndex, encode
from hybrid.artifact.manifest import FileEntry
from hybrid.errors import ConnectionLost, NotFound, Overloaded
from hybrid.transport.chunk_download import Base, ChunkedFiles
from hybrid.transport.chunk_notes import FolderNotes
from tests import zoo
from tests.chunks.local_calls import LocalCalls, entries
from tests.chunks.making import Update, layered, reordered, retrained, saved
from tests.chunks.test_extents import flat_model

ALLOWED_BYTES = 64 << 10


@pytest.mark.parametrize("gateway_has_old", [True, False])
@pytest.mark.parametrize("external", [False, True])
async def test_two_thousand_reordered_tensors_of_which_one_changed(
    tmp_path: Path, gateway_has_old: bool, external: bool
):
    old = layered(2000)
    new, changed_bytes = retrained(reordered(old), 1234)
    update = Update(
        tmp_path,
        saved(old, tmp_path / "old", external=external),
        saved(new, tmp_path / "new", external=external),
        gateway_has_old=gateway_has_old,
    )
    assert await update.run() <= 1.05 * changed_bytes + ALLOWED_BYTES
    assert update.calls.n_blob_calls == 0


async def test_renamed_tensors_are_not_sent_again(tmp_path: Path):
    old, new = layered(500), layered(500, name="onnx::MatMul_{}")
    update = Update(tmp_path, saved(old, tmp_path / "old"), saved(new, tmp_path / "new"), gateway_has_old=False)
    assert await update.run() <= ALLOWED_BYTES


async def test_one_retrained_layer_of_a_real_model(tmp_path: Path):
    import onnx

    old = onnx.load(zoo.path("minilm"))
    sizes = [len(tensor.raw_data) for tensor in old.graph.initializer]
    new, changed_bytes = retrained(
        reordered(old), *[i for i, size in enumerate(sizes) if size == sorted(sizes)[-4]][:1]
    )
    update = Update(tmp_path, saved(old, tmp_path / "old"), saved(new, tmp_path / "new"))
    assert await update.run() <= 1.05 * changed_bytes + ALLOWED_BYTES


@pytest.mark.parametrize("by_offset", [False, True])
async def test_tflite_buffers_in_another_order(tmp_path: Path, by_offset: bool):
    rng = random.Random(8)
    contents = [rng.randbytes(rng.randrange(100, 40_000)) for _ in range(60)]
    changed = rng.randbytes(30_000)
    for name, buffers in (("old", contents), ("new", [*contents[30:], changed, *contents[:30]])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.tflite").write_bytes(flat_model(buffers, by_offset=by_offset))
    update = Update(tmp_path, tmp_path / "old", tmp_path / "new")
    assert await update.run() <= 1.05 * len(changed) + ALLOWED_BYTES
    assert update.files.traffic.range_bytes == len(changed)


async def test_any_other_model_of_the_box_will_do(tmp_path: Path):
    old, other = saved(layered(50), tmp_path / "a"), saved(layered(50, seed=9), tmp_path / "b")
    new = saved(reordered(layered(50, seed=9)), tmp_path / "new")
    calls = LocalCalls(tmp_path / "notes", new)
    wanted = entries(new)
    bases = [Base(folder=folder, files=entries(folder)) for folder in (old, other)]
    files = ChunkedFiles(calls, wanted, bases)
    data = b"".join([block async for block in files.blob(wanted["model.onnx"].sha256, 0)])
    assert data == (new / "model.onnx").read_bytes()
    assert files.traffic.range_bytes == 0


async def whole(files: ChunkedFiles, sha256: str, part: bytearray) -> int:
    """Go on until the file is there; how often it broke."""
    n_breaks = 0
    while True:
        try:
            async for block in files.blob(sha256, len(part)):
                part += block
            return n_breaks
        except ConnectionLost:
            n_breaks += 1


@pytest.mark.parametrize("restarts", [False, True])
async def test_after_every_break_only_what_is_missing_comes(tmp_path: Path, restarts: bool):
    """Broken after each 3,000 bytes; a restart forgets everything but the part and the note beside it."""
    old = saved(layered(40), tmp_path / "old")
    model, changed_bytes = retrained(reordered(layered(40)), *range(12))
    new = saved(model, tmp_path / "new")
    calls, wanted = LocalCalls(tmp_path / "kept", new, old), entries(new)
    sha256, part, n_breaks = wanted["model.onnx"].sha256, bytearray(), 0
    notes = FolderNotes(tmp_path / "parts")
    base = Base(folder=old, files=entries(old))
    files = ChunkedFiles(calls, wanted, [base], notes=notes)
    while len(part) < wanted["model.onnx"].size:
        calls.break_after = 3000
        if restarts:
            files = ChunkedFiles(calls, wanted, [base], notes=notes)
        try:
            async for block in files.blob(sha256, len(part)):
                part += block
        except ConnectionLost:
            n_breaks += 1
    assert bytes(part) == (new / "model.onnx").read_bytes()
    assert n_breaks == pytest.approx(changed_bytes / 3000, abs=1)
    assert calls.n_index_calls == 1
    assert calls.sent_bytes <= changed_bytes + n_breaks * 300 + 4000
    files.done(sha256)
    assert not list((tmp_path / "parts").iterdir())


async def test_a_start_at_any_byte_gives_the_rest(tmp_path: Path):
    old = saved(layered(6, width=9), tmp_path / "old")
    new = saved(retrained(reordered(layered(6, width=9)), 2)[0], tmp_path / "new")
    with (new / "model.onnx").open("ab") as file:
        file.write(bytes(40_000))
    update = Update(tmp_path, old, new)
    data = (new / "model.onnx").read_bytes()
    entry = update.wanted["model.onnx"]
    for offset in [*range(0, 2600, 37), len(data) - 1, len(data)]:
        assert b"".join([block async for block in update.files.blob(entry.sha256, offset)]) == data[offset:]
    assert update.calls.n_blob_calls == 0


class Lying(LocalCalls):
    """A gateway that answers as it is told to."""

    def __init__(self, notes: Path, *folders: Path) -> None:
        super().__init__(notes, *folders)
        self.answer: IndexAnswer | Exception | None = None
        self.parts: bytes | Exception | None = None

    async def chunk_index(self, call: IndexCall) -> IndexAnswer:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer or await super().chunk_index(call)

    async def chunk_ranges(self, call: RangesCall):
        if isinstance(self.parts, Exception):
            raise self.parts
        if self.parts is not None:
            yield self.parts
            return
        async for block in super().chunk_ranges(call):
            yield block


def lying(tmp_path: Path) -> tuple[Lying, ChunkedFiles, FileEntry, bytes]:
    old = saved(layered(20), tmp_path / "old")
    new = saved(retrained(layered(20), 3, 4)[0], tmp_path / "new")
    calls, wanted = Lying(tmp_path / "kept", new, old), entries(new)
    files = ChunkedFiles(calls, wanted, [Base(folder=old, files=entries(old))])
    return calls, files, wanted["model.onnx"], (new / "model.onnx").read_bytes()


def answer(data: bytes, **changes: bytes) -> IndexAnswer:
    return IndexAnswer(**({"body": compress(data), "digest": digest_of(data)} | changes))


def one_chunk(size: int) -> bytes:
    return encode(ChunkIndex(size=size, piece_bytes=16 << 20, chunks=(Chunk(0, size, b"abcdef"),)))


@pytest.mark.parametrize(
    "told",
    [
        pytest.param(NotFound("an old gateway"), id="no such call"),
        pytest.param(answer(b"nonsense"), id="nonsense"),
        pytest.param(IndexAnswer(body=b"x", digest=b""), id="no frame"),
        pytest.param(answer(one_chunk(5)), id="of another file"),
        pytest.param(answer(one_chunk(5), digest=b"12345678"), id="another digest"),
        pytest.param(answer(one_chunk(5), dictionary=b"12345678"), id="against an unknown index"),
    ],
)
async def test_a_bad_index_ends_in_the_plain_download(tmp_path: Path, told: IndexAnswer | Exception):
    calls, files, entry, data = lying(tmp_path)
    calls.answer = told
    assert b"".join([block async for block in files.blob(entry.sha256, 0)]) == data
    assert calls.n_blob_calls == 1
    assert b"".join([block async for block in files.blob(entry.sha256, 7)]) == data[7:]


async def test_overload_is_told_to_the_caller(tmp_path: Path):
    calls, files, entry, data = lying(tmp_path)
    calls.answer = Overloaded("later")
    with pytest.raises(Overloaded):
        _ = [block async for block in files.blob(entry.sha256, 0)]
    calls.answer = None
    assert b"".join([block async for block in files.blob(entry.sha256, 0)]) == data
    assert calls.n_blob_calls == 0


async def test_parts_that_end_early_are_gone_on_from(tmp_path: Path):
    calls, files, entry, data = lying(tmp_path)
    calls.parts = b"only this"
    with pytest.raises(ConnectionLost):
        _ = [block async for block in files.blob(entry.sha256, 0)]
    calls.parts = None
    part = bytearray()
    await whole(files, entry.sha256, part)
    assert part == data


async def test_a_file_that_vanished_on_the_gateway_is_asked_for_whole(tmp_path: Path):
    calls, files, entry, data = lying(tmp_path)
    calls.parts = NotFound("gone")
    assert b"".join([block async for block in files.blob(entry.sha256, 0)]) == data
    assert calls.n_blob_calls == 1


async def test_wrong_parts_are_seen_by_the_digest_and_the_second_attempt_is_plain(tmp_path: Path):
    calls, files, entry, data = lying(tmp_path)
    calls.parts = bytes(64 << 10)
    assert b"".join([block async for block in files.blob(entry.sha256, 0)]) != data
    files.distrust(entry.sha256)
    assert b"".join([block async for block in files.blob(entry.sha256, 0)]) == data
    assert calls.n_blob_calls == 1


async def test_names_that_collide_are_seen_by_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With names of no bits at all: everything of one size is taken for the same, and the plain download mends it."""
    for place in ("hybrid.artifact.chunks.name_of", "hybrid.transport.chunk_download.name_of"):
        monkeypatch.setattr(place, lambda content: b"abcdef")
    _, files, entry, data = lying(tmp_path)
    assert b"".join([block async for block in files.blob(entry.sha256, 0)]) != data
    files.distrust(entry.sha256)
    assert b"".join([block async for block in files.blob(entry.sha256, 0)]) == data


async def test_a_local_file_that_changes_between_index_and_copy_is_not_believed(tmp_path: Path):
    calls, files, entry, data = lying(tmp_path)
    stream = files.blob(entry.sha256, 0)
    seen = bytearray(await anext(stream))
    (tmp_path / "old" / "model.onnx").write_bytes(bytes(entry.size // 2))
    async for block in stream:
        seen += block
    assert seen == data
    assert calls.n_blob_calls == 0


async def test_a_local_file_that_is_not_what_its_manifest_says_costs_nothing_but_bytes(tmp_path: Path):
    _, files, entry, data = lying(tmp_path)
    (tmp_path / "old" / "model.onnx").write_bytes(b"short")
    assert b"".join([block async for block in files.blob(entry.sha256, 0)]) == data


async def test_a_damaged_note_is_fetched_again(tmp_path: Path):
    calls, _, entry, data = lying(tmp_path)
    notes = FolderNotes(tmp_path / "parts")
    notes.save(entry.sha256, b"damaged")
    old = tmp_path / "old"
    files = ChunkedFiles(calls, entries(tmp_path / "new"), [Base(folder=old, files=entries(old))], notes=notes)
    assert b"".join([block async for block in files.blob(entry.sha256, 0)]) == data
    assert files.traffic.index_bytes > 0 == calls.n_blob_calls


async def test_without_anything_here_and_for_small_files_the_plain_download_is_taken(tmp_path: Path):
    old, new = saved(layered(2), tmp_path / "old"), saved(layered(3), tmp_path / "new")
    calls, wanted = LocalCalls(tmp_path / "kept", new, old), entries(new)
    for bases in ([], [Base(folder=old, files=entries(old))]):
        files = ChunkedFiles(calls, wanted, bases)
        data = b"".join([block async for block in files.blob(wanted["model.onnx"].sha256, 0)])
        assert data == (new / "model.onnx").read_bytes()
    assert (calls.n_index_calls, calls.n_blob_calls) == (0, 2)
