"""The box's HTTP calls around its samples: brought with a label by programs, listed and removed by people."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
from aiohttp import web

from edge_agent.outbox.deferred_request import Wanted, deferred_request
from edge_agent.samples.paths import LABEL, SAMPLES_PATH
from edge_agent.samples.shelf import Kept
from edge_agent.samples.store import Samples
from hybrid.errors import BadMessage, NotFound
from hybrid.hosting.http_replies import json_reply
from hybrid.hosting.identity import Right
from hybrid.serving.body_budget import BodyBudget
from hybrid.serving.rest.body import Body, BodyLimits

Admit = Callable[[web.Request, Right], None]
_LIMITS: Final = BodyLimits(max_body_bytes=(64 << 20) + (1 << 20))
_MOST_LISTED: Final = 1000
_MOST_LABEL_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the calls need.

    Attributes:
        admit: returns, or raises `Forbidden`.
        digest_of: digest and variant of the model that answers under a name; None where none does.
        bodies: memory of all requests.
    """

    samples: Samples
    admit: Admit
    digest_of: Callable[[str], tuple[str, str] | None]
    bodies: BodyBudget


def add_sample_routes(app: web.Application, parts: Parts) -> None:
    """Serve the calls; docs/outbox.md describes them."""
    calls = _Calls(parts)
    app.router.add_get(SAMPLES_PATH, calls.show)
    app.router.add_post(SAMPLES_PATH + "/models/{name}", calls.bring)
    app.router.add_put(SAMPLES_PATH + "/{id}/label", calls.label)
    app.router.add_delete(SAMPLES_PATH + "/{id}", calls.forget)


class _Calls:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def show(self, request: web.Request) -> web.StreamResponse:
        """The newest samples, without their contents."""
        self._parts.admit(request, "admin")
        text = request.query.get("limit", "100")
        if len(text) > 9 or not text.isascii() or not text.isdigit() or not 1 <= int(text) <= _MOST_LISTED:
            raise BadMessage(f"limit is {text[:20]!r}: 1 to {_MOST_LISTED} is wanted")
        found = await self._parts.samples.list(request.query.get("model", ""), limit=int(text))
        return json_reply({"samples": [_public(one) for one in found], **self._parts.samples.status()})

    async def bring(self, request: web.Request) -> web.StreamResponse:
        """A program's own sample: an inference request's inputs, and what was right."""
        self._parts.admit(request, "infer")
        name = request.match_info["name"]
        known = self._parts.digest_of(name)
        if known is None:
            raise NotFound(f"no model {name[:80]!r} answers on this box; a sample belongs to one")
        label = _label(request.headers.get(LABEL))
        body = Body(request, _LIMITS, self._parts.bodies)
        try:
            found = await deferred_request(Wanted(name, ""), body)
            inputs = await asyncio.to_thread(lambda: {one.spec.name: one.to_array() for one in found.inputs})
            outputs: Mapping[str, np.ndarray] = {}
            sample_id = await self._parts.samples.put(known[0], known[1], inputs, outputs, label, model=name)
        finally:
            body.release()
        told = {"id": sample_id, "kept": sample_id is not None}
        if sample_id is None:
            told["why"] = self._parts.samples.why_not(name)
        return json_reply(told, status=200 if sample_id is None else 201)

    async def label(self, request: web.Request) -> web.StreamResponse:
        """What was right, for a sample that is here: the body is the label as JSON."""
        self._parts.admit(request, "admin")
        sample_id = request.match_info["id"]
        if (request.content_length or 0) > _MOST_LABEL_BYTES:
            raise BadMessage(f"a label of {request.content_length} bytes: at most {_MOST_LABEL_BYTES} are kept")
        content = bytearray()
        async for block in request.content.iter_chunked(_MOST_LABEL_BYTES):
            content += block
            if len(content) > _MOST_LABEL_BYTES:
                raise BadMessage(f"a label of more than {_MOST_LABEL_BYTES} bytes is not kept")
        await self._parts.samples.label(sample_id, _said(bytes(content), "the body"))
        return json_reply({"id": sample_id, "labelled": True})

    async def forget(self, request: web.Request) -> web.StreamResponse:
        """Remove one from this box; what was uploaded stays at the gateway."""
        self._parts.admit(request, "admin")
        sample_id = request.match_info["id"]
        await self._parts.samples.forget(sample_id)
        return json_reply({"id": sample_id, "forgotten": True})


def _label(text: str | None) -> Any:
    if text is None:
        return None
    return _said(text.encode("utf-8", "surrogateescape"), f"header {LABEL}")


def _said(text: bytes, where: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise BadMessage(f"{where} is no JSON: {exc}") from exc


def _public(one: Kept) -> dict[str, object]:
    return {
        "id": one.id,
        "model": one.model,
        "model_digest": one.model_digest,
        "variant": one.variant,
        "made_s": one.made_s,
        "n_bytes": one.n_bytes,
        "labelled": one.is_labelled,
        "waits_for_upload": one.is_to_upload,
    }
