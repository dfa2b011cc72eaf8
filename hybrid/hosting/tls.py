"""The gateway's certificate: the one it was given, or its own, made at the first start.

Design: an own certificate has no dates that matter (1970 to RFC 5280's "no end"), since devices whose clock is wrong
must accept it; what they trust is its pin, or the proof that binds its key.
"""

import datetime as dt
import hashlib
import ipaddress
import logging
import os
import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from hybrid.errors import StorageError
from hybrid.hosting.private_file import write_once
from hybrid.transport.proof_mac import spki_sha256

_LOG: Final = logging.getLogger("hybrid.gateway.tls")
_NOT_BEFORE: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_NO_END: Final = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCertificate:
    """A certificate and key that fit together.

    Attributes:
        certificate_path: PEM file, the server's certificate first, then its chain.
        key_path: PEM file of its private key, without a password.
        certificate_sha256: SHA-256 of the certificate's DER form, in hex: what devices pin.
        spki_sha256: SHA-256 of its public key (32 bytes): what the proof binds.
    """

    certificate_path: Path
    key_path: Path
    certificate_sha256: str
    spki_sha256: bytes

    def context(self) -> ssl.SSLContext:
        """A server's TLS context: TLS 1.2 or later, HTTP/1.1, no client certificates."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(self.certificate_path, self.key_path)
        return context


def load_certificate(certificate_path: Path, key_path: Path) -> ServerCertificate:
    """A given certificate and key, checked to fit.

    Raises:
        StorageError: a file is missing, unreadable, no PEM, password-protected, or the two do not fit.
    """
    certificate = _read_certificate(certificate_path)
    public = _read_key(key_path).public_key()
    if public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != certificate.public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    ):
        raise _fault(certificate_path, f"does not fit the key {key_path}; give the two files that were made together")
    der = certificate.public_bytes(Encoding.DER)
    if certificate.not_valid_after_utc < dt.datetime.now(dt.UTC):
        _LOG.warning("tls.certificate_expired path=%s at=%s", certificate_path, certificate.not_valid_after_utc)
    return ServerCertificate(
        certificate_path=certificate_path,
        key_path=key_path,
        certificate_sha256=hashlib.sha256(der).hexdigest(),
        spki_sha256=spki_sha256(der),
    )


def ensure_certificate(data: Path, names: Iterable[str] = ()) -> ServerCertificate:
    """The gateway's own certificate in `DATA/tls`, made at the first start.

    Args:
        data: the gateway's folder.
        names: host names and addresses beside this machine's own; used only when a certificate is made.

    Raises:
        StorageError: the folder cannot be written, or what is there cannot be used.
    """
    certificate_path, key_path = data / "tls" / "certificate.pem", data / "tls" / "key.pem"
    if certificate_path.exists() and not key_path.exists():
        raise _fault(key_path, f"is gone but {certificate_path} is there; restore it, or delete both to make new ones")
    fresh = ec.generate_private_key(ec.SECP256R1())
    write_once(key_path, fresh.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    if not certificate_path.exists():
        key = _read_key(key_path)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise _fault(key_path, "holds no elliptic-curve key; delete it to have one made")
        made = self_signed(key, [*local_names(), *names])
        write_once(certificate_path, made.public_bytes(Encoding.PEM))
        _LOG.info("tls.certificate_made path=%s", certificate_path)
    return load_certificate(certificate_path, key_path)


def self_signed(
    key: ec.EllipticCurvePrivateKey,
    names: Iterable[str],
    *,
    not_before: dt.datetime = _NOT_BEFORE,
    not_after: dt.datetime = _NO_END,
) -> x509.Certificate:
    """A self-signed server certificate for host names and IP addresses."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hybrid gateway")])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(
            x509.SubjectAlternativeName([_general_name(name) for name in dict.fromkeys(names)]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )


def local_names() -> list[str]:
    """This machine's names and addresses, loopback first."""
    import psutil

    host = socket.gethostname().encode("ascii", "replace").decode().replace("?", "-")
    names = ["localhost", "127.0.0.1", "::1", host]
    if "." not in host:
        names.append(f"{host}.local")
    for addresses in psutil.net_if_addrs().values():
        names += [
            a.address for a in addresses if a.family in {socket.AF_INET, socket.AF_INET6} and "%" not in a.address
        ]
    return list(dict.fromkeys(names))


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise _fault(path, f"cannot be read: {os.strerror(exc.errno or 0)}; check its path and rights") from exc


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError as exc:
        raise _fault(path, "holds no certificate in PEM form; convert it, or give another file") from exc


def _read_key(path: Path) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(_read(path), password=None)
    except TypeError as exc:
        raise _fault(path, "is protected by a password; a service needs a key without one") from exc
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise _fault(path, "holds no private key in PEM form; convert it, or give another file") from exc


def _fault(path: Path, what: str) -> StorageError:
    return StorageError(f"{path} {what}", path=str(path))
