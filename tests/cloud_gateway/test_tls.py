"""The gateway's certificate: made once, valid at any clock, and clear words when a given one cannot be used."""

import asyncio
import datetime as dt
import hashlib
import ipaddress
import multiprocessing
import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from hybrid.errors import StorageError
from hybrid.hosting.renewal import LiveCertificate
from hybrid.hosting.tls import ServerCertificate, ensure_certificate, load_certificate
from tests import trust_lab


def shake_hands(certificate: ServerCertificate, client: ssl.SSLContext) -> ssl.SSLSocket:
    """A TLS handshake over a socket pair; returns the client's end."""
    near, far = socket.socketpair()
    near.settimeout(10)
    far.settimeout(10)

    def serve() -> None:
        try:
            with certificate.context().wrap_socket(far, server_side=True) as served:
                served.recv(1)
        except OSError:
            far.close()

    threading.Thread(target=serve, daemon=True).start()
    try:
        return client.wrap_socket(near, server_hostname="localhost")
    except BaseException:
        near.close()
        raise


def test_the_first_start_makes_a_certificate_and_later_ones_keep_it(tmp_path: Path) -> None:
    made = ensure_certificate(tmp_path, ["gateway.example", "192.0.2.7"])
    assert stat.S_IMODE(made.key_path.stat().st_mode) == 0o600
    assert stat.S_IMODE(made.key_path.parent.stat().st_mode) == 0o700
    assert ensure_certificate(tmp_path) == made
    certificate = x509.load_pem_x509_certificate(made.certificate_path.read_bytes())
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    assert certificate.not_valid_before_utc == dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    assert certificate.not_valid_after_utc.year == 9999
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"localhost", "gateway.example"} <= set(names.get_values_for_type(x509.DNSName))
    addresses = set(names.get_values_for_type(x509.IPAddress))
    assert {ipaddress.ip_address(text) for text in ("127.0.0.1", "::1", "192.0.2.7")} <= addresses


def test_clients_that_trust_the_file_accept_it(tmp_path: Path) -> None:
    made = ensure_certificate(tmp_path)
    client = ssl.create_default_context(cafile=str(made.certificate_path))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    with shake_hands(made, client) as tls:
        assert tls.version() == "TLSv1.3"


@pytest.mark.skipif(shutil.which("faketime") is None, reason="needs the command faketime")
def test_a_client_at_1970_accepts_it(tmp_path: Path) -> None:
    made = ensure_certificate(tmp_path)
    code = (
        "import ssl, sys, time; assert time.time() < 1e6, time.time()\n"
        "from pathlib import Path; from tests.cloud_gateway import test_tls as t\n"
        "from hybrid.hosting.tls import load_certificate\n"
        "c = load_certificate(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "t.shake_hands(c, ssl.create_default_context(cafile=sys.argv[1])).close()"
    )
    paths = [str(made.certificate_path), str(made.key_path)]
    subprocess.run(["faketime", "1970-01-02 00:00:00", sys.executable, "-c", code, *paths], check=True)


def test_tls_older_than_1_2_is_refused(tmp_path: Path) -> None:
    made = ensure_certificate(tmp_path)
    assert made.context().minimum_version is ssl.TLSVersion.TLSv1_2
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        shake_hands(made, old)


def _make(data: Path, barrier: "multiprocessing.synchronize.Barrier") -> None:
    barrier.wait(30)
    ensure_certificate(data)


