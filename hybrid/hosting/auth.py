"""Tokens as the running gateway sees them: verified from memory, revoked within a second.

Design: all tokens are kept in memory, and a thread looks twice a second whether another process changed the file (one
`PRAGMA data_version`), so that a request costs microseconds and never waits for the disk.
"""

import hmac
import logging
import secrets
import stat
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from hybrid.errors import Conflict, HybridError, NotFound, StorageError, Unauthenticated
from hybrid.hosting.identity import ANYONE, Identity, Role
from hybrid.hosting.private_file import write_once
from hybrid.hosting.token_store import FILE_NAME, TokenRecord, TokenStore
from hybrid.transport.proof_mac import proof_mac
from hybrid.transport.token import Token

ADMIN_TOKEN_FILE: Final = "admin.token"  # noqa: S105 (a file name)
_LOG: Final = logging.getLogger("hybrid.gateway.auth")
_WATCH_S: Final = 0.4
_NOTE_USE_S: Final = 60.0
_NO_KEY: Final = bytes(32)
_REFUSAL: Final = "this gateway knows no such token; check it, or have its administrator make one"


class Lender(Protocol):
    """Whoever gives out tokens for a while that are not in the tokens' file. Called from any thread, on memory only."""

    def find(self, token_id: str) -> tuple[bytes, Identity] | None:
        """Key (SHA-256 of the secret) and holder of a token that was lent and has not run out."""
        ...

    def stands(self, identity: Identity) -> bool:
        """Whether the holder of a token that was good when a connection began may still use it."""
        ...


class Tokens:
    """The gateway's tokens. Every method may be called from any thread; those that read a token touch memory only.

    Attributes:
        lender: of tokens beside those in the file; None for nobody.
    """

    def __init__(self, data: Path) -> None:
        """Open `DATA/tokens.sqlite`, or make it.

        Raises:
            StorageError: the file cannot be used.
        """
        self._store = TokenStore(data / FILE_NAME)
        self._version = self._store.version()
        self._good: dict[str, tuple[bytes, Identity]] = {}
        self._used_s: dict[str, float] = {}
        self._loading = threading.Lock()
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None
        self.lender: Lender | None = None
        self._load()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def create(self, role: Role, name: str) -> tuple[str, str]:
        """Make a token: its ID and its text, which is kept nowhere else."""
        while True:
            token = Token.fresh()
            try:
                return self.adopt(token.text, role, name), token.text
            except Conflict:  # one ID in 2**40 is taken: draw again
                continue

    def adopt(self, text: str, role: Role, name: str) -> str:
        """Take over a token that was made elsewhere, so that one token opens several gateways; returns its ID.

        Raises:
            Unauthenticated: the text is no token.
            Conflict: its ID exists here.
        """
        token = Token.parse(text)
        self._store.insert(TokenRecord(id=token.id, role=role, name=name, key=token.key, created_s=time.time()))
        self._load()
        _LOG.info("token.created id=%s role=%s name=%r", token.id, role, name)
        return token.id

    def verify(self, text: str) -> Identity:
        """Who holds this token. Costs microseconds.

        Raises:
            Unauthenticated: no token, an unknown one, or a revoked one; the message does not say which.
        """
        token = Token.parse(text)
        key, identity = self._found(token.id) or (_NO_KEY, None)
        if not hmac.compare_digest(key, token.key) or identity is None:
            raise Unauthenticated(_REFUSAL)
        if not identity.box_id:
            self._used_s[token.id] = time.time()
        return identity

    def check(self, identity: Identity) -> None:
        """Return if the token of an identity verified earlier is still good; for connections that stay open.

        Raises:
            Unauthenticated: it was revoked.
        """
        if identity is ANYONE:
            return
        if identity.box_id:
            is_good = self.lender is not None and self.lender.stands(identity)
        else:
            is_good = identity.token_id in self._good
        if not is_good:
            raise Unauthenticated(_REFUSAL)

    def proof(self, token_id: str, *, client_nonce: bytes, server_nonce: bytes, spki_sha256: bytes) -> str:
        """This gateway's proof that it holds a token, in hex; one under a random key for an unknown token."""
        stranger = secrets.token_bytes(32)
        key, _ = self._found(token_id) or (stranger, None)
        mac = proof_mac(
            key, token_id=token_id, client_nonce=client_nonce, server_nonce=server_nonce, spki_sha256=spki_sha256
        )
        return mac.hex()

    def revoke(self, token_id: str) -> None:
        """End a token for good; saying it twice changes nothing.

        Raises:
            NotFound: there is no such token.
        """
        if not self._store.revoke(token_id, time.time()):
            raise NotFound(
                f"no token {token_id!r} on this gateway; `hybrid gateway token ls` lists them",
                advice="List the tokens: hybrid gateway token ls.",
            )
        self._load()
        _LOG.info("token.revoked id=%s", token_id)

    def records(self) -> tuple[TokenRecord, ...]:
        """Every token ever made, oldest first, revoked ones included."""
        return self._store.records()

    def refresh(self) -> bool:
        """Take over what another process wrote; whether there was anything."""
        version = self._store.version()
        if version == self._version:
            return False
        self._load()
        self._version = version
        return True

    def watch(self) -> None:
        """Follow other processes' changes and write down last uses, in a thread of its own, until `close`."""
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._follow, name="hybrid-tokens", daemon=True)
            self._watcher.start()

    def close(self) -> None:
        """Stop watching, write down the last uses, close the file."""
        self._stop.set()
        if self._watcher is not None:
            self._watcher.join()
        try:
            self._note_use()
        except HybridError as exc:
            _LOG.warning("token.use_not_noted error=%s", exc)
        self._store.close()

    def _found(self, token_id: str) -> tuple[bytes, Identity] | None:
        """Key and holder of a good token. Both places are looked at, whoever asks, and for whatever token."""
        lent = self.lender.find(token_id) if self.lender is not None else None
        return self._good.get(token_id) or lent

    def _load(self) -> None:
        with self._loading:  # reading and taking over are one step, else an older read could undo a revocation
            self._good = {r.id: (r.key, r.identity) for r in self._store.records() if r.revoked_s is None}

    def _note_use(self) -> None:
        used_s, self._used_s = self._used_s, {}
        if used_s:
            self._store.note_use(dict(used_s))

    def _follow(self) -> None:
        noted_s = time.monotonic()
        while not self._stop.wait(_WATCH_S):
            try:
                self.refresh()
                if time.monotonic() - noted_s >= _NOTE_USE_S:
                    noted_s = time.monotonic()
                    self._note_use()
            except HybridError as exc:  # a disk that fails for a while must not stop the gateway, nor this thread
                _LOG.warning("token.file_unreadable error=%s", exc)


