"""A registry and its blob store behind a real aiohttp server on loopback, in the test's own event loop."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from cloud_gateway.blobs import BlobStore
from cloud_gateway.chunk_routes import add_chunk_routes
from cloud_gateway.chunk_service import ChunkService
from cloud_gateway.registry import Registry
from cloud_gateway.uploads import add_routes
from hybrid.errors import Forbidden
from hybrid.hosting.identity import RIGHTS, Role


@dataclass
class RegistryServer:
    """What a test may look at and meddle with.

    Attributes:
        role: what whoever asks may do.
        before: called with each request before it is handled; may raise to break it.
        sent: (method, path, bytes of the body announced) of each request.
    """

    url: str
    registry: Registry
    blobs: BlobStore
    role: Role = "publisher"
    before: Callable[[web.Request], None] | None = None
    sent: list[tuple[str, str, int]] = field(default_factory=list)

    def uploaded_bytes(self) -> int:
        """Bytes of all pieces that were announced."""
        return sum(n_bytes for method, _, n_bytes in self.sent if method == "PATCH")


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[RegistryServer]:
    """Serve the registry in `folder` until the block ends."""
    blobs = BlobStore(folder)
    registry = Registry(folder, blobs)
    server = RegistryServer(url="", registry=registry, blobs=blobs)

    def admit(request: web.Request, right: str) -> None:
        if right not in RIGHTS[server.role]:
            raise Forbidden(f"role {server.role} lacks {right}")

    @web.middleware
    async def watch(request: web.Request, handler: Callable) -> web.StreamResponse:
        server.sent.append((request.method, request.path, request.content_length or 0))
        if server.before is not None:
            server.before(request)
        return await handler(request)

    app = web.Application(middlewares=[watch])
    add_routes(app, registry, blobs, admit)
    add_chunk_routes(app, ChunkService(registry.find_blob, folder / "chunks"), admit)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()
        registry.close()
