"""The client and its process: exit with a live connection, the loop without uvloop, imports that stay light."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

ASK = """
import sys, threading
{before}
import numpy as np
from hybrid.transport.client import acquire, release
from hybrid.transport.trust import Trust
from hybrid.wire.message import InferRequest
from hybrid.wire.tensor import Tensor
client = acquire(sys.argv[1], None, trust=Trust())
assert client.wait_settled(10) == "ready", client.down_reason
request = InferRequest(model_name=sys.argv[2], inputs=(Tensor.of("x", np.zeros(300_000, np.uint8)),))
future = client.infer(request, stall_s=5, timeout_s=20)
{after}
"""


def run(url: str, model: str, *, before: str = "", after: str) -> subprocess.CompletedProcess[str]:
    script = ASK.format(before=before, after=after)
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", script, url, model]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=ROOT, check=False)


@pytest.mark.parametrize(
    "after",
    ["print(future.result().model_name); release(client)", "print(future.result().model_name)", "print('echo')"],
    ids=["released", "left open", "left in flight"],
)
@pytest.mark.parametrize("before", ["", "sys.modules['uvloop'] = None"], ids=["uvloop", "asyncio"])
def test_a_process_ends_quietly(shared_server, before, after):
    ended = run(shared_server.url, "echo", before=before, after=after)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "echo\n", "")


def test_a_request_that_never_ends_does_not_hold_the_process(shared_server):
    ended = run(shared_server.url, "slow:60", after="print('bye')")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "bye\n", "")


def test_all_clients_share_one_thread(shared_server):
    after = (
        "other = acquire(sys.argv[1], 'another', trust=Trust()); other.wait_settled(5); future.result();"
        "print(sorted(thread.name for thread in threading.enumerate() if 'hybrid' in thread.name))"
    )
    ended = run(shared_server.url, "echo", after=after)
    assert (ended.stdout, ended.stderr) == ("['hybrid-io']\n", "")


def test_the_wire_needs_no_sockets():
    code = (
        "import sys, hybrid.wire.channel; print([m for m in ('aiohttp', 'asyncio', 'zstandard') if m in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ended.stdout == "[]\n"


def test_a_request_while_the_process_ends_fails_by_its_future(shared_server):
    late = (
        "from hybrid.transport import io_thread; future.result(); io_thread.io_thread().stop(5);"
        "print(type(client.infer(request, stall_s=1, timeout_s=1).exception(5)).__name__)"
    )
    ended = run(shared_server.url, "echo", after=late)
    assert (ended.stdout, ended.stderr) == ("GatewayUnreachable\n", "")
