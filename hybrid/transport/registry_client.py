"""The registry of a gateway as a client sees it: its calls over HTTP, each under a timeout, each error typed."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from types import TracebackType
from typing import Final, Self, TypeVar

import aiohttp
import msgspec
from yarl import URL

from hybrid.artifact.chunk_messages import IndexAnswer, IndexCall, RangesCall
from hybrid.artifact.manifest import LATEST, MAX_MANIFEST_BYTES
from hybrid.artifact.names import check_digest, check_word
from hybrid.artifact.signature import Signature
from hybrid.errors import (
    BadMessage,
    ConnectionLost,
    GatewayStalled,
    GatewayUnreachable,
    GatewayUntrusted,
    HybridError,
    RefusedError,
    from_code,
)
from hybrid.transport.environment_proxy import EnvironmentProxy, environment_proxy
from hybrid.transport.http_reply import ended_in_a_call, plainly
from hybrid.transport.trust import Trust, Verifier

SIGNATURE_HEADER: Final = "Hybrid-Signature"
_MAX_ANSWER_BYTES: Final = 16 << 20
_BLOCK_BYTES: Final = 1 << 20
_NO_GATEWAY: Final = "Check that this is the address of a gateway: something else, or a proxy, answered."
_T = TypeVar("_T")
_STATUS_CODES: Final = {401: "unauthenticated", 403: "forbidden", 404: "not_found", 413: "too_large"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Limits of one call, in seconds."""

    connect_s: float = 10.0
    answer_s: float = 60.0
    """Until an answer begins: committing a large model copies and syncs files."""
    stall_s: float = 30.0
    """Without a byte in either direction."""


class VersionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One committed version, as the gateway tells it."""

    name: str
    version: str
    sequence: int
    model_digest: str
    artifact_digest: str
    size_bytes: int
    created_s: float
    signed_by: str | None = None


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A name and its versions, oldest first."""

    name: str
    versions: tuple[VersionInfo, ...]


class _ModelList(msgspec.Struct, frozen=True):
    models: tuple[ModelInfo, ...]


class _Refusal(msgspec.Struct, frozen=True):
    error: str = ""
    code: str = ""
    missing: tuple[str, ...] = ()
    advice: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobState:
    """How much of a blob the gateway has."""

    offset: int
    is_complete: bool


