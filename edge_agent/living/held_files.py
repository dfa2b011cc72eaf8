"""Versions come from the gateway while the link may carry them; else their files wait where they stand."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing

from edge_agent.install.fetching import Files, FileSource
from hybrid.artifact.manifest import FileEntry
from hybrid.errors import LinkHeld
from hybrid.transport.chunk_download import Base


class HeldFiles:
    """`Files` that asks before each file and between its blocks.

    Args:
        files: where versions come from.
        why_not: empty while they may travel; else why they wait.
    """

    def __init__(self, files: Files, why_not: Callable[[], str]) -> None:
        self._files, self._why_not = files, why_not

    async def manifest(self, name: str, version: str) -> tuple[bytes, str | None]:
        """See `Files`; small, and says whether there is anything to wait for: never held back."""
        return await self._files.manifest(name, version)

    def source(self, wanted: Mapping[str, FileEntry], bases: Sequence[Base]) -> FileSource:
        """See `Files`."""
        return _HeldSource(self._files.source(wanted, bases), self._why_not)


class _HeldSource:
    def __init__(self, source: FileSource, why_not: Callable[[], str]) -> None:
        self._source, self._why_not = source, why_not

    async def blob(self, sha256: str, offset: int) -> AsyncGenerator[bytes]:
        """See `FileSource`.

        Raises:
            LinkHeld: not now.
        """
        self._check()
        blocks: AsyncIterator[bytes] = self._source.blob(sha256, offset)
        async with aclosing(blocks) as held:  # type: ignore[type-var]
            async for block in held:
                yield block
                self._check()

    def distrust(self, sha256: str) -> None:
        """See `FileSource`."""
        self._source.distrust(sha256)

    def _check(self) -> None:
        why = self._why_not()
        if why:
            raise LinkHeld(why)
