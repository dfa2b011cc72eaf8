"""A version waits on a metered link: in the middle of a file, told as deferred, and goes on from there."""

import asyncio
from pathlib import Path

import pytest

from edge_agent.disk import RealDisk
from edge_agent.install.fetching import Downloads, GatewayFiles
from edge_agent.install.index_notes import IndexNotes
from edge_agent.living.held_files import HeldFiles
from hybrid.errors import LinkHeld
from hybrid.transport.chunk_download import Base
from tests.chunks.local_calls import LocalCalls, entries
from tests.chunks.making import layered, reordered, retrained, saved


async def test_a_file_waits_in_its_middle_and_goes_on_after_a_restart(tmp_path: Path):
    old = saved(layered(60, width=120), tmp_path / "old")
    model, changed_bytes = retrained(reordered(layered(60, width=120)), *range(0, 60, 2))
    new = saved(model, tmp_path / "new")
    calls, wanted, disk = LocalCalls(tmp_path / "kept", new, old), entries(new), RealDisk()
    entry, folder = wanted["model.onnx"], tmp_path / "downloads"
    why, n_seen = "", 0

    def why_not() -> str:
        return why

    def advance(n_bytes: int) -> None:
        nonlocal why, n_seen
        n_seen += n_bytes
        why = "metered" if n_seen > entry.size // 2 else ""

    async def fetch(advanced=advance) -> Path:
        files = HeldFiles(GatewayFiles(lambda: calls, disk, IndexNotes(disk, folder)), why_not)
        source = files.source(wanted, [Base(folder=old, files=entries(old))])
        return await Downloads(disk, folder).complete(entry, source, advanced)

    with pytest.raises(LinkHeld, match="metered"):
        await fetch()
    part = folder / f"{entry.sha256}.part"
    assert entry.size // 2 < part.stat().st_size < entry.size
    with pytest.raises(LinkHeld):
        await fetch()
    why = ""
    whole = await fetch(lambda n_bytes: None)
    assert whole.read_bytes() == (new / "model.onnx").read_bytes()
    assert calls.n_index_calls == 1
    assert calls.n_blob_calls == 0
    assert calls.sent_bytes <= 1.05 * changed_bytes + (64 << 10)
    Downloads(disk, folder).clean([])
    assert not list(folder.iterdir())
    await asyncio.sleep(0)
