"""A fleet that closes: each of its parts, whatever the others do."""

import asyncio
from pathlib import Path

import pytest

from cloud_gateway.fleet.assignments import Assignment
from cloud_gateway.fleet.service import Fleet
from hybrid.errors import StorageError
from hybrid.hosting.auth import Tokens


class NoVersions:
    """A registry without models."""

    def resolve(self, name: str, version: str | None = None) -> object:
        raise AssertionError((name, version))


def test_a_part_that_cannot_close_keeps_no_other_from_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Tokens(tmp_path) as tokens:
        fleet = Fleet(tmp_path, tokens, NoVersions())  # type: ignore[arg-type]
        fleet.steering.ledger.assign(
            Assignment(id=0, model="detector", version="1", artifact_digest="1" * 64, selector={})
        )

        def broken() -> None:
            raise StorageError("the disk went away")

        monkeypatch.setattr(fleet.ingest, "close", broken)
        with pytest.raises(StorageError, match="went away"):
            fleet.close()
        with pytest.raises(StorageError, match="closed"):
            asyncio.run(fleet.steering.history("x"))
        again = Fleet(tmp_path, tokens, NoVersions())  # type: ignore[arg-type]
        try:
            assert [one.label for one in again.steering.ledger.assignments] == ["detector:1"]
        finally:
            again.close()