def test_two_first_starts_at_once_agree(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    racers = [context.Process(target=_make, args=(tmp_path, barrier)) for _ in range(2)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
        assert racer.exitcode == 0
    assert sorted(path.name for path in (tmp_path / "tls").iterdir()) == ["certificate.pem", "key.pem"]
    ensure_certificate(tmp_path).context()


def test_a_crash_between_key_and_certificate_is_mended(tmp_path: Path) -> None:
    made = ensure_certificate(tmp_path)
    made.certificate_path.unlink()
    again = ensure_certificate(tmp_path)
    assert again.spki_sha256 == made.spki_sha256
    assert again.certificate_sha256 != made.certificate_sha256


def test_a_lost_key_is_not_replaced_in_silence(tmp_path: Path) -> None:
    made = ensure_certificate(tmp_path)
    made.key_path.unlink()
    with pytest.raises(StorageError, match=r"key\.pem is gone.*restore it, or delete both"):
        ensure_certificate(tmp_path)


def test_a_given_chain_is_served_leaf_first(tmp_path: Path) -> None:
    leaf, other = trust_lab.certificate_in(tmp_path / "leaf"), trust_lab.certificate_in(tmp_path / "other")
    chain = tmp_path / "chain.pem"
    chain.write_bytes(leaf.certificate_path.read_bytes() + other.certificate_path.read_bytes())
    given = load_certificate(chain, leaf.key_path)
    assert given.certificate_sha256 == leaf.certificate_sha256
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    with shake_hands(given, client) as tls:
        shown = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
    assert shown == x509.load_pem_x509_certificate(leaf.certificate_path.read_bytes())


def test_an_rsa_key_will_do(tmp_path: Path) -> None:
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "old")])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + dt.timedelta(days=1))
    from cryptography.hazmat.primitives.hashes import SHA256

    (tmp_path / "c.pem").write_bytes(builder.sign(key, SHA256()).public_bytes(Encoding.PEM))
    (tmp_path / "k.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    load_certificate(tmp_path / "c.pem", tmp_path / "k.pem").context()


def _protect(key_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    key_path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda c, k: c.unlink(), r"c\.pem cannot be read: No such file"),
        (lambda c, k: k.unlink(), r"k\.pem cannot be read: No such file"),
        (lambda c, k: c.write_text("hello"), r"c\.pem holds no certificate"),
        (lambda c, k: k.write_text("hello"), r"k\.pem holds no private key"),
        (lambda c, k: k.write_bytes(c.read_bytes()), r"k\.pem holds no private key"),
        (lambda c, k: c.write_bytes(c.read_bytes()[:200]), r"c\.pem holds no certificate"),
        (lambda c, k: _protect(k), r"k\.pem is protected by a password"),
        (
            lambda c, k: shutil.copy(trust_lab.certificate_in(k.parent / "x").key_path, k),
            r"c\.pem does not fit the key",
        ),
    ],
    ids=["no certificate", "no key", "text", "text as key", "swapped", "cut off", "password", "another key"],
)
def test_files_that_cannot_be_used_are_named(tmp_path: Path, spoil: Callable[[Path, Path], None], told: str) -> None:
    good = trust_lab.certificate_in(tmp_path)
    certificate = good.certificate_path.rename(tmp_path / "c.pem")
    key = good.key_path.rename(tmp_path / "k.pem")
    load_certificate(certificate, key)
    spoil(certificate, key)
    with pytest.raises(StorageError, match=told):
        load_certificate(certificate, key)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_key_without_the_right_to_read_it_is_named(tmp_path: Path) -> None:
    good = trust_lab.certificate_in(tmp_path)
    good.key_path.chmod(0)
    with pytest.raises(StorageError, match=r"key\.pem cannot be read: Permission denied"):
        load_certificate(good.certificate_path, good.key_path)


def test_an_expired_certificate_is_served_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    past = dt.datetime(2001, 1, 1, tzinfo=dt.UTC)
    trust_lab.certificate_in(tmp_path, not_before=past, not_after=past + dt.timedelta(days=1))
    assert "tls.certificate_expired" in caplog.text


async def test_files_that_are_replaced_serve_new_connections_without_a_restart(tmp_path: Path) -> None:
    certificate_path, key_path = tmp_path / "c.pem", tmp_path / "k.pem"
    ready = [ensure_certificate(tmp_path / name) for name in ("first", "second")]

    def lay_down(certificate: ServerCertificate, *, key: bool = True) -> None:
        if key:
            key_path.write_bytes(certificate.key_path.read_bytes())
        certificate_path.write_bytes(certificate.certificate_path.read_bytes())

    def served() -> bytes:
        with socket.create_connection(address, timeout=10) as stream, anyone.wrap_socket(stream) as tls:
            return tls.getpeercert(binary_form=True) or b""

    lay_down(ready[0])
    live = LiveCertificate(load_certificate(certificate_path, key_path))
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    n_renewed = 0

    async def renewed() -> None:
        nonlocal n_renewed
        n_renewed += 1

    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=live.context)
    address = server.sockets[0].getsockname()
    following = asyncio.ensure_future(live.follow(renewed))
    try:
        first = await asyncio.to_thread(served)
        assert hashlib.sha256(first).hexdigest() == ready[0].certificate_sha256
        lay_down(ready[1], key=False)  # half of a renewal: the old one serves on
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.3)
        assert (await asyncio.to_thread(served), n_renewed) == (first, 0)
        lay_down(ready[1])
        os.kill(os.getpid(), signal.SIGHUP)
        async with asyncio.timeout(10):
            while not n_renewed:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        second = await asyncio.to_thread(served)
        assert hashlib.sha256(second).hexdigest() == ready[1].certificate_sha256
        assert live.current.spki_sha256 == ready[1].spki_sha256  # what the proof binds from now on
    finally:
        following.cancel()
        server.close()
        await server.wait_closed()
