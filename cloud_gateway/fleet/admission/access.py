"""Access tokens of boxes: lent for an hour, known again after a restart, ended with the box's admission."""

import secrets
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from cloud_gateway.fleet.admission.boxes import Boxes
from hybrid.hosting.database import Database
from hybrid.hosting.identity import Identity
from hybrid.transport.token import Token

LIFE_S: Final = 3600.0
_MOST_OF_A_BOX: Final = 4
_MOST_ENDED: Final = 20_000


class AccessTokens:
    """The `Lender` of a gateway with a fleet.

    Design: the hashes are on the disk, so that a gateway that starts again knows its boxes at once and they do not all
    come at the same moment to prove themselves; the transaction that notes a box's call is written anyway.
    """

    def __init__(
        self,
        database: Database,
        boxes: Boxes,
        wall_s: Callable[[], float],
        draw: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._boxes = boxes
        self._wall_s = wall_s
        self._draw = draw
        self._lock = threading.Lock()
        with database.writing() as db:
            db.execute("DELETE FROM access WHERE expires_s <= ?", (wall_s(),))
            rows = db.execute("SELECT token_id, key, box_id, expires_s FROM access ORDER BY expires_s").fetchall()
        self._lent: dict[str, tuple[bytes, str, float]] = {row[0]: (row[1], row[2], row[3]) for row in rows}
        self._of_box: dict[str, list[str]] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        for row in rows:
            self._of_box.setdefault(row[2], []).append(row[0])

    def find(self, token_id: str) -> tuple[bytes, Identity] | None:
        """See `Lender`."""
        key, box_id, expires_s = self._lent.get(token_id, (b"", "", 0.0))
        box = self._boxes.find(box_id)
        if box is None or box.admission != "admitted" or self._wall_s() >= expires_s:
            return None
        return key, Identity(token_id=token_id, role="box", name=box.name, box_id=box_id)

    def stands(self, identity: Identity) -> bool:
        """See `Lender`: the registry decides, not the hour; a newer run of a box ends what the older one holds."""
        box = self._boxes.find(identity.box_id)
        return box is not None and box.admission == "admitted" and identity.token_id not in self._ended

    def end(self, box_id: str) -> None:
        """The box was let out: what it was lent is over, also once it is let in again."""
        with self._lock:
            for name in self._of_box.pop(box_id, ()):
                self._lent.pop(name, None)
                self._note_ended(name)

    def lend(self, db: sqlite3.Connection, box_id: str, *, is_new_life: bool) -> tuple[Token, Callable[[], None]]:
        """A token for a box, in a transaction that is under way, and what makes it count once that is on the disk.

        Args:
            db: the transaction.
            box_id: whose.
            is_new_life: another run or installation than before: what the one before was lent ends.
        """
        token = Token(id=_base32(self._draw(5)), secret=_base32(self._draw(20)))
        expires_s = self._wall_s() + LIFE_S
        if is_new_life:
            db.execute("DELETE FROM access WHERE box_id = ?", (box_id,))
        db.execute(
            "INSERT OR REPLACE INTO access (token_id, key, box_id, expires_s) VALUES (?, ?, ?, ?)",
            (token.id, token.key, box_id, expires_s),
        )
        db.execute(
            "DELETE FROM access WHERE box_id = ? AND token_id NOT IN "
            "(SELECT token_id FROM access WHERE box_id = ? ORDER BY expires_s DESC LIMIT ?)",
            (box_id, box_id, _MOST_OF_A_BOX),
        )
        left = [row[0] for row in db.execute("SELECT token_id FROM access WHERE box_id = ?", (box_id,)).fetchall()]

        def count() -> None:
            with self._lock:
                for name in self._of_box.get(box_id, ()):
                    if name not in left:
                        self._lent.pop(name, None)
                        if is_new_life:
                            self._note_ended(name)
                self._of_box[box_id] = left
                self._lent[token.id] = (token.key, box_id, expires_s)

        return token, count

    def _note_ended(self, name: str) -> None:
        self._ended[name] = None
        while len(self._ended) > _MOST_ENDED:
            self._ended.popitem(last=False)


def _base32(raw: bytes) -> str:
    import base64

    return base64.b32encode(raw).decode("ascii").lower()
