"""The gateway behind the emulated link of `hybrid lab run`: ours, with models, or any command of the user's.

It speaks plain HTTP: the emulated network holds nobody else, and any client can talk to it. TLS would add a round trip
to each new connection.
"""

import contextlib
import json
import os
import re
import selectors
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from devices.lab.lab import Lab
from devices.lab.link import LOOPBACK
from hybrid.cli.output import note
from hybrid.errors import Conflict, GatewayUnreachable, from_code

_PORT: Final = 8700
_START_S: Final = 60.0
_PUSH_S: Final = 600.0
_LAST_WORDS: Final = 800
_KNOCK: Final = """
import socket, sys, time
end_s = time.monotonic() + float(sys.argv[3])
while True:
    try:
        socket.create_connection((sys.argv[1], int(sys.argv[2])), 1).close()
        break
    except OSError as error:
        if time.monotonic() > end_s:
            sys.exit(str(error))
        time.sleep(0.05)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """A gateway in the lab.

    Attributes:
        url: as the device reaches it.
        environment: variables that name it for the device's programs.
    """

    url: str
    environment: Mapping[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def started_gateway(
    lab: Lab, *, serves: bool, models: tuple[Path, ...], command: str | None, port: int
) -> Iterator[Gateway | None]:
    """The gateway that was asked for, ready; None where none was.

    Args:
        lab: where it runs.
        serves: whether `hybrid gateway serve` is to run.
        models: what that one is given before this returns.
        command: of the user, in place of that; `{host}` and `{port}` are filled in.
        port: where that command serves.

    Raises:
        GatewayUnreachable: it did not come up; the message holds its last words.
        Conflict: behind a proxy, somebody else serves at that port.
    """
    if command is not None:
        yield _started_command(lab, command, port)
    elif serves:
        yield _started_gateway(lab, models)
    else:
        yield None


def _started_command(lab: Lab, command: str, port: int) -> Gateway:
    if lab.link.kind == "proxy" and _is_taken(port):
        raise Conflict(
            f"port {port} of this machine is in use, and behind a shaped proxy the gateway would need it",
            advice="Choose another --gateway-port.",
        )
    words = [word.format(host=lab.gateway.address, port=port) for word in shlex.split(command)]
    process = lab.gateway.popen(words, stdout=sys.stderr, start_new_session=True)
    knocking = lab.gateway.popen(
        [sys.executable, "-S", "-E", "-c", _KNOCK, lab.gateway.address, str(port), str(_START_S)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while knocking.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            knocking.wait(0.1)
        if process.poll() is not None:
            knocking.kill()
            break
    said = knocking.communicate()[1]
    if knocking.returncode or process.poll():
        ended = f"it ended with {process.returncode}" if process.poll() is not None else said.strip()
        raise GatewayUnreachable(
            f"--gateway-command does not serve at {lab.gateway.address}:{port}: {ended}",
            advice="try the command outside the lab; let it listen on {host} and {port}, or say --gateway-port",
        )
    url = lab.url(port)
    note(f"gateway  {url}: {words[0]}")
    return Gateway(url=url, environment={"HYBRID_GATEWAY": url})


def _is_taken(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), 1).close()
    except OSError:
        return False
    return True


def _started_gateway(lab: Lab, models: tuple[Path, ...]) -> Gateway:
    note("gateway  starting")
    folder, began_s = lab.folder, time.monotonic()
    is_real = lab.link.kind == "tun"
    serve = ["gateway", "serve", "--host", lab.gateway.address, "--port", str(_PORT if is_real else 0)]
    with (folder / "log").open("w", encoding="utf-8") as log:
        process = lab.gateway.popen(
            [*_hybrid(), *serve, "--data", str(folder / "data"), "--no-announce", *(["--plain-http"] * is_real)],
            env=_without(os.environ, "HYBRID_GATEWAY", "HYBRID_TOKEN", "HYBRID_PACE"),
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            text=True,
        )
    ready = re.fullmatch(r"ready http://(.+):(\d+)", _line_of(process))
    if ready is None:
        words = (folder / "log").read_text(encoding="utf-8")[-_LAST_WORDS:].strip()
        what = f"the gateway in the lab did not come up; its last words:\n{words}"
        raise GatewayUnreachable(what, advice="mend what its last words name")
    port = int(ready[2])
    token = (folder / "data" / "admin.token").read_text(encoding="utf-8").strip()
    for model in models:
        _push(lab, model, {"HYBRID_GATEWAY": f"http://{lab.gateway.address}:{port}", "HYBRID_TOKEN": token})
    url = lab.url(port)
    held = f", with {', '.join(model.name for model in models)}" if models else ""
    note(f"gateway  {url}: hybrid gateway serve{held}; ready after {time.monotonic() - began_s:.1f} s")
    return Gateway(url=url, environment={"HYBRID_GATEWAY": url, "HYBRID_TOKEN": token})


def _push(lab: Lab, model: Path, environment: Mapping[str, str]) -> None:
    """Gives the gateway a model from its own side of the link."""
    name = re.sub(r"[^a-z0-9._-]+", "-", model.stem.lower()).strip("-._")[:64] or "model"
    done = lab.gateway.run(
        [*_hybrid(), "models", "push", str(model), "--name", name, "--json"],
        env={**os.environ, **environment},
        timeout_s=_PUSH_S,
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    if done.returncode:
        try:
            error = json.loads(done.stdout)["error"]
        except (ValueError, LookupError):  # killed, or broken
            error = {"code": "internal", "what": done.stderr.strip()[-_LAST_WORDS:], "do": None}
        what = f"the gateway in the lab did not take {model}: {error['what']}"
        raise from_code(error["code"], what, advice=error["do"])


def _hybrid() -> list[str]:
    return [sys.executable, "-m", "hybrid.cli.main"]


def _line_of(process: "subprocess.Popen[Any]") -> str:
    """Its first line; empty where it ended or said nothing for too long."""
    assert process.stdout is not None, "it was asked for"
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        return str(process.stdout.readline()).strip() if selector.select(_START_S) else ""


def _without(variables: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name not in names}