def authenticate(authorization: str | None, tokens: Tokens | None) -> Identity:
    """Who sent a request, by its Authorization header.

    Args:
        authorization: the header's value, or None.
        tokens: None where the gateway runs without authentication.

    Raises:
        Unauthenticated: no token, or not a good one.
    """
    if tokens is None:
        return ANYONE
    if authorization is None:
        raise Unauthenticated("no token came with the request; send `Authorization: Bearer hyb_ID_SECRET`")
    scheme, _, text = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated("the Authorization header must read `Bearer hyb_ID_SECRET`")
    return tokens.verify(text.strip())


def ensure_admin_token(data: Path, tokens: Tokens) -> Path:
    """At the first start leave an administrator's token in `DATA/admin.token` (mode 0600); returns that path.

    A token that was laid down there beforehand is adopted.

    Raises:
        StorageError: the file cannot be written, or holds something else than a token.
    """
    path = data / ADMIN_TOKEN_FILE
    if any(record.role == "admin" for record in tokens.records()):
        return path
    text = write_once(path, f"{Token.fresh().text}\n".encode()).decode("ascii", "replace").strip()
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        _LOG.warning("auth.admin_token_readable_by_others path=%s do='chmod 600'", path)
    try:
        tokens.adopt(text, "admin", ADMIN_TOKEN_FILE)
    except Unauthenticated as exc:
        raise StorageError(f"{path} does not hold a token; delete it to have one made", path=str(path)) from exc
    except Conflict:
        _LOG.info(
            "auth.admin_token_known path=%s", path
        )  # another process that started at the same moment took it over
    return path
