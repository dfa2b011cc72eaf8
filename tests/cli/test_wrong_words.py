"""Every command, given what is not there or not right: its exit code, one answer for people and one for programs."""

import io
import json
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

from hybrid.cli import words
from hybrid.cli.main import main
from hybrid.errors import ExitCode
from hybrid.transport import model_pull, model_push
from tests.live_gateway import LiveGateway
from tests.odd_models import ODD

NOWHERE = "--gateway http://127.0.0.1:9"
STRANGER = "--token hyb_aaaaaaaa_bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
TABLE = f"""
agent serve --data text.txt         | FAILED      | storage
agent enroll hybe_nosuch --data new | USAGE       | token_mistyped
agent enroll --file no.txt --data new | NOT_FOUND   | not_found
agent enroll --data new             | USAGE       | usage
agent status --data no              | NOT_FOUND   | not_found
agent outbox --data no              | NOT_FOUND   | not_found
agent import no.hybrid --data new   | NOT_FOUND   | not_found
agent import text.txt --data new    | FAILED      | model_invalid
agent token create --data no --name x --role device | NOT_FOUND   | not_found
agent token import --data no --name x --role device | NOT_FOUND   | not_found
agent token ls --data no            | NOT_FOUND   | not_found
agent token revoke abcdefgh --data no | NOT_FOUND   | not_found
agent rounds --data no              | NOT_FOUND   | not_found
agent rounds forget x --data no     | NOT_FOUND   | not_found
agent samples ls --data no          | NOT_FOUND   | not_found
agent samples label nosuch 3 --data no | NOT_FOUND   | not_found
agent samples rm nosuch --data no   | NOT_FOUND   | not_found
bench no.onnx --data x.npy          | NOT_FOUND   | model_missing
bench sound.onnx                    | USAGE       | usage
bench --devices nosuch              | NOT_FOUND   | catalog_unknown
bench --models nosuch               | FAILED      | bad_message
bench --policies nosuch             | USAGE       | usage
bench --matrix no.toml              | NOT_FOUND   | not_found
calibrate no.onnx --data x.npy      | NOT_FOUND   | model_missing
calibrate broken.onnx --data x.npy  | FAILED      | model_invalid
calibrate sound.onnx --data no.npy  | NOT_FOUND   | not_found
calibrate sound.onnx                | USAGE       | usage
compress no.onnx --data x.npy --out new | NOT_FOUND | model_missing
compress broken.onnx --data x.npy --out new | FAILED | model_invalid
compress sound.onnx --data no.npy --out new | NOT_FOUND | not_found
compress sound.onnx --data x.npy --out new --device nosuch | NOT_FOUND | catalog_unknown
compress sound.onnx --data x.npy    | USAGE       | usage
compress --train-script no.py:f --data x.npy --out new | FAILED | training_set_invalid
cascade --nosuch                    | USAGE       | usage
completion nosuch                   | USAGE       | usage
demo --nosuch                       | USAGE       | usage
devices show nosuch                 | NOT_FOUND   | catalog_unknown
devices show text.txt               | FAILED      | catalog_invalid
explain nosuch                      | NOT_FOUND   | usage
fleet assign nosuch --gateway LIVE --token TOKEN | USAGE       | usage
fleet unassign nosuch --gateway LIVE --token TOKEN | USAGE       | usage
fleet assignments {NOWHERE}         | UNREACHABLE | gateway_unreachable
fleet tag nosuch a=b --gateway LIVE --token TOKEN | NOT_FOUND   | not_found
fleet status --gateway LIVE         | PERMISSION  | unauthenticated
fleet token create --gateway LIVE --token TOKEN | FAILED      | bad_message
fleet token create --expires soon {NOWHERE} | USAGE       | usage
fleet token ls --gateway LIVE       | PERMISSION  | unauthenticated
fleet token revoke nosuch --gateway LIVE --token TOKEN | NOT_FOUND   | not_found
fleet boxes ls --admission nosuch {NOWHERE} | USAGE       | usage
fleet boxes ls --gateway LIVE {STRANGER} | PERMISSION  | unauthenticated
fleet boxes show nosuch --gateway LIVE --token TOKEN | NOT_FOUND   | not_found
fleet boxes approve nosuch --gateway LIVE --token TOKEN | NOT_FOUND   | not_found
fleet boxes admit nosuch --gateway LIVE --token TOKEN | NOT_FOUND   | not_found
fleet boxes revoke nosuch --gateway LIVE --token TOKEN | NOT_FOUND   | not_found
fleet boxes rename nosuch x --gateway LIVE --token TOKEN | NOT_FOUND   | not_found
fleet alarms ls --gateway LIVE      | PERMISSION  | unauthenticated
fleet alarms ack 99 --gateway LIVE --token TOKEN | NOT_FOUND   | not_found
fleet trust set no.json --gateway LIVE --token TOKEN | NOT_FOUND   | not_found
fleet trust set text.txt --gateway LIVE --token TOKEN | FAILED      | bad_message
fleet trust show --gateway LIVE     | PERMISSION  | unauthenticated
fleet rollout start nosuch:2 --gateway LIVE --token TOKEN | USAGE       | usage
fleet rollout ls --gateway LIVE     | PERMISSION  | unauthenticated
fleet rollout show nosuch --gateway LIVE --token TOKEN | NOT_FOUND   | not_found
fleet rollout pause nosuch --gateway LIVE --token TOKEN | NOT_FOUND   | not_found
fleet rollout resume nosuch --gateway LIVE --token TOKEN | NOT_FOUND   | not_found
fleet rollout abort nosuch --gateway LIVE --token TOKEN | NOT_FOUND   | not_found
fleet rollout complete nosuch --gateway LIVE --token TOKEN | NOT_FOUND   | not_found
fleet results ls --gateway LIVE     | PERMISSION  | unauthenticated
fleet results export out --gateway LIVE | PERMISSION  | unauthenticated
fleet results rm nosuch --gateway LIVE --token TOKEN | USAGE       | usage
fleet samples ls --gateway LIVE     | PERMISSION  | unauthenticated
fleet samples export out --gateway LIVE | PERMISSION  | unauthenticated
fleet samples rm nosuch --gateway LIVE --token TOKEN | USAGE       | usage
fleet telemetry ls --gateway LIVE   | PERMISSION  | unauthenticated
fleet telemetry export out --gateway LIVE | PERMISSION  | unauthenticated
fleet telemetry rm nosuch --gateway LIVE --token TOKEN | USAGE       | usage
gateway serve --data text.txt       | FAILED      | storage
gateway serve --host 999.1.1.1 --port 0 --no-announce --data new | FAILED | error
gateway serve --port TAKEN --no-announce --data new | REFUSED | conflict
gateway token create --data no --name x --role device | NOT_FOUND | not_found
gateway token import --data no --name x --role device | NOT_FOUND | not_found
gateway token ls --data no          | NOT_FOUND   | not_found
gateway token revoke abcdefgh --data no | NOT_FOUND | not_found
gateway token create --data LIVE --name x --role nosuch | USAGE | usage
gateway token revoke abcdefgh --data LIVE | NOT_FOUND | not_found
keys new text.txt                   | REFUSED     | conflict
keys show no.key                    | NOT_FOUND   | not_found
keys trust text                     | FAILED      | bad_message
keys ls --nosuch                    | USAGE       | usage
keys create text.txt                | REFUSED     | conflict
keys delegate --out new.json        | NOT_FOUND   | not_found
keys devices --out new.list         | NOT_FOUND   | not_found
keys root create text.txt           | REFUSED     | conflict
keys root show no.key               | NOT_FOUND   | not_found
lab check --kind proxy --congestion-control bbr | FAILED | emulation
lab run --link nosuch -- true       | NOT_FOUND   | catalog_unknown
lab run --model no.onnx -- true     | NOT_FOUND   | model_missing
models ls {NOWHERE}                 | UNREACHABLE | gateway_unreachable
models ls --gateway nosuch          | UNREACHABLE | gateway_unreachable
models ls --gateway none            | USAGE       | usage
models ls --gateway LIVE            | PERMISSION  | unauthenticated
models ls --gateway LIVE {STRANGER} | PERMISSION  | unauthenticated
models ls --gateway LIVE --token x  | PERMISSION  | unauthenticated
models ls nosuch --gateway LIVE --token TOKEN | NOT_FOUND | not_found
models pull nosuch --gateway LIVE --token TOKEN | NOT_FOUND | not_found
models pull nosuch {NOWHERE}        | UNREACHABLE | gateway_unreachable
models pull No/Name                 | USAGE       | usage
models push no.onnx --name x {NOWHERE} | NOT_FOUND | model_missing
models push broken.onnx --name x {NOWHERE} | FAILED | model_invalid
models push sound.onnx --name x {NOWHERE} | UNREACHABLE | gateway_unreachable
models push sound.onnx --name x --gateway LIVE | PERMISSION | unauthenticated
models push sound.onnx              | USAGE       | usage
models push sound.onnx --name x --rank 2 | USAGE       | usage
models push sound.onnx --name x --head nosuch --rank 2 {NOWHERE} | FAILED | not_trainable
models export nosuch --out x --gateway LIVE --token TOKEN | NOT_FOUND   | not_found
models import no.hybrid --gateway LIVE --token TOKEN | NOT_FOUND   | not_found
models import text.txt --gateway LIVE --token TOKEN | FAILED      | model_invalid
plan no.onnx                        | NOT_FOUND   | model_missing
plan broken.onnx                    | FAILED      | model_invalid
plan .                              | FAILED      | model_invalid
plan sound.onnx --shape 0x4         | FAILED      | tensor_mismatch
plan sound.onnx --shape nosuch=1    | FAILED      | tensor_mismatch
profile no.onnx                     | NOT_FOUND   | model_missing
profile broken.onnx                 | FAILED      | model_invalid
profile nosuch {NOWHERE}            | NOT_FOUND   | model_unavailable
rounds create nosuch --gateway LIVE --token TOKEN | FAILED      | campaign_impossible
rounds create nosuch --noise 1 {NOWHERE} | FAILED      | campaign_impossible
rounds create x --tags nosuch {NOWHERE} | USAGE       | usage
rounds create x --evaluate no.npz {NOWHERE} | NOT_FOUND   | not_found
rounds ls --gateway LIVE            | PERMISSION  | unauthenticated
rounds show nosuch --gateway LIVE --token TOKEN | NOT_FOUND   | not_found
rounds watch nosuch --gateway LIVE --token TOKEN | NOT_FOUND   | not_found
rounds pause nosuch --gateway LIVE --token TOKEN | NOT_FOUND   | not_found
rounds resume nosuch --gateway LIVE --token TOKEN | NOT_FOUND   | not_found
rounds stop nosuch --gateway LIVE --token TOKEN | NOT_FOUND   | not_found
rounds promote nosuch --gateway LIVE --token TOKEN | NOT_FOUND   | not_found
rounds report nosuch --gateway LIVE --token TOKEN | NOT_FOUND   | not_found
rounds export nosuch --out new.onnx --gateway LIVE --token TOKEN | NOT_FOUND   | not_found
rounds export nosuch --out text.txt {NOWHERE} | REFUSED     | conflict
rounds key --gateway LIVE           | PERMISSION  | unauthenticated
rounds simulate --data no.npz       | NOT_FOUND   | not_found
rounds simulate --machine nosuch    | NOT_FOUND   | catalog_unknown
rounds simulate --labels text.txt   | USAGE       | usage
stats no.jsonl                      | NOT_FOUND   | not_found
stats text.txt                      | FAILED      | corrupt_content
stats broken.onnx                   | FAILED      | corrupt_content
why no.jsonl                        | NOT_FOUND   | not_found
why text.txt                        | FAILED      | corrupt_content
why empty.jsonl                     | NOT_FOUND   | not_found
nosuch                              | USAGE       | usage
"""
ROWS = [tuple(cell.strip() for cell in line.split("|")) for line in TABLE.strip().splitlines()]
SPOKEN = [row for row in ROWS if "serve" not in row[0] and (NOWHERE not in row[0] or "push" in row[0])]
"""A service has no `--json`: its one result is its ready line. Of those that ask again and again, one is enough."""
ASKS_NOTHING = {"doctor", "agent doctor"}
"""What looks for itself and can only be asked wrongly by an unknown flag."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    with LiveGateway(tmp_path_factory.mktemp("live") / "gateway") as live:
        yield live


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a sound model, a broken one, and files that are none; nobody is asked for longer than a moment."""
    monkeypatch.setattr(model_push, "CONTACT_S", 0.2)
    monkeypatch.setattr(model_pull, "CONTACT_S", 0.2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    onnx.save(ODD["output_used_later"]().model, "sound.onnx")
    Path("broken.onnx").write_bytes(b"no model at all")
    Path("text.txt").write_text("neither a log nor a description\n")
    Path("empty.jsonl").write_text("")
    monkeypatch.setattr("sys.stdin", io.StringIO("hyb_aaaaaaaa_bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb\n"))


@pytest.fixture
def command(line: str, gateway: LiveGateway, taken: int, given: None) -> list[str]:
    """A line of the table as the words of a command."""
    named = {"LIVE": str(gateway.data) if line.startswith("gateway") else gateway.url, "TOKEN": gateway.token}
    return [named.get(word, str(taken) if word == "TAKEN" else word) for word in shlex.split(line)]


@pytest.mark.parametrize(("line", "exit_code", "code"), ROWS, ids=[row[0] for row in ROWS])
def test_what_is_wrong_is_said_to_people(command, capfd, exit_code, code):
    assert main(command) == ExitCode[exit_code]
    said = capfd.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert lines[-3].startswith(f"error[{code}]: "), said.err
    assert lines[-2].startswith("  do: ")
    assert lines[-1] == f"  more: hybrid explain {code}"
    assert "Traceback" not in said.err
    assert "Errno" not in said.err


@pytest.mark.parametrize(("line", "exit_code", "code"), SPOKEN, ids=[row[0] for row in SPOKEN])
def test_what_is_wrong_is_said_to_programs(command, capfd, exit_code, code):
    at = command.index("--") if "--" in command else len(command)
    assert main([*command[:at], "--json", *command[at:]]) == ExitCode[exit_code]
    said = capfd.readouterr()
    answer = json.loads(said.out)
    assert (answer["ok"], answer["data"], answer["error"]["code"]) == (False, None, code)
    assert set(answer["error"]) == {"code", "what", "why", "do", "docs"}
    assert "error[" not in said.err


def test_every_command_is_asked() -> None:
    asked = {row[0] for row in ROWS}
    missing = [path for path in paths() if not any(f"{line} ".startswith(f"{path} ") for line in asked)]
    assert not set(missing) - ASKS_NOTHING


def paths() -> Iterator[str]:
    """`models push` and all the others."""
    yield from ("completion", "explain")
    for word, point in words.found().items():
        yield from leaves(word, words.load(point))


def leaves(path: str, command: object) -> Iterator[str]:
    below = getattr(command, "commands", None)
    if below is None:
        yield path
    for name, one in (below or {}).items():
        yield from leaves(f"{path} {name}", one)
