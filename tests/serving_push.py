"""Pushes a model to a live gateway and waits until it is ready, for tests of the protocol."""

import asyncio
import json
import time
import urllib.error
import urllib.request
from pathlib import Path

from hybrid.transport.model_push import PushOptions
from hybrid.transport.model_push import push as push_model
from hybrid.transport.registry_client import RegistryClient
from hybrid.transport.trust import Trust

READY_TIMEOUT_S = 20.0


def push(url: str, path: Path, name: str, *, token: str | None = None, version: str | None = None) -> str:
    """Push a model file and wait until its name is ready; returns its model digest."""

    async def send() -> str:
        async with RegistryClient(url, token, trust=Trust()) as client:
            pushed = await push_model(client, path, name, PushOptions(version=version))
            return pushed.version.model_digest

    digest = asyncio.run(send())
    wait_ready(url, f"/v2/models/{name}/ready", token)
    return digest


def wait_ready(url: str, path: str, token: str | None = None) -> None:
    """Wait until a readiness endpoint answers 200."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    until_s = time.monotonic() + READY_TIMEOUT_S
    while True:
        try:
            with urllib.request.urlopen(urllib.request.Request(url + path, headers=headers), timeout=5) as reply:
                json.load(reply)
                return
        except urllib.error.HTTPError as error:
            assert error.code in (404, 503), error.read()
            error.close()
        assert time.monotonic() < until_s, f"{path} was not ready within {READY_TIMEOUT_S} s"
        time.sleep(0.02)
