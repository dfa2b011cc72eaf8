"""`hybrid keys devices`: lists that follow one another, and what they refuse."""

from hashlib import sha256

import pytest

from hybrid.artifact.publishers import create_key
from hybrid.cli.device_keys import devices
from hybrid.errors import BadMessage, Conflict, Forbidden, NotFound
from hybrid.federated.secure.device_list import opened

ONE, TWO = "1" * 32, "2" * 32


def test_lists_follow_one_another(tmp_path, capsys) -> None:
    root, other = tmp_path / "root.key", tmp_path / "other.key"
    root_sha256 = sha256(create_key(root)).digest()
    create_key(other)
    first, second = tmp_path / "a.list", tmp_path / "b.list"
    devices(first, [ONE, TWO.upper(), ONE], root=root)
    assert opened(first.read_bytes(), root_sha256).box_ids == {ONE, TWO}
    assert "2 boxes" in capsys.readouterr().out
    devices(second, None, drop=[ONE], before=first, root=root, json=True)
    made = opened(second.read_bytes(), root_sha256, least_sequence=2)
    assert (made.box_ids, made.sequence) == ({TWO}, 2)
    with pytest.raises(Conflict, match="a file already"):
        devices(second, [ONE], root=root)
    with pytest.raises(NotFound, match="no box of the list"):
        devices(tmp_path / "c.list", None, drop=[ONE], before=second, root=root)
    with pytest.raises(NotFound, match="no such list"):
        devices(tmp_path / "c.list", [ONE], before=tmp_path / "none", root=root)
    with pytest.raises(Forbidden, match="another root"):
        devices(tmp_path / "c.list", [ONE], before=second, root=other)
    with pytest.raises(BadMessage, match="no box id"):
        devices(tmp_path / "c.list", ["xy"], root=root)
    assert not (tmp_path / "c.list").exists()
