"""The HTTP calls by which models come and go: blobs in resumable pieces, versions, lists."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from cloud_gateway.blobs import BlobStore, Upload
from cloud_gateway.registry import Registry, VersionRecord
from hybrid.artifact.manifest import LATEST, MAX_MANIFEST_BYTES
from hybrid.artifact.names import check_digest, check_word
from hybrid.artifact.signature import Signature
from hybrid.errors import BadMessage, GatewayStalled, HybridError, NotFound, TooLarge
from hybrid.hosting.identity import Right

MAX_PIECE_BYTES: Final = 8 << 20
"""Most bytes of one upload request."""
SIGNATURE_HEADER: Final = "Hybrid-Signature"
_WRITE_BYTES: Final = 1 << 20
_STALL_S: Final = 30.0

Admit = Callable[[web.Request, Right], None]
Committed = Callable[[str], object]
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def admit_identity(request: web.Request, right: Right) -> None:
    """Refuse a request whose identity (put there by the gateway's middleware) lacks a right.

    Raises:
        Forbidden: it does.
    """
    request["identity"].require(right)


def _ignore(name: str) -> None:
    """Nobody wants to know."""


def add_routes(
    app: web.Application,
    registry: Registry,
    blobs: BlobStore,
    admit: Admit = admit_identity,
    *,
    committed: Committed = _ignore,
) -> None:
    """Serve a registry and its blob store; docs/artifact.md describes each call.

    Args:
        app: gets the routes.
        registry: versions.
        blobs: where uploads go.
        admit: returns, or raises `Unauthenticated` or `Forbidden`.
        committed: called on the event loop with a model's name after each push of it, whether or not its client is
            still there to hear the answer.
    """
    calls = _Calls(registry=registry, blobs=blobs, admit=admit, committed=committed)
    blob, versions = "/v2/hybrid/blobs/{sha256}", "/v2/hybrid/models/{name}/versions"
    app.router.add_route("HEAD", blob, answering(calls.blob_state))
    app.router.add_route("PATCH", blob, answering(calls.receive_piece))
    app.router.add_get(blob, answering(calls.send_blob), allow_head=False)
    app.router.add_post(versions, answering(calls.commit))
    app.router.add_get("/v2/hybrid/models", answering(calls.list_models))
    app.router.add_get("/v2/hybrid/models/{name}", answering(calls.list_versions))
    app.router.add_get(versions + "/{version}", answering(calls.show_version))
    app.router.add_get(versions + "/{version}/manifest", answering(calls.send_manifest))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Calls:
    registry: Registry
    blobs: BlobStore
    admit: Admit
    committed: Committed

    async def blob_state(self, request: web.Request) -> web.StreamResponse:
        """How much of a blob is here."""
        self.admit(request, "read")
        sha256 = check_digest(request.match_info["sha256"])
        found = await asyncio.to_thread(self.registry.find_blob, sha256)
        if found is not None:
            size = found.stat().st_size
            return web.Response(headers={"Upload-Offset": str(size), "Upload-Complete": "?1"})
        self.admit(request, "publish")
        offset = await asyncio.to_thread(self.blobs.offset, sha256)
        return web.Response(
            status=200 if offset else 404, headers={"Upload-Offset": str(offset), "Upload-Complete": "?0"}
        )

    async def receive_piece(self, request: web.Request) -> web.StreamResponse:
        """The next bytes of a blob; the last ones finish it."""
        self.admit(request, "publish")
        sha256 = check_digest(request.match_info["sha256"])
        offset, total_bytes = upload_number(request, "Upload-Offset"), upload_number(request, "Upload-Length")
        check_body(request, MAX_PIECE_BYTES)
        found = await asyncio.to_thread(self.registry.find_blob, sha256)
        if found is not None:
            return _here(201, total_bytes)
        upload = await self._begin(sha256, offset, total_bytes)
        try:
            await take_body(request, upload)
            is_complete = upload.is_complete
            if is_complete:
                await asyncio.to_thread(upload.finish)
            return _here(201 if is_complete else 204, upload.offset)
        finally:
            await asyncio.shield(asyncio.to_thread(upload.close))

    async def _begin(self, sha256: str, offset: int, total_bytes: int) -> Upload:
        """The upload, or nothing left open: a thread cannot be cancelled, so what it opens late is closed late."""
        work = asyncio.ensure_future(
            asyncio.to_thread(self.blobs.begin, sha256, offset=offset, total_bytes=total_bytes)
        )
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(_close_late)
            raise

    async def send_blob(self, request: web.Request) -> web.StreamResponse:
        """The bytes of a blob; aiohttp honours `Range`."""
        self.admit(request, "read")
        path = await asyncio.to_thread(self.registry.find_blob, check_digest(request.match_info["sha256"]))
        if path is None:
            raise NotFound("no such blob on this gateway")
        return web.FileResponse(path, headers={"Content-Type": "application/octet-stream"})

    async def commit(self, request: web.Request) -> web.StreamResponse:
        """A manifest: the version becomes visible."""
        self.admit(request, "publish")
        name = check_word(request.match_info["name"])
        check_body(request, MAX_MANIFEST_BYTES)
        data = await read_body(request)
        header = request.headers.get(SIGNATURE_HEADER)
        signature = Signature.of_text(header) if header is not None else None
        work = asyncio.ensure_future(asyncio.to_thread(self.registry.commit, data, signature, name=name))
        work.add_done_callback(lambda done: self._tell(done, name))
        record, is_new = await asyncio.shield(work)
        return web.json_response(_public(record, signature), status=201 if is_new else 200)

    def _tell(self, done: asyncio.Future[tuple[VersionRecord, bool]], name: str) -> None:
        if not done.cancelled() and done.exception() is None:
            self.committed(name)

    async def list_models(self, request: web.Request) -> web.StreamResponse:
        """Every name with its versions."""
        self.admit(request, "read")
        records = await asyncio.to_thread(self.registry.list_versions)
        names = dict.fromkeys(record.name for record in records)
        models = [
            {"name": name, "versions": [_public(record) for record in records if record.name == name]}
            for name in sorted(names)
        ]
        return web.json_response({"models": models})

    async def list_versions(self, request: web.Request) -> web.StreamResponse:
        """The versions of one name."""
        self.admit(request, "read")
        name = check_word(request.match_info["name"])
        records = await asyncio.to_thread(self.registry.list_versions, name)
        if not records:
            await asyncio.to_thread(self.registry.resolve, name)
        return web.json_response({"name": name, "versions": [_public(record) for record in records]})

    async def show_version(self, request: web.Request) -> web.StreamResponse:
        """One version."""
        record, signature = await self._asked(request)
        return web.json_response(_public(record, signature))

    async def send_manifest(self, request: web.Request) -> web.StreamResponse:
        """The exact bytes of a version's manifest."""
        record, signature = await self._asked(request)
        data = await asyncio.to_thread(self.registry.manifest_bytes, record.artifact_digest)
        headers = {"Hybrid-Artifact-Digest": record.artifact_digest}
        if signature is not None:
            headers[SIGNATURE_HEADER] = signature.text
        return web.Response(body=data, content_type="application/json", headers=headers)

    async def _asked(self, request: web.Request) -> tuple[VersionRecord, Signature | None]:
        self.admit(request, "read")
        name = check_word(request.match_info["name"])
        version = check_word(request.match_info["version"], "version")
        record = await asyncio.to_thread(self.registry.resolve, name, None if version == LATEST else version)
        return record, await asyncio.to_thread(self.registry.signature, record.artifact_digest)


def _close_late(done: asyncio.Future[Upload]) -> None:
    if not done.cancelled() and done.exception() is None:
        asyncio.get_running_loop().run_in_executor(None, done.result().close)


def answering(handler: _Handler) -> _Handler:
    """Errors as `{"error", "code"}` with the facts that a client goes on with."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except HybridError as exc:
            facts: dict[str, object] = {
                key: exc.fields[key]
                for key in ("missing", "upload_offset", "artifact_digest", "retry_after_s")
                if key in exc.fields
            }
            if exc.advice is not None:
                facts["advice"] = exc.advice
            response = web.json_response({"error": str(exc), "code": exc.code, **facts}, status=exc.http_status)
            if "retry_after_s" in exc.fields:
                response.headers["Retry-After"] = str(max(1, round(exc.fields["retry_after_s"])))
            if "upload_offset" in facts:
                response.headers["Upload-Offset"] = str(facts["upload_offset"])
            if not request.content.is_eof():
                response.force_close()
            return response

    return answer


async def take_body(request: web.Request, upload: Upload) -> None:
    """Write a request's body to an upload as it comes, off the event loop, in blocks of a megabyte."""
    left = request.content_length or 0
    while left:
        block = await _block(request, min(left, _WRITE_BYTES))
        if not block:
            raise BadMessage(f"the body ended {left} bytes early; ask for the offset and go on from there")
        left -= len(block)
        await asyncio.to_thread(upload.append, block)


async def _block(request: web.Request, wanted_bytes: int) -> bytes:
    """Up to so many bytes: whatever is there when the stream pauses, so that a broken upload loses little."""
    parts: list[bytes] = []
    n_bytes = 0
    try:
        async with asyncio.timeout(_STALL_S):
            while n_bytes < wanted_bytes:
                part = await request.content.read(wanted_bytes - n_bytes)
                if not part:
                    break
                parts.append(part)
                n_bytes += len(part)
    except TimeoutError as exc:
        if not parts:
            raise GatewayStalled(f"no byte came for {_STALL_S:.0f} s; go on when the link is back") from exc
    except (ConnectionError, web.HTTPException):
        if not parts:
            raise
    return b"".join(parts)


async def read_body(request: web.Request) -> bytes:
    """A checked body of known length, as its sender manages to bring it.

    Raises:
        BadMessage: it ended early.
        GatewayStalled: no byte came for a while.
    """
    left = request.content_length or 0
    data = bytearray()
    while left and (block := await _block(request, left)):
        data += block
        left -= len(block)
    if left:
        raise BadMessage(f"the body ended {left} bytes early")
    return bytes(data)


def check_body(request: web.Request, most_bytes: int) -> None:
    """Length known and within the limit, no encoding: before a byte of the body is read."""
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise BadMessage("a Content-Encoding is refused here; send the bytes as they are")
    if request.content_length is None:
        raise BadMessage("Content-Length is missing; send the length of the body")
    if request.content_length > most_bytes:
        raise TooLarge(f"a body of {request.content_length} bytes is refused: at most {most_bytes} here")


def upload_number(request: web.Request, header: str) -> int:
    """A count of bytes from a request's header. Raises `BadMessage`."""
    text = request.headers.get(header, "")
    if not text.isascii() or not text.isdigit() or len(text) > 16:
        raise BadMessage(f"header {header} is {text[:40]!r}: a whole number of bytes is wanted")
    return int(text)


def _here(status: int, offset: int) -> web.Response:
    return web.Response(
        status=status, headers={"Upload-Offset": str(offset), "Upload-Complete": "?1" if status == 201 else "?0"}
    )


def _public(record: VersionRecord, signature: Signature | None = None) -> dict[str, object]:
    return {
        "name": record.name,
        "version": record.version,
        "sequence": record.sequence,
        "model_digest": record.model_digest,
        "artifact_digest": record.artifact_digest,
        "size_bytes": record.size_bytes,
        "created_s": record.created_s,
        "signed_by": signature.key_id if signature else None,
    }
