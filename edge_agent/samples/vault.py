"""Seals what a box keeps of its inputs: AES-256-GCM, with a key that a stolen disk does not hold where that can be.

The key comes from, in this order: a systemd credential (`hybrid-vault`), a secret sealed by the TPM, or a file beside
what it seals; then the disk alone is enough to read everything, and the vault says so. All that are there open what
they sealed, so that a box may be given a better one; the first of them seals.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Final, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from edge_agent.disk import Disk, write_durably
from edge_agent.part import Problem
from edge_agent.samples.tpm import Tpm
from hybrid.errors import CorruptContent, StorageError

Source = Literal["credential", "tpm", "file"]

CREDENTIAL: Final = "hybrid-vault"
CREDENTIALS_VARIABLE: Final = "CREDENTIALS_DIRECTORY"
KEY_FILE: Final = "vault.key"
COPY_FILE: Final = "vault.key.copy"
TPM_FILE: Final = "vault.tpm"
_LEAST_SECRET_BYTES: Final = 16
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_ID_BYTES: Final = 8
_VERSION: Final = b"\x01"
_log = logging.getLogger("hybrid.agent.vault")


class Vault:
    """The box's keys; a `Sealer`. Every method may be called from any thread.

    Attributes:
        source: where the key that seals comes from.
        key_id: names that key.
    """

    def __init__(self, secrets: Sequence[tuple[Source, bytes]], *, trouble: str = "") -> None:
        """Take secrets, the one that seals first."""
        self._ciphers: dict[str, AESGCM] = {}
        for _, secret in secrets:
            key_id, cipher = _cipher(secret)
            self._ciphers[key_id] = cipher
        self.source: Source = secrets[0][0]
        self.key_id = next(iter(self._ciphers))
        self._trouble = trouble

    def knows(self, key_id: str) -> bool:
        """See `Sealer`."""
        return key_id in self._ciphers

    def seal(self, content: bytes, about: bytes) -> bytes:
        """See `Sealer`."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._ciphers[self.key_id].encrypt(nonce, content, about)
        return b"".join((_VERSION, bytes.fromhex(self.key_id), nonce, sealed))

    def unseal(self, sealed: bytes, about: bytes) -> bytes:
        """See `Sealer`."""
        named, head = sealed[1 : 1 + _ID_BYTES].hex(), 1 + _ID_BYTES
        cipher = self._ciphers.get(named)
        if sealed[:1] != _VERSION or cipher is None:
            raise CorruptContent(f"{len(sealed)} bytes that no key of this box sealed")
        nonce = sealed[head : head + _NONCE_BYTES]
        try:
            return cipher.decrypt(nonce, sealed[head + _NONCE_BYTES :], about)
        except (InvalidTag, ValueError) as exc:
            raise CorruptContent(f"{len(sealed)} bytes were changed, or sealed with another key") from exc

    def problems(self) -> tuple[Problem, ...]:
        """What a thief of the disk could read."""
        if self.source != "file":
            return ()
        why = f" ({self._trouble})" if self._trouble else ""
        return (
            Problem(
                code="vault_key_on_disk",
                what=f"samples and waiting requests are sealed with a key on the same disk{why}: a stolen disk is "
                "readable",
                do=f"Give the service a credential {CREDENTIAL!r} (systemd-creds encrypt, LoadCredentialEncrypted=), "
                "or install tpm2-tools on a box with a TPM; remove vault.key* once what it sealed has left.",
            ),
        )


def open_vault(
    folder: Path,
    disk: Disk,
    *,
    environment: Mapping[str, str],
    tpm: Tpm | None = None,
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> Vault:
    """The box's vault; its key is made at the first start. Blocking.

    Args:
        folder: where a sealed or plain key lies.
        disk: on which that is.
        environment: of the process; systemd names its credentials there.
        tpm: this machine's; None asks for it.
        random_bytes: draws the key.

    Raises:
        StorageError: a credential is unfit, or the disk refused.
    """
    secrets: list[tuple[Source, bytes]] = []
    trouble = ""
    credential = _credential(environment)
    if credential is not None:
        secrets.append(("credential", credential))
    try:
        sealed = _of_tpm(folder, disk, tpm or Tpm(), random_bytes, makes=not secrets)
        if sealed is not None:
            secrets.append(("tpm", sealed))
    except StorageError as exc:
        trouble = str(exc)
    plain = _plain(folder, disk)
    if plain is not None:
        secrets.append(("file", plain))
    if not secrets:
        secrets.append(("file", random_bytes(_KEY_BYTES)))
        for name in (KEY_FILE, COPY_FILE):
            _write(disk, folder / name, secrets[0][1] + _check(secrets[0][1]))
    return Vault(secrets, trouble=trouble)


def _plain(folder: Path, disk: Disk) -> bytes | None:
    """The key that lies beside; with it everything sealed would be lost, so a damaged one is known, and has a copy."""
    found: dict[str, bytes | None] = {}
    failure: StorageError | None = None
    for name in (KEY_FILE, COPY_FILE):
        try:
            content = _read(disk, folder / name) or b""
        except StorageError as exc:
            failure, content = exc, b""
        seen = content[:_KEY_BYTES]
        found[name] = seen if len(seen) == _KEY_BYTES and content[_KEY_BYTES:] == _check(seen) else None
    key = found[KEY_FILE] or found[COPY_FILE]
    if key is None:
        if failure is not None:
            raise failure
        return None
    for name, sound in found.items():
        if sound is None:
            _log.error("vault.key_mended file=%s", folder / name)
            with suppress(StorageError):
                _write(disk, folder / name, key + _check(key))
    return key


def _check(key: bytes) -> bytes:
    return sha256(b"hybrid vault file" + key).digest()[:_ID_BYTES]


def _of_tpm(folder: Path, disk: Disk, tpm: Tpm, random_bytes: Callable[[int], bytes], *, makes: bool) -> bytes | None:
    """The secret that the TPM keeps, made where there is none and one is wanted."""
    sealed = _read(disk, folder / TPM_FILE)
    if sealed is not None:
        return tpm.unseal(sealed)
    if not makes or not tpm.is_there:
        return None
    secret = random_bytes(_KEY_BYTES)
    _write(disk, folder / TPM_FILE, tpm.seal(secret))
    return secret


def _cipher(secret: bytes) -> tuple[str, AESGCM]:
    key = HKDF(algorithm=hashes.SHA256(), length=_KEY_BYTES, salt=None, info=b"hybrid box vault v1").derive(secret)
    return sha256(b"hybrid vault id" + key).hexdigest()[: 2 * _ID_BYTES], AESGCM(key)


def _credential(environment: Mapping[str, str]) -> bytes | None:
    folder = environment.get(CREDENTIALS_VARIABLE)
    if not folder:
        return None
    path = Path(folder) / CREDENTIAL
    try:
        secret = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as exc:
        if isinstance(exc, PermissionError) and not os.access(folder, os.X_OK):
            return None  # the folder is there, but nothing was mounted on it: seen with systemd 252 in a container
        raise StorageError(f"{path} cannot be read: {exc.strerror}; look at the unit's LoadCredential") from exc
    if len(secret) < _LEAST_SECRET_BYTES:
        raise StorageError(f"{path} holds {len(secret)} bytes; a secret of at least {_LEAST_SECRET_BYTES} is wanted")
    return secret


def _read(disk: Disk, path: Path) -> bytes | None:
    try:
        return disk.read(path)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise StorageError(f"{path} cannot be read: {exc.strerror or exc}") from exc


def _write(disk: Disk, path: Path, content: bytes) -> None:
    disk.make_folder(path.parent)
    write_durably(disk, path, content)
