"""What `hybrid lab run` does: builds the lab, starts a gateway in it, runs the program, and says what passed."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import typer

from devices.lab.lab import Lab
from devices.lab.machine import Emulated, SlowdownKind, device_of
from devices.link_class import LinkClass
from devices.shape import Direction, LinkStatistics, Passage, Shape, Step
from hybrid.cli.lab_gateway import Gateway, started_gateway
from hybrid.cli.lab_link import link_and_steps
from hybrid.cli.output import note
from hybrid.errors import ModelMissing

_POLITE_S: Final = 5.0
_SLOW: Final = 4.0
"""From this factor on a program that seems to hang may just be loading what it imports."""
_PATH: Final = "check the path; it is relative to the folder that this command runs in"
_NOT_FOUND, _NOT_RUNNABLE = 127, 126
"""Exit codes of a program that cannot be started, as shells have them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The flags of `hybrid lab run`."""

    command: tuple[str, ...]
    device: str | None = None
    link: str | None = None
    trace: str | None = None
    seed: int = 0
    serves: bool = False
    models: tuple[Path, ...] = ()
    gateway_command: str | None = None
    gateway_port: int = 8700
    kind: Literal["auto", "tun", "proxy"] = "auto"
    congestion_control: str | None = None
    slowdown: SlowdownKind = "auto"
    factor: float | None = None
    n_cores: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """How it went.

    Attributes:
        exit_code: of the program; 128 + n where signal n ended it.
        elapsed_s: how long it ran.
        machine: which machine the device was, and how.
        link: name, or what was given in its place.
        shape: of the link, at the beginning.
        trace: what was played, or None.
        kind: `tun` or `proxy`.
        congestion_control: of TCP over the link; None for a proxy.
        gateway: its URL as the device saw it, or None.
        statistics: what passed over the link while the program ran.
        rtt_s: mean round trip over the link, queues included; None where nothing passed both ways.
    """

    exit_code: int
    elapsed_s: float
    machine: Emulated
    link: str
    shape: Shape
    trace: str | None
    kind: str
    congestion_control: str | None
    gateway: str | None
    statistics: LinkStatistics
    rtt_s: float | None

    def text(self) -> str:
        """The summary for people."""
        rtt = "nothing came back" if self.rtt_s is None else f"round trip {self.rtt_s * 1e3:.1f} ms with queues"
        late_s = max(self.statistics.up.late_mean_s, self.statistics.down.late_mean_s)
        cost = f"the emulation took {self.statistics.cpu_ratio:.1%} of a core and was {late_s * 1e3:.2f} ms late"
        return "\n".join(
            [
                f"lab: exit code {self.exit_code} after {self.elapsed_s:.1f} s",
                _passed("up  ", self.statistics.up, self.elapsed_s),
                _passed("down", self.statistics.down, self.elapsed_s),
                f"     {rtt}; {cost} on average",
            ]
        )


def _passed(name: str, way: Passage, elapsed_s: float) -> str:
    mean_bps = way.n_bytes * 8 / elapsed_s if elapsed_s else 0.0
    lost = f", {way.n_lost} lost" if way.n_lost else ""
    dropped = f", {way.n_overflow} dropped by a full queue" if way.n_overflow else ""
    closed = f", {way.n_blackholed} in outages" if way.n_blackholed else ""
    return (
        f"{name} {way.n_bytes / 1e6:.3f} MB payload, {mean_bps / 1e6:.2f} Mbit/s on average, "
        f"{way.peak_bps / 1e6:.2f} in the fastest second{lost}{dropped}{closed}"
    )


def run_in_lab(wanted: Wanted, *, to_stderr: bool) -> Done:
    """Runs the program in a lab of its own; nothing of the lab is left when this returns or raises.

    Args:
        wanted: what was asked for.
        to_stderr: whether the program's stdout goes to stderr, since stdout is taken.

    Raises:
        EmulationUnavailable: what was asked for is not allowed here.
        CatalogUnknown: no such link or machine.
        ModelMissing: no such model; before anything is started.
        BadParameter: flags that do not go together.
    """
    link, steps, loop_s, trace = _looked_at(wanted)
    note("lab      building the machine and the link")
    with (
        _ended_by_sigterm(),
        Lab(
            link,
            device=wanted.device,
            kind=wanted.kind,
            congestion_control=wanted.congestion_control,
            seed=wanted.seed,
            slowdown=wanted.slowdown,
            factor=wanted.factor,
            n_cores=wanted.n_cores,
        ) as lab,
    ):
        note(_device_line(lab.machine))
        note(_link_line(lab, lab.link.shape, wanted.link or lab.link_name, trace))
        command, port = wanted.gateway_command, wanted.gateway_port
        with started_gateway(lab, serves=wanted.serves, models=wanted.models, command=command, port=port) as gateway:
            shape = lab.link.shape
            if steps:
                lab.link.play(steps, loop_s=loop_s)
            note(_command_line(wanted.command, lab.machine))
            began_s = time.monotonic()
            exit_code = _run(lab, wanted.command, gateway, to_stderr=to_stderr)
            elapsed_s = time.monotonic() - began_s
            statistics = lab.link.statistics()
            return Done(
                exit_code=exit_code,
                elapsed_s=elapsed_s,
                machine=lab.machine,
                link=wanted.link or lab.link_name,
                shape=shape,
                trace=trace,
                kind=lab.link.kind,
                congestion_control=lab.link.congestion_control,
                gateway=gateway.url if gateway is not None else None,
                statistics=statistics,
                rtt_s=statistics.rtt_s,
            )


def _looked_at(wanted: Wanted) -> tuple[Shape | LinkClass | None, tuple[Step, ...], float, str | None]:
    """The link and what it plays; everything that was named is looked at before anything is built."""
    if wanted.gateway_command is not None and wanted.serves:
        raise typer.BadParameter("--gateway-command takes the place of --serve and --model; give one of them")
    for model in wanted.models:
        if not model.exists():
            raise ModelMissing(f"--model {model}: no such file; nothing was started", path=str(model), advice=_PATH)
    device_of(wanted.device)
    return link_and_steps(wanted.link, wanted.trace, wanted.seed)


def _run(lab: Lab, command: tuple[str, ...], gateway: Gateway | None, *, to_stderr: bool) -> int:
    """The program's exit code. Ctrl-C reaches it too: it gets a while to end by itself."""
    environment = {**os.environ, **(gateway.environment if gateway is not None else {})}
    try:
        process = lab.device.popen(command, env=environment, stdout=sys.stderr if to_stderr else None)
    except OSError as error:  # without a launcher in between
        note(f"{command[0]}: {error.strerror}")
        return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_RUNNABLE
    try:
        process.wait()
    except KeyboardInterrupt:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_POLITE_S)
        raise
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Being told to end takes the lab down in order, as Ctrl-C does."""

    def end(number: int, _: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _device_line(machine: Emulated) -> str:
    if machine.kind == "nothing":
        return f"device   {machine.name}, not slowed down"
    slower = f"{machine.name}: {machine.factor:.1f} times slower than this machine"
    if machine.kind == "pacing":
        return f"device   {slower}; our sessions pace themselves, other programs are not slowed"
    plural = "" if machine.n_cores == 1 else "s"
    return f"device   {slower}, {machine.n_cores} core{plural}; by a CPU quota ({machine.kind})"


def _command_line(command: tuple[str, ...], machine: Emulated) -> str:
    slow = machine.factor > _SLOW and machine.kind != "pacing"
    warning = f"    (its start is {machine.factor:.1f} times slower too)" if slow else ""
    return f"command  {shlex.join(command)}{warning}"


def _link_line(lab: Lab, shape: Shape, name: str, trace: str | None) -> str:
    def way(direction: Direction) -> str:
        return "no limit" if direction.rate_bps is None else f"{direction.rate_bps / 1e6:g} Mbit/s"

    jitter = f" ± {shape.up.jitter_s * 1e3:.1f} each way" if shape.up.jitter_s else ""
    loss = f", {shape.up.loss_ratio:.2%} loss" if shape.up.loss_ratio else ""
    played = f"; plays {trace}" if trace else ""
    means = (
        f"real packets (TUN), congestion control {lab.link.congestion_control}, relay {lab.link.scheduling}"
        if lab.link.kind == "tun"
        else "shaped proxy on loopback: no packets, no slow start; losses are stalls"
    )
    figures = f"{way(shape.up)} up, {way(shape.down)} down, {shape.rtt_s * 1e3:g} ms round trip{jitter}{loss}"
    return f"link     {name}: {figures}{played}; {means}"
