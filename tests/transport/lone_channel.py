"""A server process with nothing but the gateway's end of the channel; models are named after what they do.

`echo` answers its inputs, `slow:S` waits S seconds first, `error:CODE` fails, `bug` has a fault, `count` tells how many
requests were cancelled, started and are running. Prints its port. With `--block STATUS` the WebSocket is refused as by
a proxy; with `--token T` any other token is.
"""

import argparse
import asyncio

import numpy as np
from aiohttp import web

from hybrid.errors import CATALOG, Unauthenticated
from hybrid.serving.split.channel import add_routes
from hybrid.wire.limits import Limits
from hybrid.wire.message import InferRequest, InferResponse
from hybrid.wire.tensor import Tensor

COUNTS = {"cancelled": 0, "started": 0, "running": 0}


async def infer(request: InferRequest, receive_s: float) -> InferResponse:
    what, _, how = request.model_name.partition(":")
    outputs = request.inputs
    compute_s = 0.0
    if what == "count":
        outputs = tuple(Tensor.of(name, np.int64(value)) for name, value in COUNTS.items())
    elif what == "error":
        raise CATALOG[how](f"as asked: {how}", retry_after_s=0.5)
    elif what == "bug":
        raise ZeroDivisionError("a secret detail")
    elif what == "slow":
        COUNTS["started"] += 1
        COUNTS["running"] += 1
        try:
            await asyncio.sleep(float(how))
        except asyncio.CancelledError:
            COUNTS["cancelled"] += 1
            raise
        finally:
            COUNTS["running"] -= 1
        compute_s = float(how)
    for tensor in request.inputs:
        tensor.to_array()
    return InferResponse(model_name=what, outputs=outputs, receive_s=receive_s, compute_s=compute_s)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--block", type=int, default=0)
    parser.add_argument("--token", default="")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--message-bytes", type=int, default=64 << 20)
    flags = parser.parse_args()

    def admit(request: web.Request) -> None:
        if flags.token and request.headers.get("Authorization") != f"Bearer {flags.token}":
            raise Unauthenticated("that is not the token")

    @web.middleware
    async def proxy_in_between(request: web.Request, handler):
        if flags.block and "Upgrade" in request.headers:
            return web.Response(status=flags.block, text="no WebSockets here")
        return await handler(request)

    async def control(request: web.Request) -> web.Response:
        admit(request)
        return web.json_response({"you": await request.json()})

    app = web.Application(middlewares=[proxy_in_between])
    add_routes(app, infer, admit, limits=Limits(message_bytes=flags.message_bytes))
    app.router.add_post("/v2/hybrid/prepare", control)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, flags.host, flags.port, reuse_address=True)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(15, stop.set)
    await stop.wait()
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
