"""The registry: which versions of which models this gateway holds, and where their files lie.

Design: the database is the index, `manifests/` the record: each manifest is a file with its exact bytes, so that a
damaged database is rebuilt and no acknowledged version is lost. docs/artifact.md has the layout and the order of steps.
"""

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloud_gateway.blobs import BlobStore
from cloud_gateway.model_folders import ModelFolders, read_files
from hybrid.artifact.digest import HashedFile, digest_of_files
from hybrid.artifact.durable import write_atomically
from hybrid.artifact.manifest import Manifest, artifact_digest, parse
from hybrid.artifact.signature import Signature
from hybrid.artifact.splits import SplitFiles, found_splits
from hybrid.errors import BadMessage, Conflict, CorruptContent, HybridError, NotFound, StorageError
from hybrid.hosting.database import Database
from hybrid.serving.engines.served_model import ServedModel

MIGRATIONS: Final = (
    """
    CREATE TABLE versions (
      id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, version TEXT NOT NULL, sequence INTEGER NOT NULL,
      model_digest TEXT NOT NULL, artifact_digest TEXT NOT NULL, model_file TEXT NOT NULL, classes TEXT NOT NULL,
      size_bytes INTEGER NOT NULL, created_s REAL NOT NULL, UNIQUE (name, version));
    CREATE INDEX versions_by_digest ON versions (model_digest);
    CREATE TABLE placed (
      model_digest TEXT NOT NULL, name TEXT NOT NULL, sha256 TEXT NOT NULL, size INTEGER NOT NULL,
      PRIMARY KEY (model_digest, name));
    CREATE INDEX placed_by_blob ON placed (sha256);
    CREATE TABLE unwanted (name TEXT PRIMARY KEY)
    """,
    """
    CREATE TABLE sound (done INTEGER NOT NULL);
    INSERT INTO sound SELECT 1 WHERE EXISTS (SELECT 1 FROM versions)
    """,
)
_COLUMNS: Final = "name, version, sequence, model_digest, artifact_digest, model_file, classes, size_bytes, created_s"
_log = logging.getLogger("hybrid.registry")


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRecord:
    """One committed version.

    Attributes:
        path: the model file; its external data lie beside it.
        size_bytes: all files of the artifact together.
        created_s: when it was committed, seconds since 1970 by this machine's clock.
    """

    name: str
    version: str
    sequence: int
    model_digest: str
    artifact_digest: str
    path: Path
    classes: tuple[str, ...]
    size_bytes: int
    created_s: float

    @property
    def served(self) -> ServedModel:
        """The same as the serving floor sees it."""
        return ServedModel(
            name=self.name,
            version=self.version,
            model_digest=self.model_digest,
            path=self.path,
            classes=self.classes,
        )