class RegistryClient:
    """Calls to one gateway's registry; an async context manager that owns its connections."""

    def __init__(
        self, url: str, token: str | None, *, trust: Trust | None = None, timeouts: Timeouts | None = None
    ) -> None:
        """Nothing is sent before the first call; the gateway is verified before the token goes out.

        Args:
            url: `http(s)://HOST:PORT`, with a path in front of `/v2` where there is one.
            token: goes with each call; None for a gateway without authentication.
            trust: how the gateway is verified; by default one that the user named.
            timeouts: limits of each call.
        """
        self.url = url.rstrip("/")
        self._token = token
        self._timeouts = timeouts or Timeouts()
        self._verifier = Verifier(_base(self.url), token, trust or Trust())
        self._session: aiohttp.ClientSession | None = None
        self._proxy = EnvironmentProxy()

    async def __aenter__(self) -> Self:
        return self

    async def _connected(self) -> aiohttp.ClientSession:
        """The session, made at the first call, once the gateway is verified."""
        if self._session is not None:
            return self._session
        tls = await self._verifier.tls()
        self._proxy = await asyncio.to_thread(environment_proxy, URL(self.url))
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        limits = aiohttp.ClientTimeout(
            total=None, sock_connect=self._timeouts.connect_s, sock_read=self._timeouts.answer_s
        )
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=4, ssl=tls),
            headers=headers,
            timeout=limits,
            auto_decompress=False,
            skip_auto_headers=("Accept-Encoding",),
        )
        return self._session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def models(self) -> tuple[ModelInfo, ...]:
        """Every name with its versions."""
        return _decode(await self._json("GET", "v2/hybrid/models"), _ModelList).models

    async def versions(self, name: str) -> tuple[VersionInfo, ...]:
        """The versions of a name, oldest first.

        Raises:
            NotFound: the gateway has no such model.
        """
        return _decode(await self._json("GET", f"v2/hybrid/models/{check_word(name)}"), ModelInfo).versions

    async def version(self, name: str, version: str | None) -> VersionInfo:
        """One version, the newest without a version.

        Raises:
            NotFound: the gateway has no such version.
        """
        return _decode(await self._json("GET", _version_path(name, version)), VersionInfo)

    async def manifest(self, name: str, version: str) -> tuple[bytes, Signature | None]:
        """The exact bytes of a manifest, and the signature that came with it."""
        async with self._call("GET", f"{_version_path(name, version)}/manifest") as response:
            data = await _read(response, MAX_MANIFEST_BYTES)
            header = response.headers.get(SIGNATURE_HEADER)
        return data, Signature.of_text(header) if header is not None else None

    async def commit(self, name: str, manifest: bytes, signature: Signature | None) -> tuple[VersionInfo, bool]:
        """Make a version visible; also whether it is new.

        Raises:
            NotFound: `fields["missing"]` has the digests to upload first.
            Conflict: the version exists with other content.
        """
        headers = {SIGNATURE_HEADER: signature.text} if signature is not None else {}
        path = f"v2/hybrid/models/{check_word(name)}/versions"
        async with self._call("POST", path, data=manifest, headers=headers) as response:
            return _decode(await _read(response, _MAX_ANSWER_BYTES), VersionInfo), response.status == 201

    async def blob_state(self, sha256: str) -> BlobState:
        """How much of a blob is there."""
        async with self._call("HEAD", _blob_path(sha256), fine=(404,)) as response:
            return _blob_state(response)

    async def send_piece(self, sha256: str, piece: bytes, *, offset: int, total_bytes: int) -> BlobState:
        """Send the bytes of a blob from `offset` on.

        Raises:
            Conflict: the blob stands elsewhere, or another upload of it is writing.
            CorruptContent: it was the last piece and the digest is another one.
            DiskFull: the gateway has no room.
        """
        headers = {"Upload-Offset": str(offset), "Upload-Length": str(total_bytes)}
        async with self._call("PATCH", _blob_path(sha256), data=piece, headers=headers) as response:
            return _blob_state(response)

    async def read_blob(self, sha256: str, offset: int, block_bytes: int) -> AsyncIterator[bytes]:
        """The bytes of a blob from `offset` on, in blocks as they come."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        async with self._call("GET", _blob_path(sha256), headers=headers) as response:
            if offset and response.status != 206:
                raise BadMessage(f"{self.url} ignored the wanted range; a proxy in between may have dropped it")
            while block := await response.content.read(block_bytes):
                yield block

    async def chunk_index(self, call: IndexCall) -> IndexAnswer:
        """The index of a file's chunks.

        Raises:
            NotFound: the gateway has no such file, or knows nothing of chunks.
        """
        answer = await self.post("v2/hybrid/chunks/index", msgspec.msgpack.encode(call))
        try:
            return msgspec.msgpack.decode(answer, type=IndexAnswer)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise BadMessage(f"{self.url}: the index of a file's chunks does not parse ({exc})") from exc

    async def chunk_ranges(self, call: RangesCall) -> AsyncIterator[bytes]:
        """Parts of a file, one after the other, in blocks as they come."""
        async with self._call("POST", "v2/hybrid/chunks", data=msgspec.msgpack.encode(call)) as response:
            while block := await response.content.read(_BLOCK_BYTES):
                yield block

    async def blob(self, sha256: str, offset: int) -> AsyncIterator[bytes]:
        """The bytes of a blob from `offset` on; see `read_blob`."""
        async for block in self.read_blob(sha256, offset, _BLOCK_BYTES):
            yield block

    async def get(self, path: str) -> bytes:
        """The answer to a call that asks for JSON."""
        return await self._json("GET", path.lstrip("/"))

    async def post(self, path: str, body: bytes) -> bytes:
        """The answer to a call that takes and gives JSON."""
        async with self._call("POST", path.lstrip("/"), data=body) as response:
            return await _read(response, _MAX_ANSWER_BYTES)

    async def put(self, path: str, body: bytes) -> bytes:
        """The answer to a call that takes a file and gives JSON."""
        async with self._call("PUT", path.lstrip("/"), data=body) as response:
            return await _read(response, _MAX_ANSWER_BYTES)

    async def _json(self, method: str, path: str) -> bytes:
        async with self._call(method, path) as response:
            return await _read(response, _MAX_ANSWER_BYTES)

    @asynccontextmanager
    async def _call(
        self,
        method: str,
        path: str,
        *,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        fine: tuple[int, ...] = (),
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request; an answer of 400 and above is raised as the error that it names, unless `fine`."""
        session = await self._connected()
        url = URL(f"{self.url}/{path}")
        headers = dict(headers or {}) if url.scheme == "https" else {**self._proxy.headers, **(headers or {})}
        body = None if data is None else BytesIO(data)  # aiohttp writes a stream block by block
        try:
            async with session.request(
                method,
                url,
                data=body,
                headers=headers,
                proxy=self._proxy.url,
                proxy_headers=self._proxy.headers,
                allow_redirects=False,
            ) as response:
                if response.status >= 300 and response.status not in fine:
                    raise await _refusal(self.url, response)
                yield response
        except HybridError:
            raise  # some of ours are OSErrors too
        except (aiohttp.ServerFingerprintMismatch, aiohttp.ClientSSLError) as exc:
            self._verifier.forget()
            raise GatewayUntrusted(
                f"{self.url}: its certificate is not the one that was proved, pinned or signed ({exc}); "
                "check the address, or give a token that the gateway holds",
                url=self.url,
            ) from exc
        except aiohttp.ClientConnectorError as exc:
            raise GatewayUnreachable(f"{self.url}: no connection ({plainly(exc)})", url=self.url) from exc
        except TimeoutError as exc:
            raise GatewayStalled(f"{self.url}: no byte within the time limit", url=self.url) from exc
        except (aiohttp.ClientError, OSError) as exc:
            reason = str(exc) or type(exc).__name__
            raise ended_in_a_call(self.url, reason) from exc


