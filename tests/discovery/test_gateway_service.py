"""The gateway service as it is started by an operator, found and used by a device over real multicast DNS and TLS."""

import json
import queue
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hybrid.discovery.find import find_gateways

PATIENCE_S = 30.0


@pytest.fixture
def gateway(hybrid_command: Path, tmp_path: Path) -> Iterator[str]:
    """A gateway on every address of this machine; yields its URL."""
    process = subprocess.Popen(
        [hybrid_command, "gateway", "serve", "--host", "0.0.0.0", "--port", "0", "--data", tmp_path / "data"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("ready https://0.0.0.0:"), line
        yield line.split()[1]
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def status_of(url: str, token: str) -> int:
    """The status of a request with a token; the certificate is not checked here."""
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    request = urllib.request.Request(f"{url}/v2", headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, context=trusting, timeout=10) as response:
            return response.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.mark.slow
def test_a_device_with_a_token_finds_it_and_a_revoked_one_is_refused(
    gateway: str, run_hybrid: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    data = str(tmp_path / "data")
    made = run_hybrid("gateway", "token", "create", "--role", "device", "--name", "camera", "--data", data, "--json")
    token, token_id = (json.loads(made.stdout)["data"][key] for key in ("token", "id"))
    told: queue.Queue[tuple[str, ...]] = queue.Queue()
    finding = find_gateways(
        token,
        on_found=lambda url, pin: told.put(("found", url, pin)),
        on_lost=lambda url: told.put(("lost", url)),
        poll_s=0.5,
    )
    try:
        what, url, pin = told.get(timeout=PATIENCE_S)
        assert what == "found"
        assert url.rpartition(":")[2] == gateway.rpartition(":")[2]
        certificate = (tmp_path / "data" / "tls" / "certificate.pem").read_text()
        assert pin == _sha256(certificate)
        assert status_of(url, token) == 200
        assert status_of(url, "hyb_aaaaaaaa_" + "a" * 32) == 401
        assert run_hybrid("gateway", "token", "revoke", token_id, "--data", data).returncode == 0
        revoked_s = time.monotonic()
        while status_of(url, token) != 401:
            assert time.monotonic() - revoked_s < 1.5, "a running gateway follows within a second"
            threading.Event().wait(0.05)
        finding.recheck(url)
        assert told.get(timeout=PATIENCE_S) == ("lost", url)
    finally:
        finding.close()


def _sha256(certificate_pem: str) -> str:
    import hashlib

    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate_pem)).hexdigest()
