"""Publishers' keys on this machine: the user's own private key, and the public keys that the user trusts."""

import os
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hybrid.artifact.signature import key_id, new_private_key, public_key_of
from hybrid.errors import BadMessage, Conflict, Forbidden, NotFound, StorageError

VARIABLE: Final = "HYBRID_PUBLISHERS"
"""Public keys that are trusted, or files of such, with commas between them."""

OWN_KEY_NAME: Final = "publisher.key"
TRUSTED_NAME: Final = "publishers.txt"
_MAX_KEY_BYTES: Final = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Publisher:
    """A trusted public key: its raw 32 bytes, and where the trust comes from."""

    public_key: bytes
    origin: str

    @property
    def key_id(self) -> str:
        """First 16 hex digits of the SHA-256 of the raw public key."""
        return key_id(self.public_key)


def config_dir() -> Path:
    """Folder of what cannot be had again: `HYBRID_CONFIG`, else where the platform keeps a user's settings."""
    own = os.environ.get("HYBRID_CONFIG")
    if own:
        return Path(own).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "hybrid"
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming") / "hybrid"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "hybrid"


def own_key_path() -> Path:
    """Where the user's own private key lies, or would."""
    return config_dir() / OWN_KEY_NAME


def create_key(path: Path) -> bytes:
    """Makes a private key (Ed25519, PKCS 8 PEM without a password, mode 0600); its raw public key.

    Raises:
        Conflict: there is a file already; keys are never overwritten.
        StorageError: the folder cannot be written.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    raw = new_private_key()
    text = Ed25519PrivateKey.from_private_bytes(raw).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".key-")  # mode 0600 from the first moment
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, path)  # unlike a rename, never replaces a key that is there
        finally:
            Path(draft).unlink(missing_ok=True)
    except FileExistsError as exc:
        raise Conflict(f"{path}: there is a key already; name another file, or move that one away") from exc
    except OSError as exc:
        raise StorageError(f"{path}: {exc.strerror or exc}; name a file that can be written", path=str(path)) from exc
    return public_key_of(raw)


def read_key(path: Path) -> bytes:
    """The raw private key in a file: PKCS 8 PEM, as `create_key` and `openssl genpkey -algorithm ed25519` write it.

    Raises:
        NotFound: no such file.
        Forbidden: others may read it.
        BadMessage: no Ed25519 private key without a password.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_MAX_KEY_BYTES)
    except FileNotFoundError as exc:
        raise NotFound(
            f"{path}: no such key; make one with `hybrid keys create`", advice="Make a key: hybrid keys create."
        ) from exc
    except OSError as exc:
        raise StorageError(f"{path}: {exc.strerror or exc}", path=str(path)) from exc
    if os.name == "posix" and stat.S_IMODE(mode) & 0o077:
        raise Forbidden(f"{path}: others may read this key (mode {stat.S_IMODE(mode):04o}); `chmod 600` it")
    try:
        key = load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise BadMessage(f"{path}: no private key without a password ({exc}); `hybrid keys create` makes one") from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise BadMessage(f"{path}: a key of another kind; an Ed25519 key is wanted, `hybrid keys create` makes one")
    return key.private_bytes_raw()


def trust(public_key: bytes, name: str = "") -> bool:
    """Adds a public key to the user's trusted publishers; whether it was new.

    Raises:
        BadMessage: no public key of 32 bytes, or a name of more than one line.
        StorageError: the file cannot be written.
    """
    if len(public_key) != 32 or "\n" in name:
        raise BadMessage("a public key of 32 bytes and a name of one line are wanted")
    path = config_dir() / TRUSTED_NAME
    try:
        if public_key in {known.public_key for known in _listed(path)}:
            return False
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{public_key.hex()} {name}".rstrip() + "\n")
    except OSError as exc:
        raise StorageError(f"{path}: {exc.strerror or exc}", path=str(path)) from exc
    return True


def publishers() -> tuple[Publisher, ...]:
    """Whom this user trusts: `HYBRID_PUBLISHERS`, the user's list, and the user's own key.

    Raises:
        BadMessage: a word or line that is no public key, or an own key that cannot be read as one.
        StorageError, Forbidden: a file that is there and cannot be used.
    """
    found = [*_from_variable(os.environ.get(VARIABLE, "")), *_listed(config_dir() / TRUSTED_NAME)]
    own = own_key_path()
    if own.exists():
        found.append(Publisher(public_key=public_key_of(read_key(own)), origin=str(own)))
    return tuple({publisher.public_key: publisher for publisher in reversed(found)}.values())


def trusted_keys() -> Mapping[str, bytes]:
    """`publishers` as key id -> raw public key."""
    return {publisher.key_id: publisher.public_key for publisher in publishers()}


def parse_public_key(text: str) -> bytes:
    """The raw public key that 64 hex digits say.

    Raises:
        BadMessage: anything else.
    """
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != 32 or len(text) != 64:
        raise BadMessage(f"{text[:80]!r} is no public key; 64 hex digits are wanted, as `hybrid keys show` prints them")
    return raw


def _from_variable(value: str) -> Iterator[Publisher]:
    for word in filter(None, (part.strip() for part in value.split(","))):
        if len(word) == 64 and "/" not in word and not Path(word).exists():
            yield Publisher(public_key=parse_public_key(word), origin=VARIABLE)
        elif Path(word).expanduser().exists():
            yield from _listed(Path(word).expanduser())
        else:
            raise BadMessage(f"{VARIABLE}: {word[:80]!r} is neither a public key (64 hex digits) nor a file of such")


def _listed(path: Path) -> Iterator[Publisher]:
    """The keys of a file: one a line, a name behind it, `#` before a remark."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as exc:
        raise StorageError(f"{path}: cannot be read ({exc})", path=str(path)) from exc
    for line in lines:
        words = line.partition("#")[0].split()
        if words:
            yield Publisher(public_key=parse_public_key(words[0]), origin=str(path))