def _base(url: str) -> URL:
    try:
        base = URL(url)
        is_sound = base.scheme in ("http", "https") and bool(base.host)
    except ValueError:
        is_sound = False
    if not is_sound:
        raise GatewayUnreachable(
            f"{url[:200]!r} is no gateway's URL; http(s)://HOST:PORT is wanted",
            advice="Write the address as http://HOST:PORT or https://HOST:PORT.",
            url=url[:200],
        )
    return base


async def _refusal(url: str, response: aiohttp.ClientResponse) -> Exception:
    """The error of an answer, as its code says, or as its status does where a proxy answered."""
    body = await _read(response, _MAX_ANSWER_BYTES)
    try:
        told = msgspec.json.decode(body, type=_Refusal)
    except msgspec.MsgspecError:
        told = _Refusal()
    code = told.code or _STATUS_CODES.get(response.status, "")
    message = told.error or f"{url} answered {response.method} with HTTP {response.status}"
    if not code:
        return (ConnectionLost if response.status >= 500 else RefusedError)(message, url=url)
    advice = _NO_GATEWAY if response.status == 404 and not told.code else told.advice
    return from_code(code, message, advice=advice, url=url, missing=told.missing)


async def _read(response: aiohttp.ClientResponse, most_bytes: int) -> bytes:
    body = bytearray()
    while block := await response.content.read(1 << 16):
        body += block
        if len(body) > most_bytes:
            raise BadMessage(f"the gateway's answer has more than {most_bytes} bytes; refused")
    return bytes(body)


def _decode(data: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise BadMessage(f"the gateway's answer does not parse ({exc}); is the URL that of a hybrid gateway?") from exc


def _blob_state(response: aiohttp.ClientResponse) -> BlobState:
    text = response.headers.get("Upload-Offset", "0")
    if not text.isascii() or not text.isdigit():
        raise BadMessage(f"the gateway's Upload-Offset is {text[:40]!r}; is a proxy changing its answers?")
    return BlobState(offset=int(text), is_complete=response.headers.get("Upload-Complete") == "?1")


def _blob_path(sha256: str) -> str:
    return f"v2/hybrid/blobs/{check_digest(sha256)}"


def _version_path(name: str, version: str | None) -> str:
    version = check_word(version, "version") if version else LATEST
    return f"v2/hybrid/models/{check_word(name)}/versions/{version}"
