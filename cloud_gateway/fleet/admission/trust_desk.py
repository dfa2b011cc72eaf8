"""The fleet's trust bundles as the gateway keeps them: it hands them out and can change nothing in them."""

import threading
from collections.abc import Callable

from hybrid.errors import Conflict, Forbidden
from hybrid.fleet.trust_bundle import TrustBundle, opened, opened_by_own_root
from hybrid.hosting.database import Database


class TrustDesk:
    """The newest bundle, from memory."""

    def __init__(self, database: Database, wall_s: Callable[[], float]) -> None:
        self._database = database
        self._wall_s = wall_s
        self._lock = threading.Lock()
        with database.reading() as db:
            row = db.execute("SELECT sequence, root, envelope FROM trust ORDER BY sequence DESC LIMIT 1").fetchone()
        self._newest: tuple[int, bytes] | None = None if row is None else (row[0], row[2])
        self._root: bytes | None = None if row is None else row[1]

    def newest(self) -> tuple[int, bytes] | None:
        """Sequence and envelope of the newest bundle, None for a fleet without a root."""
        return self._newest

    def root_sha256(self) -> bytes | None:
        """Fingerprint of the fleet's root."""
        return self._root

    def bundle(self) -> TrustBundle | None:
        """The newest bundle, opened."""
        newest, root = self._newest, self._root
        return None if newest is None or root is None else opened(newest[1], root)

    def is_rounds_key(self, key_id: str) -> bool:
        """Whether boxes believe that key in what rounds learn; in a fleet without a root they ask for none."""
        bundle = self.bundle()
        return bundle is None or key_id in bundle.trusted("rounds")

    def take(self, envelope: bytes) -> TrustBundle:
        """Keep a newer bundle and hand it out from now on; the one that is newest already is fine.

        Raises:
            BadMessage, CorruptContent: it is not sound.
            Forbidden: of another root than the one before; boxes would not take it.
            Conflict: not newer than the one that is here.
        """
        bundle = opened_by_own_root(envelope)
        with self._lock:
            if self._root is not None and bundle.root_sha256 != self._root:
                raise Forbidden(
                    "the trust bundle is of another root than the fleet's; its boxes were enrolled with that root and "
                    "would refuse it: sign it with the fleet's own root key"
                )
            if self._newest is not None and bundle.sequence <= self._newest[0]:
                if envelope == self._newest[1]:
                    return bundle
                raise Conflict(
                    f"the trust bundle has sequence {bundle.sequence}, the fleet is at {self._newest[0]}; "
                    "delegate with a higher one"
                )
            with self._database.writing() as db:
                db.execute(
                    "INSERT INTO trust (sequence, root, envelope, set_s) VALUES (?, ?, ?, ?)",
                    (bundle.sequence, bundle.root_sha256, envelope, self._wall_s()),
                )
            self._newest, self._root = (bundle.sequence, envelope), bundle.root_sha256
        return bundle
