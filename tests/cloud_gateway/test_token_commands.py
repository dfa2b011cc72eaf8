"""`hybrid gateway token`: what it prints, its JSON, its errors."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from hybrid.cli.token_commands import token_app
from hybrid.errors import NotFound, Unauthenticated
from hybrid.hosting.auth import Tokens
from hybrid.transport.token import Token

Run = Callable[..., tuple[str, str]]
app = token_app("gateway", Path("hybrid-gateway"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a token command on an empty data folder; returns what stands on stdout and stderr."""

    def go(*words: str) -> tuple[str, str]:
        app([*words, "--data", str(tmp_path)], standalone_mode=False)
        return tuple(capsys.readouterr())

    return go


def test_create_prints_the_token_alone(run: Run, tmp_path: Path) -> None:
    out, err = run("create", "--role", "device", "--name", "camera-7")
    assert re.fullmatch(r"hyb_\w{8}_\w{32}\n", out)
    assert "next:" in err
    with Tokens(tmp_path) as tokens:
        assert tokens.verify(out.strip()).name == "camera-7"


def test_json_has_one_shape(run: Run) -> None:
    out, err = run("create", "--role", "publisher", "--name", "ci", "--json")
    made = json.loads(out)
    assert made["ok"] is True
    assert made["error"] is None
    assert set(made["data"]) == {"id", "role", "name", "token"}
    assert err == ""
    listed = json.loads(run("ls", "--json")[0])["data"]
    assert [(row["id"], row["role"], row["revoked"]) for row in listed] == [(made["data"]["id"], "publisher", None)]
    assert set(listed[0]) == {"id", "role", "name", "created", "last_used", "revoked"}
    assert json.loads(run("revoke", made["data"]["id"], "--json")[0])["data"] == {
        "id": made["data"]["id"],
        "revoked": True,
    }
    assert json.loads(run("ls", "--json")[0])["data"][0]["revoked"] is not None


def test_the_list_shows_no_secret_and_no_control_characters(run: Run) -> None:
    text = run("create", "--name", "evil\x1b[2Jname")[0].strip()
    listed = run("ls")[0]
    assert text.split("_")[1] in listed
    assert text.split("_")[2] not in listed
    assert "\x1b" not in listed
    assert listed.splitlines()[0].split() == ["ID", "ROLE", "NAME", "CREATED", "LAST", "USED", "REVOKED"]


def test_import_reads_the_token_from_stdin(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = Token.fresh().text
    monkeypatch.setattr("sys.stdin", io.StringIO(text + "\n"))
    out, _ = run("import", "--role", "device", "--name", "fleet")
    assert text.split("_")[1] in out
    assert text.split("_")[2] not in out
    with Tokens(tmp_path) as tokens:
        assert tokens.verify(text).name == "fleet"
    monkeypatch.setattr("sys.stdin", io.StringIO("rubbish"))
    with pytest.raises(Unauthenticated):
        run("import", "--name", "fleet")


def test_the_last_administrator_is_mentioned(run: Run) -> None:
    token_id = run("create", "--role", "admin", "--name", "root")[0].split("_")[1]
    assert "no administrator's token is left" in run("revoke", token_id)[1]


def test_errors_are_typed(run: Run, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="token ls"):
        run("revoke", "aaaaaaaa")
    with pytest.raises(typer.BadParameter, match="device"):
        run("create", "--role", "boss", "--name", "x")
    with pytest.raises(NotFound, match="--data"):
        app(["ls", "--data", str(tmp_path / "nowhere")], standalone_mode=False)
    assert not (tmp_path / "nowhere").exists()
