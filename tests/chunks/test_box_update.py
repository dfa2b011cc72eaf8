"""A box in a fleet, all of it real: an update brings the changed tensors over the link, and little else."""

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from benchmarks.update_bytes import Counting
from edge_agent.living.patient import admitted
from tests.chunks.making import layered, reordered, retrained, saved
from tests.enrolled_box import make_token
from tests.live_gateway import HYBRID, LiveGateway


async def hybrid(*words: object, **settings: str) -> str:
    """The real command."""
    done = await asyncio.to_thread(
        lambda: subprocess.run(
            [str(HYBRID), *map(str, words)],
            capture_output=True,
            text=True,
            env=os.environ | settings,
            timeout=60,
            check=False,
        )
    )
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


async def answering(data: Path, version: str) -> None:
    """Wait until the box answers with this version."""
    async with asyncio.timeout(60):
        while True:
            box = await asyncio.to_thread(admitted, data, None, {})
            if any(model["version"] == version for model in (box.status or {}).get("models", [])):
                return
            await asyncio.sleep(0.2)


@pytest.mark.slow
async def test_an_assigned_update_comes_in_chunks(tmp_path: Path):
    old = layered(300, width=64)
    new, changed_bytes = retrained(reordered(old), 7)
    folders = [saved(model, tmp_path / f"v{index}") for index, model in enumerate((old, new))]
    with LiveGateway(tmp_path / "gateway") as gateway:
        settings = {"HYBRID_GATEWAY": gateway.url, "HYBRID_TOKEN": gateway.token}
        for folder in folders:
            await hybrid("models", "push", folder / "model.onnx", "--name", "net", **settings)
        async with Counting(gateway.port) as link:
            token = await make_token(gateway, url=f"http://127.0.0.1:{link.port}")
            data = tmp_path / "box"
            await hybrid("agent", "enroll", "--data", data, token.text)
            command = [str(HYBRID), "agent", "serve", "--port", "0", "--data", str(data), "--drain-s", "1"]
            agent = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
            )
            try:
                assert agent.stdout is not None
                assert (await agent.stdout.readline()).startswith(b"ready ")
                await hybrid("fleet", "assign", "net:1", "--tags", "all", **settings)
                await answering(data, "1")
                link.n_bytes = 0
                await hybrid("fleet", "assign", "net:2", "--tags", "all", **settings)
                await answering(data, "2")
                assert link.n_bytes <= 1.05 * changed_bytes + (64 << 10)
            finally:
                agent.kill()
                await agent.wait()
