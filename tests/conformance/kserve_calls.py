"""KServe's own REST client against one server: prints what each call gave as JSON. Runs in KServe's environment."""

import asyncio
import json
import sys

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput


def request_for(values: np.ndarray, *, binary_in: bool, binary_out: bool) -> InferRequest:
    """A request of the protocol's second version, in one of its four forms."""
    tensor = InferInput(name="x", shape=list(values.shape), datatype="FP32")
    tensor.set_data_from_numpy(values, binary_data=binary_in)
    outputs = [RequestedOutput(name="y", parameters={"binary_data": binary_out})]
    return InferRequest(model_name="mlp", infer_inputs=[tensor], request_outputs=outputs, request_id="kserve-1")


async def calls(url: str) -> dict:
    """Every REST call of the client."""
    values = np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64)
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    seen: dict = {
        "live": await client.is_server_live(url),
        "ready": await client.is_server_ready(url),
        "model_ready": await client.is_model_ready(url, "mlp"),
        "unknown_ready": await outcome(client.is_model_ready(url, "nobody")),
        "unknown_infer": await outcome(
            client.infer(url, request_for(values, binary_in=True, binary_out=True), model_name="nobody")
        ),
    }
    for binary_in in (False, True):
        for binary_out in (False, True):
            request = request_for(values, binary_in=binary_in, binary_out=binary_out)
            reply = await client.infer(url, request, model_name="mlp")
            seen[f"infer in={binary_in} out={binary_out}"] = {
                "id": reply.id,
                "model": reply.model_name,
                "values": reply.outputs[0].as_numpy().tolist(),
                "shape": reply.outputs[0].shape,
            }
    await client.close()
    return seen


async def outcome(call) -> str:
    """The result as text, or the class of the exception and its status."""
    try:
        return repr(await call)
    except Exception as exc:  # noqa: BLE001 (whatever the client makes of a refusal is what is wanted)
        response = getattr(exc, "response", None)
        return f"{type(exc).__name__} {getattr(response, 'status_code', '')}".strip()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(calls(sys.argv[1]))))
