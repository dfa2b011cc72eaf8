"""The link of real packets as its user holds it: two namespaces with kernel TCP between them, and how to run inside.

Linux only. Where /dev/net/tun or namespaces are not allowed, making one raises `EmulationUnavailable`, and
`devices.lab.link.ProxyLink` takes its place.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Literal

from devices.errors import EmulationError, EmulationUnavailable
from devices.lab.launch import Side, launched
from devices.shape import LinkStatistics, Passage, Shape, Step, sound_steps

_ROOT: Final = Path(__file__).parent.parent.parent
_START: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); from devices.lab.relay import main; main(int(sys.argv[2]))"
)
_REPLY_TIMEOUT_S: Final = 20.0
_EXIT_TIMEOUT_S: Final = 5.0


class TunLink:
    """Two network namespaces with an emulated link between them; a context manager.

    Attributes:
        kind: `tun`.
        congestion_control: of every TCP connection over the link, in either direction.
        scheduling: of the relay: `real time`, `preferred` or `ordinary`.
        ipv6: whether the ends have IPv6 addresses too.
        pid: of the relay; `nsenter --net=/proc/PID/fd/…` looks inside.
    """

    kind: Literal["tun"] = "tun"

    def __init__(self, shape: Shape | None = None, *, congestion_control: str | None = None, seed: int = 0) -> None:
        """Builds both namespaces and starts the relay.

        Args:
            shape: of the link at first; without one it is wide open.
            congestion_control: such as `cubic` or `bbr`; None for this machine's own.
            seed: of losses and jitter.

        Raises:
            EmulationUnavailable: no namespaces or TUN devices here, or no such congestion control.
        """
        if sys.platform != "linux":
            raise EmulationUnavailable("network namespaces and TUN devices are Linux's; use the shaped proxy here")
        self._shape = shape or Shape()
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair()
        self._control.settimeout(_REPLY_TIMEOUT_S)
        with theirs:
            self._relay = subprocess.Popen(
                [sys.executable, "-S", "-E", "-c", _START, str(_ROOT), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._lines = self._control.makefile("rb")
        try:
            settings = {"shape": asdict(self._shape), "seed": seed, "congestion_control": congestion_control}
            told = self._ask(settings)
        except EmulationError as error:
            self.close()
            raise EmulationUnavailable(f"no network namespaces with TUN devices here: {error}") from error
        except BaseException:
            self.close()
            raise
        self.congestion_control: str = told["congestion_control"]
        self.scheduling: str = told["scheduling"]
        self.ipv6: bool = told["ipv6"]
        self.pid: int = told["pid"]
        files = f"/proc/{self.pid}/fd"
        self._user = None if told["user"] is None else f"{files}/{told['user']}"
        self._namespaces: dict[Side, str] = {side: f"{files}/{number}" for side, number in told["namespaces"].items()}

    def __enter__(self) -> "TunLink":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            try:
                self._control.sendall(json.dumps(request).encode() + b"\n")
                line = self._lines.readline()
            except (OSError, ValueError) as error:
                raise EmulationError(f"the emulated link does not answer any more ({error}); make a new one") from error
        if not line:
            raise EmulationError("the emulated link has ended; make a new one")
        answer: dict[str, Any] = json.loads(line)
        if not answer["ok"]:
            raise EmulationError(answer["error"])
        return answer

    @property
    def shape(self) -> Shape:
        """The shape that was set last; a trace that is played does not show here."""
        return self._shape

    def set(self, shape: Shape) -> None:
        """Changes the link from now on; ends a trace that is being played."""
        self._ask({"do": "set", "shape": asdict(shape)})
        self._shape = shape

    def blackhole(self, *, up: bool = True, down: bool = True) -> None:
        """Nothing passes these ways until `restore`; packets are dropped and TCP finds out by itself."""
        self._ask({"do": "blackhole", "up": up, "down": down})

    def restore(self) -> None:
        """Ends a blackhole."""
        self._ask({"do": "blackhole", "up": False, "down": False})

    def play(self, steps: Sequence[Step], *, loop_s: float = 0.0) -> None:
        """Plays a trace from now on, in the relay; the last shape stays.

        Args:
            steps: shapes and when they begin.
            loop_s: begin anew every so many seconds, later than the last step; 0 plays once.
        """
        told = [{"at_s": step.at_s, **asdict(step.shape)} for step in sound_steps(steps, loop_s)]
        self._ask({"do": "play", "steps": told, "loop_s": loop_s})

    def statistics(self) -> LinkStatistics:
        """What passed so far."""
        told = self._ask({"do": "statistics"})
        return LinkStatistics(
            up=Passage(**told["up"]), down=Passage(**told["down"]), elapsed_s=told["elapsed_s"], cpu_s=told["cpu_s"]
        )

    def address(self, side: Side, *, ipv6: bool = False) -> str:
        """The address of an end, as both ends see it."""
        from devices.lab.relay import ADDRESSES

        return ADDRESSES[side][ipv6]

    def endpoint(self, port: int) -> tuple[str, int]:
        """Where the device reaches this port of the gateway."""
        return self.address("gateway"), port

    def command(self, side: Side, argv: Sequence[str], groups: Sequence[str] = ()) -> list[str]:
        """The command that runs `argv` at one end; hand it to whatever starts processes.

        Args:
            side: `device` or `gateway`.
            argv: the program and its words.
            groups: control groups' lists of processes that the program joins first.
        """
        options = [] if self._user is None else ["--user", self._user]
        return launched([*options, "--net", self._namespaces[side]], argv, groups)

    @contextlib.contextmanager
    def entered(self, side: Side) -> Iterator[None]:
        """This thread stands at one end meanwhile: sockets made inside belong there, also afterwards.

        Threads that are started inside stay there. Needs to be root.

        Raises:
            EmulationUnavailable: this process may not change namespaces.
        """
        from devices.lab import kernel

        with contextlib.ExitStack() as files:
            before, there = (
                os.open(path, os.O_RDONLY) for path in ("/proc/thread-self/ns/net", self._namespaces[side])
            )
            files.callback(os.close, before)
            files.callback(os.close, there)
            try:
                kernel.enter(there, kernel.CLONE_NEWNET)
            except OSError as error:
                raise EmulationUnavailable(f"only root can step into a lab ({error}); start a process there") from error
            try:
                yield
            finally:
                kernel.enter(before, kernel.CLONE_NEWNET)

    def close(self) -> None:
        """Ends the link and whatever still runs at its ends; a second call does nothing."""
        self._lines.close()
        self._control.close()
        try:
            self._relay.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._relay.kill()
            self._relay.wait()
