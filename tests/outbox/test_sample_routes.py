"""Samples over HTTP: brought with a label by programs, listed and removed by people, refused in words."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from edge_agent.samples.paths import SAMPLES_PATH
from edge_agent.samples.routes import Parts, add_sample_routes
from edge_agent.samples.store import Samples
from hybrid.hosting.front_door import require
from hybrid.serving.body_budget import BodyBudget
from tests.outbox.lab import outbox_of, running
from tests.outbox.test_over_http import door
from tests.outbox.test_samples import DIGEST, samples_of

pytestmark = pytest.mark.filterwarnings("ignore::aiohttp.web_exceptions.NotAppKeyWarning")
X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[str, Samples, BodyBudget]]:
    outbox = outbox_of(tmp_path / "outbox", None)
    samples = samples_of(tmp_path / "samples", outbox, lambda model: "off" if model == "shy" else "keep")
    bodies = BodyBudget()
    app = web.Application(middlewares=[door])
    known = {"cat": (DIGEST, "int8"), "shy": (DIGEST, "")}
    add_sample_routes(app, Parts(samples=samples, admit=require, digest_of=known.get, bodies=bodies))
    server = TestServer(app)
    await server.start_server()
    async with running(outbox, samples):
        yield f"http://127.0.0.1:{server.port}{SAMPLES_PATH}", samples, bodies
    await server.close()


async def ask(method: str, url: str, body: bytes | None = None, **headers: str) -> tuple[int, dict]:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, data=body, headers={k.replace("_", "-"): v for k, v in headers.items()}) as answer,
    ):
        return answer.status, await answer.json()


def call() -> bytes:
    tensor = {"name": "x", "shape": [2, 3], "datatype": "FP32", "data": X.tolist()}
    return json.dumps({"inputs": [tensor]}).encode()


async def test_brought_listed_and_removed(served: tuple[str, Samples, BodyBudget]) -> None:
    url, samples, bodies = served
    status, told = await ask("POST", f"{url}/models/cat", call(), Hybrid_Label='{"class": 3}')
    assert (status, told["kept"]) == (201, True)
    kept = await samples.read(told["id"])
    assert (kept.model, kept.model_digest, kept.variant, kept.label) == ("cat", DIGEST, "int8", '{"class":3}')
    assert np.array_equal(kept.input_arrays()["x"], X)
    header = json.dumps({"inputs": [
        {"name": "x", "shape": [2, 3], "datatype": "FP32", "parameters": {"binary_data_size": 24}},
    ]}).encode()  # fmt: skip
    length = str(len(header))
    status, binary = await ask(
        "POST", f"{url}/models/cat", header + X.tobytes(), Inference_Header_Content_Length=length
    )
    assert status == 201
    assert np.array_equal((await samples.read(binary["id"])).input_arrays()["x"], X)
    status, listed = await ask("GET", f"{url}?model=cat")
    assert [(one["id"], one["labelled"]) for one in listed["samples"]] == [(binary["id"], False), (told["id"], True)]
    assert (await ask("DELETE", f"{url}/{told['id']}"))[0] == 200
    assert (await ask("DELETE", f"{url}/{told['id']}"))[0] == 404
    assert (await ask("GET", url))[1]["n_items"] == 1
    assert bodies.n_bytes == 0


async def test_refused_in_words(served: tuple[str, Samples, BodyBudget]) -> None:
    url, _, bodies = served
    status, told = await ask("POST", f"{url}/models/shy", call())
    assert (status, told["kept"], told["why"]) == (200, False, "the rule of this model is off")
    assert (await ask("POST", f"{url}/models/nobody", call()))[0] == 404
    for headers in ({"Hybrid_Label": "{"}, {"Inference_Header_Content_Length": "999999"}):
        assert (await ask("POST", f"{url}/models/cat", call(), **headers))[0] == 400
    for broken in (b"", b"[]", b'{"inputs": [{"name": "x", "shape": [9], "datatype": "FP32", "data": [1]}]}'):
        assert (await ask("POST", f"{url}/models/cat", broken))[0] in (400, 422)
    assert (await ask("GET", f"{url}?limit=0"))[0] == 400
    assert (await ask("DELETE", f"{url}/..%2F..%2Fvault.key"))[0] in (400, 404)
    assert (await ask("GET", url, Box="a" * 32))[0] == 403, "people look, devices do not"
    assert (await ask("GET", url))[1]["samples"] == []
    assert bodies.n_bytes == 0
    await asyncio.sleep(0)


async def test_labelled_later(served: tuple[str, Samples, BodyBudget]) -> None:
    """What was right is said after the sample was kept, and said again; inputs stay as they were."""
    url, samples, _ = served
    _, told = await ask("POST", f"{url}/models/cat", call())
    heard: list[str] = []
    samples.on_label = heard.append
    before = await samples.read(told["id"])
    assert await samples.labelled("cat", 10) == []
    for text in (b'{"class": 3}', b'"tabby"'):
        status, said = await ask("PUT", f"{url}/{told['id']}/label", text)
        assert (status, said) == (200, {"id": told["id"], "labelled": True})
    kept = await samples.read(told["id"])
    assert (kept.label, kept.inputs, kept.made_s) == ('"tabby"', before.inputs, before.made_s)
    assert await samples.labelled("cat", 10) == [told["id"]]
    assert heard == [told["id"]] * 2
    (listed,) = (await ask("GET", url))[1]["samples"]
    assert listed["labelled"]
    assert listed["n_bytes"] == len(kept.encoded()) == samples.status()["n_bytes"]


async def test_labels_that_are_none(served: tuple[str, Samples, BodyBudget]) -> None:
    url, samples, _ = served
    _, told = await ask("POST", f"{url}/models/cat", call())
    for text in (b"", b"null", b"{", b"\xff", b'"' + b"a" * (65 << 10) + b'"'):
        assert (await ask("PUT", f"{url}/{told['id']}/label", text))[0] == 400
    assert (await ask("PUT", f"{url}/0000000000ff/label", b"3"))[0] == 404
    assert (await ask("PUT", f"{url}/nosuch/label", b"3"))[0] == 400
    assert (await samples.read(told["id"])).label == ""
