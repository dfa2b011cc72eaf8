"""The inference call over HTTP: body to arrays, arrays through the executor, outputs to a body.

Design: the path of a small request must cost little more than the engine's run, so its steps are few and synchronous
where nothing has to be waited for.
"""

import asyncio
import zlib
from dataclasses import replace
from time import perf_counter

from aiohttp import web

from hybrid.errors import HybridError, TensorMismatch
from hybrid.hosting.front_door import IDENTITY
from hybrid.hosting.identity import Identity
from hybrid.serving.computing import ORDINARY, ComputeHere
from hybrid.serving.engines.executor import Computed, Place
from hybrid.serving.engines.loaded_models import LoadedModel
from hybrid.serving.engines.session import EngineSession
from hybrid.serving.rest.asking import asked_of
from hybrid.serving.rest.body import HEADER_LENGTH, ON_LOOP_BYTES, Body
from hybrid.serving.rest.decode import Decoded, decode_call, decode_known
from hybrid.serving.rest.encode import EncodedReply, ReplyOutput, encode_reply, is_slow
from hybrid.serving.rest.message import NO_OUTPUT_PARAMETERS, InferCall
from hybrid.serving.rest.service import InferenceService

_COMPRESS_FROM_BYTES = 1024


class InferHandler:
    """Handles `POST /v2/models/{name}[/versions/{version}]/infer`."""

    __slots__ = ("_compute", "_service")

    def __init__(self, service: InferenceService) -> None:
        self._service = service
        self._compute = service.compute or ComputeHere(service.executor)

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one call. Raises `HybridError`, which the middleware turns into JSON."""
        service = self._service
        service.require(request, "infer")
        match = request.match_info
        name, version = match["name"], match.get("version", "")
        loaded = service.models.opened(name, version) or await service.models.open(name, version)
        model = loaded.model
        statistics = service.statistics.of(model.name, model.version)
        started_s = perf_counter()
        body = Body(request, service.limits, service.bodies)
        try:
            session = service.executor.sessions.get((model.model_digest,)) or await service.executor.open_whole(model)
            decoded = decode_known(body, session.inputs) or await decode_call(body, session.inputs, service.regions)
            decoded_s = perf_counter()
            names = wanted_outputs(decoded.call, session)
            asked = asked_of(request.headers, decoded.call.parameters, started_s)
            if asked is not ORDINARY and not _is_administrator(request):
                asked = replace(asked, may_raise=False)
            computed = await self._compute(
                model, session, decoded.feeds, names, asked, n_checked_bytes=decoded.n_checked_bytes
            )
            computed_s = perf_counter()
            reply = await _encode(service, loaded, decoded, names, computed)
            response = await _response(request, reply)
            if computed.place is not None:
                _say_where(response, computed.place, model.model_digest)
        except (HybridError, web.HTTPException):
            statistics.failed(perf_counter() - started_s)
            raise
        finally:
            body.release()
        done_s = perf_counter()
        statistics.succeeded(
            total_s=done_s - started_s,
            input_s=decoded_s - started_s,
            queue_s=computed.queue_s,
            infer_s=computed.compute_s,
            output_s=done_s - computed_s,
        )
        if service.served is not None:
            outputs = dict(zip(names, computed.outputs, strict=True))
            service.served(model, decoded.feeds, outputs, done_s - started_s)
        if computed.n_together:
            statistics.shared(computed.n_together, computed.compute_s, leads=computed.leads)
        return response


def wanted_outputs(call: InferCall, session: EngineSession) -> list[str]:
    """Names of the outputs to compute, in the order of the reply.

    Raises:
        TensorMismatch: a name that the model does not have, or one twice.
    """
    if not call.outputs:
        return session.output_names
    names = [output.name for output in call.outputs]
    unknown = [name for name in names if name not in session.output_names]
    if unknown or len(set(names)) != len(names):
        raise TensorMismatch(f"outputs {names[:20]} wanted; the model has {session.output_names}, each at most once")
    return names


def _is_administrator(request: web.Request) -> bool:
    """Whether who asks decides about this service; programs of the machine do where no tokens are asked for."""
    identity: Identity | None = request.get(IDENTITY)
    return identity is None or identity.may("admin")


async def _encode(
    service: InferenceService, loaded: LoadedModel, decoded: Decoded, names: list[str], computed: Computed
) -> EncodedReply:
    call = decoded.call
    binary = decoded.raw or call.parameters.binary_data_output
    parameters = [output.parameters for output in call.outputs] or [NO_OUTPUT_PARAMETERS] * len(names)
    outputs = [
        ReplyOutput(name, array, binary if form.binary_data is None else form.binary_data, form, loaded.model.classes)
        for name, array, form in zip(names, computed.outputs, parameters, strict=True)
    ]
    model = (loaded.model.name, loaded.model.version)
    place: tuple[tuple[str, str], ...] = ()
    if computed.place is not None:
        place = _place_parameters(computed.place, loaded.model.model_digest)
    if is_slow(outputs):
        return await asyncio.to_thread(encode_reply, model, call.id, outputs, service.regions, place)
    return encode_reply(model, call.id, outputs, service.regions, place)


def _place_parameters(place: Place, model_digest: str) -> tuple[tuple[str, str], ...]:
    """Where it was computed, as parameters of the reply; few different ones, so that replies are remembered."""
    code = place.fallback.partition(":")[0]
    parameters = {
        "placement": place.placement,
        "model_digest": place.model_digest or model_digest,
        "gateway": place.gateway,
        "cut": place.cut,
    }
    return tuple((f"hybrid_{name}", text) for name, text in {**parameters, "fallback": code}.items() if text)


def _say_where(response: web.Response, place: Place, model_digest: str) -> None:
    headers = response.headers
    headers["Hybrid-Placement"] = place.placement
    headers["Hybrid-Model-Digest"] = place.model_digest or model_digest
    if place.gateway:
        headers["Hybrid-Gateway"] = place.gateway
    if place.fallback:
        text = place.fallback.encode("ascii", "replace").decode()
        headers["Hybrid-Fallback"] = "".join(letter if letter.isprintable() else " " for letter in text)[:300]


async def _response(request: web.Request, reply: EncodedReply) -> web.Response:
    body = reply.parts[0] if len(reply.parts) == 1 else b"".join(reply.parts)
    headers = {}
    if reply.n_json is None:
        headers["Content-Type"] = "application/json"
    else:
        headers["Content-Type"] = "application/octet-stream"
        headers[HEADER_LENGTH] = str(reply.n_json)
    accepted = request.headers.get("Accept-Encoding")
    if accepted is not None and len(body) >= _COMPRESS_FROM_BYTES:
        coding = _coding(accepted, is_json=reply.n_json is None)
        if coding:
            headers["Content-Encoding"] = coding
            small = len(body) <= ON_LOOP_BYTES
            body = _packed(body, coding) if small else await asyncio.to_thread(_packed, body, coding)
    return web.Response(body=body, headers=headers)


def _coding(accepted: str, *, is_json: bool) -> str | None:
    """The coding to answer in: what a client names alone it wants; of a list, only JSON is worth the time."""
    offered = [part.partition(";")[0].strip().lower() for part in accepted.split(",")]
    if is_json or len(offered) == 1:
        return next((coding for coding in offered if coding in ("gzip", "deflate")), None)
    return None


def _packed(body: bytes | memoryview, coding: str) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS | (16 if coding == "gzip" else 0))
    return packer.compress(body) + packer.flush()
