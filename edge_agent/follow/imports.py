"""Versions that were brought to the box without a network: they lie in `DATA/imports` and are assigned like any other.

Design: an import is what a person wanted on this box. It counts until the gateway says something newer about that
model; what the gateway never names, it never takes away.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from edge_agent.disk import Disk, write_durably
from edge_agent.install.sealed import sealed, unsealed
from hybrid.errors import BadMessage
from hybrid.fleet.messages import Assigned

SCHEMA: Final = 1
TRUST: Final = "trust.json"
"""A newer trust bundle that came along; the agent takes it up and removes it."""

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """One import.

    Attributes:
        after: generation of the desired state that was known when it came: a newer one that names the model wins.
        order: a later import of the same model has a higher one.
    """

    assigned: Assigned
    after: str = ""
    order: int = 0
    schema: int = SCHEMA


class Imports:
    """`DATA/imports`: `DIGEST.json` says what is wanted, `DIGEST/` holds its files until they are installed. Blocks."""

    def __init__(self, data: Path, disk: Disk) -> None:
        self.folder, self._disk = data / "imports", disk
        self._idle: frozenset[Path] = frozenset()

    def all(self) -> list[Imported]:
        """Every import, the oldest first; what does not parse is removed."""
        found = []
        for name in self._disk.names(self.folder):
            stem, dot, suffix = name.partition(".")
            if not dot or suffix != "json" or not _DIGEST.fullmatch(stem):
                continue
            try:
                imported = msgspec.json.decode(unsealed(self._disk.read(self.folder / name)), type=Imported)
                if imported.assigned.artifact_digest != stem or imported.schema != SCHEMA:
                    raise BadMessage(f"{name} is not the record of that import")
            except (msgspec.MsgspecError, UnicodeDecodeError, BadMessage):
                self._disk.remove(self.folder / name)
                continue
            except OSError:
                continue
            found.append(imported)
        return sorted(found, key=lambda one: (one.order, one.assigned.artifact_digest))

    def sweep(self) -> None:
        """Remove what an import that was killed left behind; at a start, when none can be running for long."""
        for name in self._disk.names(self.folder):
            if name.startswith(".tmp-"):
                self._disk.remove(self.folder / name)

    def add(self, assigned: Assigned, after: str) -> None:
        """Note that a version shall be installed; its folder lies there already."""
        order = max((one.order for one in self.all()), default=0) + 1
        imported = Imported(assigned=assigned, after=after, order=order)
        data = msgspec.json.format(msgspec.json.encode(imported), indent=1)
        write_durably(self._disk, self.folder / f"{assigned.artifact_digest}.json", sealed(data))

    def clean(self, counting: Iterable[Imported], wanted: Iterable[str], installed: Iterable[str]) -> None:
        """Remove imports that no longer count, and files that are installed, or that nobody wants any more.

        They go at the second look that finds them idle: an import that comes in between is not known to the caller yet.
        """
        kept, needed = {one.assigned.artifact_digest for one in counting}, set(wanted) - set(installed)
        idle = []
        for name in self._disk.names(self.folder):
            stem, _, suffix = name.partition(".")
            if _DIGEST.fullmatch(stem) and stem not in (kept if suffix else needed):
                idle.append(self.folder / name)
        for path in sorted(self._idle.intersection(idle)):
            self._disk.remove(path)
        self._idle = frozenset(idle)


def combined(
    desired: Sequence[Assigned], generation: str, imports: Sequence[Imported]
) -> tuple[list[Assigned], list[Imported]]:
    """What the box should have, and the imports that still count.

    Args:
        desired: the gateway's last word.
        generation: of that word.
        imports: the oldest first.
    """
    models = {assigned.name: assigned for assigned in desired}
    latest = {one.assigned.name: one for one in imports}
    counting = [
        one
        for name, one in latest.items()
        if name not in models
        or (one.after == generation and models[name].artifact_digest != one.assigned.artifact_digest)
    ]
    for one in counting:
        models[one.assigned.name] = one.assigned
    return list(models.values()), counting
