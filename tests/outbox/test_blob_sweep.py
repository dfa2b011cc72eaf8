"""Files that boxes brought: read in pieces, and gone some days after an upload that no item followed."""

import asyncio
import os
import time
from hashlib import sha256
from pathlib import Path

from cloud_gateway.fleet.intake.blobs import FleetBlobs
from cloud_gateway.fleet.intake.ingest import Ingest
from cloud_gateway.fleet.intake.listing import Listing
from cloud_gateway.fleet.intake.sweep import UNNAMED_S, Sweep
from hybrid.fleet.messages import IngestCall, Item
from tests.outbox.lab import BOX

EPOCH = "e" * 32


def blob_item(seq: int, digest: str, kind: str = "result") -> Item:
    return Item(stream=kind, seq=seq, kind=kind, digest=digest, blob_sha256=digest)  # type: ignore[arg-type]


def age(folder: Path, digest: str, age_s: float) -> None:
    then_s = time.time() - age_s
    os.utime(folder / "boxes" / BOX / "blobs" / digest[:2] / digest, (then_s, then_s))


def test_old_files_that_nothing_names_leave(tmp_path: Path) -> None:
    blobs = FleetBlobs(tmp_path)
    ingest = Ingest(tmp_path, blobs=blobs)
    contents = [bytes([n]) * 5000 for n in range(4)]
    old_named, deferred, old_unnamed, new_unnamed = digests = [sha256(content).hexdigest() for content in contents]
    for digest, content in zip(digests, contents, strict=True):
        blobs.put(BOX, digest, content)
    call = IngestCall(epoch=EPOCH, items=(blob_item(0, old_named), blob_item(0, deferred, "deferred")))
    asyncio.run(ingest.ingest(BOX, call))
    for digest in digests[:3]:
        age(tmp_path, digest, UNNAMED_S + 60.0)
    age(tmp_path, new_unnamed, UNNAMED_S - 60.0)
    (tmp_path / "boxes" / "no box").mkdir()
    sweep = Sweep(ingest.store, blobs)
    assert asyncio.run(sweep.sweep()) == 1
    assert [blobs.size(BOX, digest) >= 0 for digest in digests] == [True, True, False, True]
    assert asyncio.run(sweep.sweep()) == 0
    assert old_unnamed not in blobs.older(BOX, 0.0)
    ingest.close()


def test_a_sweep_of_no_boxes_finds_nothing(tmp_path: Path) -> None:
    blobs = FleetBlobs(tmp_path)
    ingest = Ingest(tmp_path, blobs=blobs)
    assert asyncio.run(Sweep(ingest.store, blobs).sweep()) == 0
    ingest.close()


def test_contents_are_read_in_pieces(tmp_path: Path) -> None:
    blobs = FleetBlobs(tmp_path)
    ingest = Ingest(tmp_path, blobs=blobs)
    large, small = bytes(range(256)) * 40, b"0123456789"
    digest = sha256(large).hexdigest()
    blobs.put(BOX, digest, large)
    inline = Item(stream="result", seq=1, kind="result", digest=sha256(small).hexdigest(), body=small)
    asyncio.run(ingest.ingest(BOX, IngestCall(epoch=EPOCH, items=(blob_item(0, digest), inline))))
    listing = Listing(ingest.store)
    first, second = (one.id for one in listing.list("result"))
    for item_id, content in ((first, large), (second, small)):
        assert listing.content(item_id) == content
        assert listing.content(item_id, offset=3, n_bytes=4) == content[3:7]
        assert listing.content(item_id, offset=len(content), n_bytes=4) == b""
    ingest.close()
