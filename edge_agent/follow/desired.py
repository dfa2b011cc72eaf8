"""`DATA/desired.json`: the last desired state, so that a box that starts without a network knows what it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edge_agent.disk import Disk, write_durably
from edge_agent.install.contents import set_aside
from edge_agent.install.sealed import sealed, unsealed
from hybrid.errors import BadMessage, StorageError
from hybrid.fleet.messages import Assigned

SCHEMA: Final = 1
NAME: Final = "desired.json"


class Desired(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway wanted last.

    Attributes:
        generation: names that state; empty while the gateway was never heard.
        models: all of them.
        tags: of the box.
    """

    schema: int = SCHEMA
    generation: str = ""
    models: tuple[Assigned, ...] = ()
    tags: dict[str, str] = {}


class DesiredFile:
    """Reads and replaces the file. Blocks."""

    def __init__(self, data: Path, disk: Disk, now_s: Callable[[], float]) -> None:
        self._path, self._disk, self._now_s = data / NAME, disk, now_s

    def load(self) -> Desired | None:
        """What was wanted last; None where there is none, or where it is damaged and was set aside.

        Raises:
            StorageError: the disk cannot be read now.
        """
        if self._disk.size(self._path) < 0:
            return None
        try:
            desired = msgspec.json.decode(unsealed(self._disk.read(self._path)), type=Desired)
            if desired.schema != SCHEMA:
                raise BadMessage(f"{NAME} is of schema {desired.schema}")
        except FileNotFoundError:
            return None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, BadMessage):
            set_aside(self._disk, self._path, self._now_s())
            return None
        except OSError as exc:
            raise StorageError(f"{self._path}: cannot be read ({exc})", path=str(self._path)) from exc
        return desired

    def save(self, desired: Desired) -> None:
        """Keep what is wanted."""
        content = msgspec.json.format(msgspec.json.encode(desired), indent=1)
        write_durably(self._disk, self._path, sealed(content))
