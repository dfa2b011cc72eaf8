"""Inference calls of any client for models that only the gateway holds: answered through the box."""

from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from edge_agent.models.onward import Onward
from edge_agent.models.source import Answering
from edge_agent.outbox.deferred_request import Wanted, request_and_call
from hybrid.errors import NotFound
from hybrid.hosting.identity import Right
from hybrid.serving.body_budget import BodyBudget
from hybrid.serving.rest.asking import asked_of
from hybrid.serving.rest.body import HEADER_LENGTH, Body, BodyLimits
from hybrid.serving.rest.encode import ReplyOutput, encode_reply
from hybrid.serving.rest.message import NO_OUTPUT_PARAMETERS, InferCall, OutputParameters
from hybrid.wire.message import InferResponse


def relaying(
    onward: Callable[[], Onward],
    answering: Answering,
    admit: Callable[[web.Request, Right], None],
    limits: BodyLimits,
    bodies: BodyBudget,
) -> Middleware:
    """A middleware that asks the gateway where this box holds no model of the name.

    Args:
        onward: knows the gateway.
        answering: models of this box.
        admit: returns, or raises `Forbidden`.
        limits: of a request's body.
        bodies: memory of all of them.
    """

    @web.middleware
    async def handle(request: web.Request, handler: Handler) -> web.StreamResponse:
        name = request.match_info.get("name")
        is_infer = request.method == "POST" and request.path.startswith("/v2/models/")
        if name is None or not is_infer or not request.path.endswith("/infer") or answering.named(name) is not None:
            return await handler(request)
        admit(request, "infer")
        if not await onward().reached():
            held = ", ".join(sorted(version.name for version in answering.versions())) or "none"
            raise NotFound(
                f"no model {name!r} is on this box (it has {held}), and no gateway is reached that might have it; "
                "with the header `Hybrid-Defer: offline` the request waits for one"
            )
        started_s = perf_counter()
        body = Body(request, limits, bodies)
        try:
            message, call = await request_and_call(Wanted(name, request.match_info.get("version", "")), body)
            asked = asked_of(request.headers, call.parameters, started_s)
            left_s = None if asked.deadline_s is None else asked.deadline_s - perf_counter()
            response = await onward().beyond(replace(message, deadline_s=left_s))
        finally:
            body.release()
        return _reply(response, call)

    return handle


def _reply(response: InferResponse, call: InferCall) -> web.Response:
    forms = {output.name: output.parameters for output in call.outputs}
    outputs = []
    for tensor in response.outputs:
        form: OutputParameters = forms.get(tensor.spec.name, NO_OUTPUT_PARAMETERS)
        binary = call.parameters.binary_data_output if form.binary_data is None else form.binary_data
        # Classes were made where the model is.
        outputs.append(ReplyOutput(tensor.spec.name, tensor.to_array(), binary, NO_OUTPUT_PARAMETERS))
    place = (("hybrid_placement", "offload"), ("hybrid_gateway", response.via))
    reply = encode_reply((response.model_name, response.model_version), call.id, outputs, None, place)
    headers = {"Hybrid-Placement": "offload", "Hybrid-Gateway": response.via, "Content-Type": "application/json"}
    if reply.n_json is not None:
        headers["Content-Type"], headers[HEADER_LENGTH] = "application/octet-stream", str(reply.n_json)
    return web.Response(body=b"".join(reply.parts), headers=headers)
