"""The lab: an emulated device and a gateway on one machine, with an emulated link between them."""

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self

from devices.device import Device
from devices.lab import warden
from devices.lab.launch import Side
from devices.lab.link import Link, open_link
from devices.lab.machine import Slowdown, SlowdownKind, device_of, emulated, named
from devices.lab.scenery import link_of
from devices.link_class import LinkClass
from devices.shape import Shape

_POLITE_S: Final = 5.0
"""How long programs may take to end after they were asked to."""
_numbers: Final = itertools.count()


class Place:
    """One end of the link: where programs of the device, or of the gateway, run."""

    def __init__(
        self, side: Side, link: Link, machine: Slowdown | None = None, *, variables: Mapping[str, str] | None = None
    ) -> None:
        self._side: Side = side
        self._variables = dict(variables or {})
        self._link, self._machine = link, machine
        self._processes: list[subprocess.Popen[Any]] = []

    @property
    def address(self) -> str:
        """The IPv4 address that programs here listen on, and that the other end knows (behind a proxy: 127.0.0.1)."""
        return self._link.address(self._side)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that programs here get besides those of this process."""
        return self._variables | dict(self._machine.environment if self._machine is not None else {})

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command that runs `argv` here, for whatever starts processes; it needs `environment` too."""
        return self._link.command(self._side, argv, self._machine.groups if self._machine is not None else ())

    def popen(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, **settings: Any
    ) -> subprocess.Popen[Any]:
        """Starts a program here. It is ended with the lab, if not before.

        Args:
            argv: the program and its words.
            env: all its variables, but for those of the emulated machine; None for this process's own.
            settings: `subprocess.Popen`'s.
        """
        merged = {**(os.environ if env is None else env), **self.environment}
        process = subprocess.Popen(self.command(argv), env=merged, **settings)
        self._processes.append(process)
        return process

    def run(
        self, argv: Sequence[str], *, timeout_s: float | None = None, check: bool = False, **settings: Any
    ) -> "subprocess.CompletedProcess[Any]":
        """Runs a program here to its end; `subprocess.run`'s settings and errors."""
        merged = {**(settings.pop("env", None) or os.environ), **self.environment}
        return subprocess.run(self.command(argv), env=merged, timeout=timeout_s, check=check, **settings)

    def entered(self) -> contextlib.AbstractContextManager[None]:
        """This thread stands here meanwhile: sockets made inside belong here, threads started inside stay here.

        The thread's computing is not slowed down. Needs root where the link is real.

        Raises:
            EmulationUnavailable: this process may not.
        """
        return self._link.entered(self._side)

    def connect(self, endpoint: tuple[str, int], timeout_s: float = 10.0) -> socket.socket:
        """A TCP connection that begins here, such as to `Lab.endpoint`."""
        with self.entered():
            return socket.create_connection(endpoint, timeout_s)

    def end(self) -> None:
        """Ends the programs that `popen` started: asked first, killed after a while."""
        for process in self._processes:
            if process.poll() is None:
                _signal(process, signal.SIGTERM)
        end_s = time.monotonic() + _POLITE_S
        for process in self._processes:
            try:
                process.wait(max(0.0, end_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal(process, getattr(signal, "SIGKILL", signal.SIGTERM))
                process.wait()
        self._processes.clear()


def _signal(process: "subprocess.Popen[Any]", number: int) -> None:
    """To the program, and to all that it started where it leads a session of its own."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg") and os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)


class Lab:
    """A device, a gateway and a link between them; a context manager.

    Attributes:
        device: where the device's programs run, slowed down as its machine.
        gateway: where the gateway's programs run.
        link: between them; change it while programs use it.
        link_name: what the link was asked for by.
        machine: which machine the device is, and how.
        folder: an empty one to begin with, removed with the lab.
    """

    def __init__(
        self,
        link: Shape | LinkClass | str | None = None,
        *,
        device: Device | str | None = None,
        kind: Literal["auto", "tun", "proxy"] = "auto",
        congestion_control: str | None = None,
        seed: int = 0,
        slowdown: SlowdownKind = "auto",
        factor: float | None = None,
        n_cores: int | None = None,
    ) -> None:
        """Builds the lab.

        Args:
            link: a shape, a link class, its name in the catalog, or its TOML file; None for no limits.
            device: a machine, its name in the catalog, or its TOML file; None for this machine as it is.
            kind: of the link: real packets (`tun`), the shaped proxy, or the first where that is allowed.
            congestion_control: of TCP over a real link, such as `cubic` or `bbr`; None for this machine's own.
            seed: of losses and jitter.
            slowdown: of the device: the kernel's quota, pacing, the first that is allowed, or none.
            factor: how many times slower than this machine the device is; None for as many as its description and a
                short benchmark of this machine say. Give it where runs are to be compared.
            n_cores: of the device; None for as many as it has and this machine can hold, one where no device is named.

        Raises:
            EmulationUnavailable: what was asked for is not allowed here.
            CatalogUnknown: no link or machine of that name.
        """
        shape, self.link_name = link_of(link)
        with contextlib.ExitStack() as cleanup:
            machine, self.machine = emulated(device_of(device), slowdown, factor, n_cores)
            if machine is not None:
                cleanup.callback(machine.close)
            self.link: Link = open_link(shape, kind=kind, congestion_control=congestion_control, seed=seed)
            cleanup.callback(self.link.close)
            self.folder = Path(tempfile.mkdtemp(prefix="hybrid-lab-"))
            cleanup.callback(shutil.rmtree, self.folder, ignore_errors=True)
            mark = f"{os.getpid()}-{next(_numbers)}-{self.folder.name}"
            groups = machine.groups if machine is not None else ()
            cleanup.callback(warden.dismissed, warden.started(mark, self.folder, groups))
            marked = {warden.MARK_VARIABLE: mark}
            self.device = Place("device", self.link, machine, variables=named(device, factor) | marked)
            self.gateway = Place("gateway", self.link, variables=marked)
            cleanup.callback(self.gateway.end)
            cleanup.callback(self.device.end)
            self._cleanup = cleanup.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def endpoint(self, port: int) -> tuple[str, int]:
        """Address and port at which the device reaches this TCP port of the gateway."""
        return self.link.endpoint(port)

    def url(self, port: int, scheme: str = "http") -> str:
        """The same as a URL, for `HYBRID_GATEWAY`."""
        host, number = self.endpoint(port)
        return f"{scheme}://{host}:{number}"

    def close(self) -> None:
        """Ends the programs, then the link; a second call does nothing."""
        self._cleanup.close()
