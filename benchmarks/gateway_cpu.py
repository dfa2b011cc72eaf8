"""What the gateway costs a request beside a bare aiohttp handler that calls onnxruntime: CPU seconds, not requests/s.

Both servers run at the same time on the same event loop and engine settings; one load generator sends them the same
bytes in alternating blocks, so that whatever else the machine does falls on both. The gateway checks a token, counts,
and parses and writes the protocol's JSON; the bare handler does none of that: it is the floor.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.report import Bar, Record, publish
from tests import small_models
from tests.live_gateway import LiveGateway
from tests.serving_push import push

MLP_RATIO, MLP_SLACK_MS = 1.2, 0.02
CONV_RATIO = 1.15
WARM_UP = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One kind of request: a model, its input and how many are sent in one block."""

    model: str
    shape: tuple[int, ...]
    n_outputs: int
    n_requests: int


LOADS = (
    Load(model="mlp", shape=(1, 64), n_outputs=10, n_requests=600),
    Load(model="conv", shape=(1, 3, 224, 224), n_outputs=64, n_requests=80),
)


def floor(port_file: Path, model: Path, n_outputs: int) -> None:
    """The bare handler: reads the body, views the tensor, runs the engine on the loop, replies with constant JSON."""
    import onnxruntime as ort
    import uvloop
    from aiohttp import web

    options = ort.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(model), options)
    shape = [1 if isinstance(size, str) else size for size in session.get_inputs()[0].shape]
    parameters = {"binary_data_size": 4 * n_outputs}
    tensor = {"name": "y", "datatype": "FP32", "shape": [1, n_outputs], "parameters": parameters}
    reply = json.dumps({"model_name": "m", "outputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(reply)), "Content-Type": "application/octet-stream"}

    async def infer(request: web.Request) -> web.Response:
        body = await request.read()
        start = int(request.headers["Inference-Header-Content-Length"])
        x = np.frombuffer(body, np.float32, offset=start).reshape(shape)
        return web.Response(body=reply + session.run(None, {"x": x})[0].tobytes(), headers=headers)

    async def serve() -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/v2/models/{name}/infer", infer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port_file.with_suffix(".tmp").write_text(str(runner.addresses[0][1]))
        port_file.with_suffix(".tmp").rename(port_file)
        await asyncio.Event().wait()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and its children, all threads, to the nanosecond where the kernel tells."""
    pids = [pid]
    for at in pids:
        children = Path(f"/proc/{at}/task/{at}/children")
        pids += [int(child) for child in children.read_text().split()]
    total_ns = 0
    for at in pids:
        for task in Path(f"/proc/{at}/task").iterdir():
            total_ns += int((task / "schedstat").read_text().split()[0])
    return total_ns / 1e9


def holder(data: Path) -> int:
    """The process that holds a gateway's data folder."""
    return int((data / "gateway.lock").read_text())


def request_bytes(load: Load, token: str, seed: int) -> bytes:
    """One request as it goes over the wire, binary in and out."""
    x = np.random.default_rng(seed).standard_normal(load.shape, dtype=np.float32).tobytes()
    tensor = {"name": "x", "shape": load.shape, "datatype": "FP32", "parameters": {"binary_data_size": len(x)}}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    lines = (
        f"POST /v2/models/{load.model}/infer HTTP/1.1",
        "Host: 127.0.0.1",
        f"Authorization: Bearer {token}",
        f"Inference-Header-Content-Length: {len(header)}",
        f"Content-Length: {len(header) + len(x)}",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + header + x


async def send(port: int, data: bytes, n_requests: int, n_connections: int) -> None:
    """Sends the request so many times over a few connections, one at a time on each."""

    async def one(n: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
        for _ in range(n):
            writer.write(data)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"refused: {head!r}")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.split(b":")[1]))
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(one(n_requests // n_connections) for _ in range(n_connections)))


def send_block(port: int, data: bytes, n_requests: int, n_connections: int) -> None:
    """One block of requests, on an event loop of its own."""
    asyncio.run(send(port, data, n_requests, n_connections))


def block_ms(pid: int, run: Callable[[], None], n_requests: int) -> float:
    """CPU milliseconds a request of one block."""
    before_s = cpu_s(pid)
    run()
    return 1e3 * (cpu_s(pid) - before_s) / n_requests


def measure(load: Load, folder: Path, given: argparse.Namespace) -> dict[str, list[float]]:
    """CPU milliseconds a request of both servers, a value a block."""
    model = getattr(small_models, load.model)(folder / f"{load.model}.onnx")
    port_file = folder / f"{load.model}.port"
    command = [
        sys.executable,
        "-m",
        "benchmarks.gateway_cpu",
        "--floor",
        str(port_file),
        str(model),
        str(load.n_outputs),
    ]
    with LiveGateway(folder / f"{load.model}-gateway") as gateway, subprocess.Popen(command) as bare:
        try:
            push(gateway.url, model, load.model, token=gateway.token)
            while not port_file.exists():
                time.sleep(0.02)
            data = request_bytes(load, gateway.token, given.seed)
            servers = {"bare": (bare.pid, int(port_file.read_text())), "gateway": (holder(gateway.data), gateway.port)}
            samples: dict[str, list[float]] = {name: [] for name in servers}
            for number in range(given.n + 1):
                for name, (pid, port) in servers.items():
                    n_requests = load.n_requests if number else WARM_UP
                    block = partial(send_block, port, data, n_requests, given.connections)
                    took_ms = block_ms(pid, block, n_requests)
                    if number:
                        samples[name].append(took_ms)
            return samples
        finally:
            bare.kill()


def main() -> int:
    """Measure, publish, and exit 1 where a bar is missed."""
    if sys.argv[1:2] == ["--floor"]:
        floor(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
        return 0
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--n", type=int, default=31, help="blocks of each server")
    arguments.add_argument("--connections", type=int, default=4)
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    medians: dict[tuple[str, str], float] = {}
    ratios: dict[str, float] = {}
    rows: list[list[str | float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for load in LOADS:
            samples = measure(load, Path(folder), given)
            for name, values in samples.items():
                medians[load.model, name] = statistics.median(values)
            ratios[load.model] = statistics.median(
                ours / theirs for ours, theirs in zip(samples["gateway"], samples["bare"], strict=True)
            )
            size = 4 * int(np.prod(load.shape))
            both = (medians[load.model, "bare"], medians[load.model, "gateway"])
            rows.append([load.model, size, *both, ratios[load.model]])
    mlp_limit_ms = MLP_RATIO * medians["mlp", "bare"] + MLP_SLACK_MS
    return publish(
        Record(
            name="gateway_cpu",
            claim="A request costs the gateway little more than a bare handler",
            method=f"CPU time of the whole process a request, binary in and out, {given.connections} connections; "
            f"{given.n} alternating blocks, medians; the ratio is the median over blocks. The gateway checks a token, "
            "parses and writes the protocol and counts; the bare aiohttp handler only views the tensor and runs the "
            "engine. Same event loop (uvloop), same engine settings.",
            seed=given.seed,
            columns=["model", "input bytes", "bare ms", "gateway ms", "x bare"],
            rows=rows,
            bars=[
                Bar(
                    name="small model: 1.2 x bare + 0.02 ms",
                    measured=medians["mlp", "gateway"],
                    limit=mlp_limit_ms,
                    unit="ms",
                ),
                Bar(name="600 kB tensor: gateway / bare", measured=ratios["conv"], limit=CONV_RATIO),
            ],
        )
    )


if __name__ == "__main__":
    sys.exit(main())
