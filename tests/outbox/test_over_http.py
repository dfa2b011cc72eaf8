"""Ingest, outcomes and blobs over HTTP: resumed pieces, others' spaces, broken bodies; what people list and export."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from random import Random

import aiohttp
import msgspec
import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from cloud_gateway.fleet.intake.admin_routes import ITEMS_PATH, add_item_routes
from cloud_gateway.fleet.intake.blobs import FleetBlobs
from cloud_gateway.fleet.intake.export import write_sample
from cloud_gateway.fleet.intake.listing import Listing, StoredThing
from cloud_gateway.fleet.intake.routes import add_ingest_routes
from hybrid.errors import CorruptContent, Forbidden, HybridError, NotFound
from hybrid.fleet.messages import IngestAnswer, IngestCall, Item, OutcomesCall
from hybrid.fleet.sample import Sample, packed_arrays
from hybrid.hosting.http_replies import error_reply
from hybrid.hosting.identity import Identity
from hybrid.serving.body_budget import BodyBudget
from hybrid.transport.fleet_paths import BLOBS_PATH, INGEST_PATH, OUTCOMES_PATH
from tests.outbox.lab import BOX, Gateway

pytestmark = pytest.mark.filterwarnings("ignore::aiohttp.web_exceptions.NotAppKeyWarning")
OTHER = "cd" * 16
EPOCH = "e" * 32


@web.middleware
async def door(request: web.Request, handler) -> web.StreamResponse:
    role = "admin" if "Box" not in request.headers else "device"
    request["identity"] = Identity(token_id="t", role=role)  # type: ignore[arg-type]
    try:
        return await handler(request)
    except HybridError as exc:
        return error_reply(exc)


def box_of(request: web.Request) -> str:
    box = request.headers.get("Box")
    if box is None:
        raise Forbidden("no box asks")
    return box


def named(text: str) -> str:
    if text != "mill":
        raise NotFound("no such box")
    return BOX


class Served:
    def __init__(self, gateway: Gateway, session: aiohttp.ClientSession, url: str, bodies: BodyBudget) -> None:
        self.gateway, self.session, self.url, self.bodies = gateway, session, url, bodies

    async def post(self, path: str, body: bytes, box: str | None = BOX) -> tuple[int, bytes]:
        headers = {} if box is None else {"Box": box}
        async with self.session.post(self.url + path, data=io.BytesIO(body), headers=headers) as answer:
            return answer.status, await answer.read()

    async def bring(self, *items: Item) -> IngestAnswer:
        status, body = await self.post(INGEST_PATH, msgspec.msgpack.encode(IngestCall(epoch=EPOCH, items=items)))
        assert status == 200, body
        return msgspec.msgpack.decode(body, type=IngestAnswer)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    gateway = await asyncio.to_thread(Gateway, tmp_path / "gateway")
    app = web.Application(middlewares=[door], client_max_size=64 << 20)
    blobs, bodies = FleetBlobs(tmp_path / "gateway"), BodyBudget()
    add_ingest_routes(app, gateway.ingest, gateway.deferrals, blobs, box_of=box_of, bodies=bodies)
    add_item_routes(app, Listing(gateway.ingest.store), named)
    server = TestServer(app)
    await server.start_server()
    async with aiohttp.ClientSession() as session:
        yield Served(gateway, session, f"http://127.0.0.1:{server.port}", bodies)
    await server.close()
    gateway.ingest.close()


def item(seq: int, body: bytes, stream: str = "result") -> Item:
    return Item(stream=stream, seq=seq, kind=stream, digest=sha256(body).hexdigest(), body=body)  # type: ignore[arg-type]


async def test_broken_bodies_are_refused_and_change_nothing(served: Served) -> None:
    """Random bytes, cut and changed calls: a named refusal or a sound answer, no memory held, the next works."""
    rng = Random(5)
    good = msgspec.msgpack.encode(IngestCall(epoch=EPOCH, items=tuple(item(n, b"%d" % n) for n in range(3))))
    for n in range(300):
        broken = bytearray(good)
        if n % 3 == 0:
            broken = bytearray(rng.randbytes(rng.randrange(200)))
        elif n % 3 == 1:
            del broken[rng.randrange(len(broken)) :]
        else:
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        status, body = await served.post(rng.choice([INGEST_PATH, OUTCOMES_PATH]), bytes(broken))
        assert status in (200, 400, 413, 426), (status, body)
    assert served.bodies.n_bytes == 0
    status, _ = await served.post(INGEST_PATH, bytes((8 << 20) + 1))
    assert status == 413
    status, _ = await served.post(INGEST_PATH, good, box=None)
    assert status == 403
    call = msgspec.msgpack.encode(IngestCall(epoch="f" * 32, items=(item(0, b"next"),)))
    status, body = await served.post(INGEST_PATH, call)
    assert status == 200
    assert msgspec.msgpack.decode(body, type=IngestAnswer).acked == {"result": 0}
    assert served.gateway.bodies(OTHER) == []


async def test_a_blob_comes_in_pieces_to_its_own_box_alone(served: Served) -> None:
    content = Random(1).randbytes(3_000_000)
    digest = sha256(content).hexdigest()
    path = f"{served.url}{BLOBS_PATH}/{digest}"

    async def piece(offset: int, data: bytes, total: int = len(content)) -> tuple[int, str]:
        headers = {"Box": BOX, "Upload-Offset": str(offset), "Upload-Length": str(total)}
        async with served.session.patch(path, data=io.BytesIO(data), headers=headers) as answer:
            return answer.status, answer.headers.get("Upload-Offset", "")

    async def state(box: str) -> tuple[int, str, str]:
        async with served.session.head(path, headers={"Box": box}) as answer:
            return answer.status, answer.headers["Upload-Offset"], answer.headers["Upload-Complete"]

    assert await state(BOX) == (404, "0", "?0")
    assert await piece(0, content[:1_000_000]) == (204, "1000000")
    assert (await piece(500_000, content[500_000:600_000]))[0] == 409
    assert await state(BOX) == (200, "1000000", "?0")
    assert await piece(1_000_000, content[1_000_000:]) == (201, "3000000")
    assert await state(BOX) == (200, "3000000", "?1")
    assert (await state(OTHER))[0] == 404
    assert (await piece(0, b"", (64 << 20) + 1))[0] == 413 or (await state(BOX))[2] == "?1"
    async with served.session.get(path, headers={"Box": OTHER}) as answer:
        assert answer.status == 404
    async with served.session.get(path, headers={"Box": BOX, "Range": "bytes=2999990-"}) as answer:
        assert (answer.status, await answer.read()) == (206, content[-10:])
    named_item = Item(stream="result", seq=0, kind="result", digest=digest, blob_sha256=digest)
    assert (await served.bring(named_item)).acked == {"result": 0}
    for broken in ("../" * 4 + "etc/passwd", "A" * 64, "0" * 63, "%00" * 5):
        async with served.session.head(f"{served.url}{BLOBS_PATH}/{broken}", headers={"Box": BOX}) as answer:
            assert answer.status in (400, 404)


async def test_outcomes_are_waited_for_within_bounds(served: Served) -> None:
    call = msgspec.msgpack.encode(OutcomesCall(epoch=EPOCH, wait_s=0.2))
    status, _ = await served.post(OUTCOMES_PATH, call)
    assert status == 200
    status, body = await served.post(OUTCOMES_PATH, msgspec.msgpack.encode(OutcomesCall(epoch=EPOCH, wait_s=1e9)))
    assert (status, json.loads(body)["code"]) == (400, "bad_message")


async def test_people_list_read_and_remove(served: Served) -> None:
    await served.bring(*(item(n, b"%d:" % n + bytes(n)) for n in range(5)), item(0, b"t", "telemetry"))

    async def listed(query: str) -> tuple[int, dict]:
        async with served.session.get(f"{served.url}{ITEMS_PATH}?{query}") as answer:
            return answer.status, await answer.json()

    status, told = await listed("kind=result&box=mill&limit=3")
    assert status == 200
    assert [(one["seq"], one["box"]) for one in told["items"]] == [(0, BOX), (1, BOX), (2, BOX)]
    assert {amount["kind"]: amount["n_items"] for amount in told["amounts"]} == {"result": 5, "telemetry": 1}
    _, rest = await listed(f"kind=result&after={told['items'][-1]['id']}")
    assert [one["seq"] for one in rest["items"]] == [3, 4]
    for broken in ("kind=deferred", "kind=result&limit=0", "kind=result&after=x", "kind=result&limit=99999"):
        assert (await listed(broken))[0] == 400
    assert (await listed("kind=result&box=nobody"))[0] == 404
    async with served.session.get(f"{served.url}{ITEMS_PATH}/{rest['items'][-1]['id']}?offset=2") as answer:
        assert await answer.read() == bytes(4)
    async with served.session.get(
        f"{served.url}{ITEMS_PATH}/{rest['items'][-1]['id']}", headers={"Box": BOX}
    ) as answer:
        assert answer.status == 403, "a box is no administrator"
    wish = json.dumps({"kind": "result", "up_to": told["items"][-1]["id"]}).encode()
    status, body = await served.post(f"{ITEMS_PATH}/remove", wish, box=None)
    assert (status, json.loads(body)) == (200, {"n_removed": 3})
    _, left = await listed("kind=result")
    assert [one["seq"] for one in left["items"]] == [3, 4]
    assert {amount["kind"]: amount["n_items"] for amount in left["amounts"]} == {"result": 2, "telemetry": 1}
    assert (await served.bring(item(1, b"1:" + bytes(1)))).acked == {"result": 4}, "removed is not forgotten"
    assert len((await listed("kind=result"))[1]["items"]) == 2


def test_a_sample_is_exported_as_arrays_without_pickle(tmp_path: Path) -> None:
    feeds = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "text": np.array([b"one", b"three"], dtype=object)}
    inputs, output = packed_arrays(feeds, {"y": np.float64(3.5) * np.ones(2)})
    sample = Sample(
        id="0" * 12, model="m", model_digest="d" * 64, variant="", made_s=1.0, label='{"class":1}',
        inputs=inputs, output=output,
    )  # fmt: skip
    content = sample.encoded()
    one = StoredThing(
        id=7, box=BOX, kind="sample", stream="sample", epoch=EPOCH, seq=0, made_s=None, received_s=2.0,
        n_bytes=len(content), sha256=sha256(content).hexdigest(),
    )  # fmt: skip
    write_sample(tmp_path, one, content)
    with np.load(tmp_path / BOX / "000000000007.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["input.x"], feeds["x"])
        assert arrays["input.text"].tolist() == [b"one", b"three"]
        assert arrays["output.y"].tolist() == [3.5, 3.5]
    (line,) = (tmp_path / "index.jsonl").read_text().splitlines()
    told = json.loads(line)
    assert (told["label"], told["file"], told["model"]) == ({"class": 1}, f"{BOX}/000000000007.npz", "m")
    with pytest.raises(CorruptContent):
        write_sample(tmp_path, one, content + b"x")