class Registry:
    """Names, versions and files below one folder; a `ModelSource`. Every method may be called from any thread."""

    def __init__(self, folder: Path, blobs: BlobStore) -> None:
        """Open or make the registry; a database that cannot be read is set aside and built again from the manifests.

        Raises:
            DiskFull, StorageError: the disk refused.
        """
        self._blobs = blobs
        self._manifests = folder / "manifests"
        self._folders = ModelFolders(folder / "models")
        self._committing = threading.Lock()
        self._database = Database(folder / "registry.db", MIGRATIONS)
        try:
            if not self._is_sound():
                self._rebuild()
            self._tidy()
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    # Versions.

    def commit_version(
        self, manifest_bytes: bytes, signature: Signature | None = None, *, name: str | None = None
    ) -> VersionRecord:
        """Make a version visible; the same bytes again change nothing. Arguments and errors as `commit`."""
        return self.commit(manifest_bytes, signature, name=name)[0]

    def commit(
        self, manifest_bytes: bytes, signature: Signature | None = None, *, name: str | None = None
    ) -> tuple[VersionRecord, bool]:
        """Make a version visible; also whether this call did.

        Args:
            manifest_bytes: exact bytes of the manifest.
            signature: what came with them.
            name: the name under which it is pushed; None is the manifest's.

        Raises:
            BadMessage, TooLarge: the manifest does not check out, or is of another name.
            NotFound: files are not here (`fields`: missing, the digests to upload first).
            Conflict: the version exists with other content.
            DiskFull, StorageError: nothing was committed.
        """
        manifest, digest = parse(manifest_bytes), artifact_digest(manifest_bytes)
        if name not in (None, manifest.name):
            raise BadMessage(f"the manifest is of model {manifest.name!r}, but was pushed as {name!r}; use one name")
        with self._committing:
            known = self._known(manifest, digest)
            if known is None:
                self._check_files(manifest)
                self._place(manifest)
                write_atomically(self._manifests / f"{digest}.json", manifest_bytes)
            if signature is not None and not (self._manifests / f"{digest}.sig").exists():
                write_atomically(self._manifests / f"{digest}.sig", signature.file_bytes)
            return (known, False) if known is not None else self._insert(manifest, digest, time.time())

    def resolve(self, name: str, version: str | None = None) -> VersionRecord:
        """The version of that name, the newest committed one without a version.

        Raises:
            NotFound: there is none.
        """
        found = self._select("name = ? AND version = ?", name, version) if version else self._select("name = ?", name)
        if not found:
            label = f"{name}:{version}" if version else name
            raise NotFound(f"no model {label[:140]!r} on this gateway; `hybrid models ls` shows what there is")
        return found[-1]

    def by_digest(self, model_digest: str) -> VersionRecord:
        """The newest version with that model digest.

        Raises:
            NotFound: there is none.
        """
        found = self._select("model_digest = ?", model_digest)
        if not found:
            raise NotFound(f"no model with digest {model_digest[:64]!r} on this gateway; push it")
        return found[-1]

    def list_versions(self, name: str | None = None) -> tuple[VersionRecord, ...]:
        """Every version, of one name or of all, oldest first."""
        return self._select("name = ?", name) if name is not None else self._select("1")

    def manifest_bytes(self, digest: str) -> bytes:
        """The exact bytes of a committed manifest, by artifact digest."""
        return (self._manifests / f"{digest}.json").read_bytes()

    def signature(self, digest: str) -> Signature | None:
        """The signature that came with a manifest, by artifact digest."""
        path = self._manifests / f"{digest}.sig"
        return Signature.of_file_bytes(path.read_bytes()) if path.exists() else None

    def splits(self, model_digest: str) -> tuple[SplitFiles, ...]:
        """The splits of all artifacts with that model; a manifest that cannot be read costs only its own."""
        found: dict[str, SplitFiles] = {}
        for record in self._select("model_digest = ?", model_digest):
            try:
                manifest = parse(self.manifest_bytes(record.artifact_digest))
            except (HybridError, OSError) as exc:
                _log.warning("registry.unread artifact=%s reason=%r", record.artifact_digest, str(exc))
                continue
            splits = found_splits(manifest, lambda _, entry: self.find_blob(entry.sha256))
            found |= {split.digest: split for split in splits}
        return tuple(found.values())

    # Files.

    def find_blob(self, sha256: str) -> Path | None:
        """A file with these bytes: a loose blob, or one that lies in a model's folder."""
        loose = self._blobs.find(sha256)
        if loose is not None:
            return loose
        with self._database.reading() as connection:
            rows = connection.execute("SELECT model_digest, name FROM placed WHERE sha256 = ?", (sha256,)).fetchall()
        paths = (self._folders.path(model_digest, name) for model_digest, name in rows)
        return next((path for path in paths if path.is_file()), None)

    def verify(self, model_digest: str) -> None:
        """Read a model's files again; one that is no longer what it was is set aside, so that it can be pushed anew.

        Raises:
            CorruptContent: it was set aside.
        """
        folder = self._folders.path(model_digest)
        with suppress(OSError, BadMessage):
            if digest_of_files(read_files(folder)) == model_digest:
                return
        with self._committing:
            self._folders.set_aside(model_digest)
            with self._database.writing() as connection:
                connection.execute("DELETE FROM placed WHERE model_digest = ?", (model_digest,))
        raise CorruptContent(f"model {model_digest}: its files changed on the disk; they are set aside, push it again")

    # What serving asks.

    def find(self, name: str, version: str) -> ServedModel:
        """`ModelSource.find`: version "" is the newest."""
        return self.resolve(name, version or None).served

    def find_digest(self, model_digest: str) -> ServedModel:
        """`ModelSource.find_digest`."""
        return self.by_digest(model_digest).served

    def models(self) -> Sequence[ServedModel]:
        """`ModelSource.models`."""
        return [record.served for record in self.list_versions()]

    def wanted(self, name: str) -> bool:
        """`ModelSource.wanted`: whether the model shall be loaded at start; yes until somebody said no."""
        with self._database.reading() as connection:
            return connection.execute("SELECT 1 FROM unwanted WHERE name = ?", (name,)).fetchone() is None

    def want(self, name: str, *, loaded: bool) -> None:
        """`ModelSource.want`: remember it across restarts."""
        statement = "DELETE FROM unwanted WHERE name = ?" if loaded else "INSERT OR IGNORE INTO unwanted VALUES (?)"
        with self._database.writing() as connection:
            connection.execute(statement, (name,))

    # Inside.

    def _select(self, condition: str, *values: str) -> tuple[VersionRecord, ...]:
        query = f"SELECT {_COLUMNS} FROM versions WHERE {condition} ORDER BY id"  # noqa: S608 (conditions are ours)
        with self._database.reading() as connection:
            return tuple(self._record(row) for row in connection.execute(query, values).fetchall())

    def _record(self, row: tuple[str, str, int, str, str, str, str, int, float]) -> VersionRecord:
        name, version, sequence, model_digest, digest, model_file, classes, size_bytes, created_s = row
        return VersionRecord(
            name=name,
            version=version,
            sequence=sequence,
            model_digest=model_digest,
            artifact_digest=digest,
            path=self._folders.path(model_digest, model_file),
            classes=tuple(json.loads(classes)),
            size_bytes=size_bytes,
            created_s=created_s,
        )

    def _known(self, manifest: Manifest, digest: str) -> VersionRecord | None:
        """The version if it is here with this content and its model's files; Conflict if with other content."""
        found = self._select("name = ? AND version = ?", manifest.name, manifest.version)
        if not found:
            return None
        if found[0].artifact_digest != digest:
            raise Conflict(
                f"{manifest.name}:{manifest.version} exists with other content (artifact {found[0].artifact_digest}); "
                "versions never change: push under another version",
                artifact_digest=found[0].artifact_digest,
            )
        return found[0] if self._folders.has(manifest.model_digest, manifest.model_files) else None

    def _check_files(self, manifest: Manifest) -> None:
        missing = []
        for name, entry in manifest.files.items():
            path = self.find_blob(entry.sha256)
            if path is None:
                missing.append(entry.sha256)
            elif path.stat().st_size != entry.size:
                raise BadMessage(f"file {name!r} has {path.stat().st_size} bytes, the manifest says {entry.size}")
        if missing:
            raise NotFound(f"{len(missing)} of the files are not on this gateway; upload them first", missing=missing)

    def _place(self, manifest: Manifest) -> None:
        """Make the model's folder, note where its blobs lie now, and only then drop their loose names."""
        files = manifest.model_files
        self._folders.place(manifest.model_digest, files, self._blob)
        with self._database.writing() as connection:
            _note_places(connection, manifest.model_digest, files)
        self._drop_loose(files)

    def _blob(self, sha256: str) -> Path:
        path = self.find_blob(sha256)
        if path is None:
            raise NotFound("a file vanished while its version was committed; push again", missing=[sha256])
        return path

    def _drop_loose(self, files: Sequence[HashedFile]) -> None:
        for file in files:
            self._blobs.path(file.sha256).unlink(missing_ok=True)

    def _insert(self, manifest: Manifest, digest: str, created_s: float) -> tuple[VersionRecord, bool]:
        model_file = manifest.model_files[0].name
        values = (
            manifest.name,
            manifest.version,
            manifest.sequence,
            manifest.model_digest,
            digest,
            model_file,
            json.dumps(manifest.classes or ()),
            manifest.size_bytes,
            created_s,
        )
        marks = ", ".join("?" * len(values))
        with self._database.writing() as connection:
            # another process may have been first: the same content is fine, _known says Conflict to other content
            query = f"INSERT OR IGNORE INTO versions ({_COLUMNS}) VALUES ({marks})"  # noqa: S608 (columns are ours)
            is_new = connection.execute(query, values).rowcount == 1
        record = self._known(manifest, digest)
        if record is None:
            raise NotFound("the model's files vanished while its version was committed; push again", missing=[])
        _log.info("registry.committed name=%s version=%s artifact=%s", record.name, record.version, digest)
        return record, is_new

    def _is_sound(self) -> bool:
        """Whether the database holds all that the disk does: until then each start goes on with building it."""
        with self._database.reading() as connection:
            return connection.execute("SELECT 1 FROM sound").fetchone() is not None

    def _note_sound(self) -> None:
        with self._database.writing() as connection:
            connection.execute("INSERT INTO sound VALUES (1)")

    def _rebuild(self) -> None:
        """Fill the database from what lies on the disk, reading every byte; what does not check out stays out.

        Interrupted anywhere, or refused by the disk, it is run again at the next start; what it did before stays.
        """
        is_complete = True
        self._manifests.mkdir(parents=True, exist_ok=True)
        records = sorted(self._manifests.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        places = self._folders.sound() if records else {}
        with self._database.writing() as connection:
            for model_digest, files in places.items():
                _note_places(connection, model_digest, files)
        for path in records:
            try:
                data = path.read_bytes()
                if artifact_digest(data) != path.stem:
                    raise CorruptContent(f"{path}: its bytes are not what its name says")
                self.commit_version(data)
            except HybridError as exc:
                is_complete &= isinstance(exc, CorruptContent) or not isinstance(exc, StorageError)
                _log.warning("registry.not_restored manifest=%s reason=%r", path.name, str(exc))
        if records:
            _log.warning("registry.rebuilt n_versions=%d", len(self.list_versions()))
        if is_complete:
            self._note_sound()

    def _tidy(self) -> None:
        """Finish what an interrupted commit left: staging folders, unnoted folders, loose names of placed blobs."""
        self._folders.sweep()
        self._note_unknown()
        with self._database.reading() as connection:
            rows = connection.execute("SELECT model_digest, name, sha256, size FROM placed").fetchall()
        for model_digest, name, sha256, size in rows:
            file = HashedFile(name=name, size=size, sha256=sha256)
            if self._folders.has(model_digest, [file]):
                self._drop_loose([file])

    def _note_unknown(self) -> None:
        """Note the places of folders that are not noted: nothing but their own content says whether they are wanted."""
        with self._database.reading() as connection:
            rows = connection.execute("SELECT DISTINCT model_digest FROM placed").fetchall()
        try:
            unknown = self._folders.sound(known={row[0] for row in rows})
        except OSError as exc:
            _log.warning("registry.unread reason=%r", str(exc))
            return
        with self._database.writing() as connection:
            for model_digest, files in unknown.items():
                _note_places(connection, model_digest, files)


def _note_places(connection: sqlite3.Connection, model_digest: str, files: Sequence[HashedFile]) -> None:
    connection.executemany(
        "INSERT OR REPLACE INTO placed VALUES (?, ?, ?, ?)",
        [(model_digest, file.name, file.sha256, file.size) for file in files],
    )
