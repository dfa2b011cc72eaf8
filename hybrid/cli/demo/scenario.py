"""The demo's course: set up a gateway, links and devices, take the links through their phases, gather every answer."""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from devices.shaped_proxy import ShapedProxy
from hybrid.cli.demo import figures, link, material
from hybrid.cli.demo.messages import POLICIES, Answered, Assignment, Done, Failed, Policy, Ready, Said
from hybrid.cli.demo.processes import Child, DemoFailed, run_command

PACE: Final = 10.0
"""How many times slower than this machine the devices are: a small board beside a server."""

TIMEOUT_S: Final = 2.0
"""Seconds after which cloud-only gives an answer up: what a person would call hanging."""

_GATEWAY_START_S: Final = 30.0
_WARM_UP_S: Final = 60.0
_LAST_ANSWER_S: Final = 15.0
_LEAST_S: Final = 0.5
"""Between two lines; what is left of a phase after its last second may be less."""

Tell = Callable[[str], None]
Watch = Callable[[float, link.Phase, dict[Policy, figures.Sample]], None]
"""Called about once a second: seconds since the start, the phase, the newest sample of each policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Everything that happened.

    Attributes:
        phases: the link's phases.
        samples: every answer and every failure, in the order in which they ended.
        policies: the figures of each policy.
        n_lost: answers that device-only or hybrid began and did not give.
        setup_s: seconds before the first phase.
        lines: text of each line of the page.
    """

    phases: tuple[link.Phase, ...]
    samples: tuple[figures.Sample, ...]
    policies: tuple[figures.PolicyFigures, ...]
    n_lost: int
    setup_s: float
    lines: tuple[str, ...]

    @property
    def is_good(self) -> bool:
        """Whether hybrid and device-only lost no answer, and hybrid gave no wrong one."""
        return self.n_lost == 0 and all(
            one.n_wrong == 0 and one.n_failed == 0 and one.n_answers > 0
            for one in self.policies
            if one.policy != "cloud"
        )


@dataclass(slots=True)
class _Record:
    """What the listeners gather; appended to by one thread a device, read by the demo's own."""

    start_s: float
    samples: list[figures.Sample] = field(default_factory=list)
    newest: dict[Policy, figures.Sample] = field(default_factory=dict)
    done: dict[Policy, Done] = field(default_factory=dict)
    failures: list[DemoFailed] = field(default_factory=list)


def play(seconds: float, *, tell: Tell, watch: Watch) -> Outcome:
    """Plays the demo; its phases take `seconds`, setting up comes before.

    Raises:
        MissingExtra: the packages with the models or the photo are not installed.
        DemoFailed: a process did not come up, or ended.
    """
    began_s = time.monotonic()
    phases = link.schedule(seconds)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hybrid-demo-")))
        tell("finding the models and the photo")
        stuff = material.gather(folder)
        port, token = stack.enter_context(_gateway(folder / "gateway", stuff, tell))
        links: dict[Policy, ShapedProxy] = {}
        for policy in POLICIES[1:]:
            links[policy] = stack.enter_context(ShapedProxy(port, link.GOOD))
        tell(f"starting three devices, each emulated: {PACE:g} x slower than this machine")
        devices = {policy: stack.enter_context(_device(policy, stuff, links.get(policy), token)) for policy in POLICIES}
        for device in devices.values():
            if not isinstance(_heard(device, _WARM_UP_S), Ready):
                raise DemoFailed(f"the {device.name} did not get ready")
        setup_s = time.monotonic() - began_s
        tell(f"ready after {setup_s:.1f} s")
        record = _work(devices, links, phases, watch)
    return _outcome(record, phases, setup_s)


@contextmanager
def _gateway(data: Path, stuff: material.Material, tell: Tell) -> Iterator[tuple[int, str]]:
    """A gateway on a free port that holds both models: its port and a device's token."""
    arguments = ("hybrid.cli.main", "gateway", "serve", "--port", "0", "--data", str(data))
    tell("starting a gateway: hybrid gateway serve")
    with Child("gateway", arguments) as gateway:
        ready = gateway.line(_GATEWAY_START_S)
        if not ready.startswith("ready http"):
            raise DemoFailed(f"the gateway said {ready!r} instead of where it serves")
        url = ready.split()[1]
        admin = (data / "admin.token").read_text(encoding="utf-8").strip()
        for name, file in (("detector", stuff.detector), ("recogniser", stuff.recogniser)):
            tell(f"pushing the {name}: hybrid models push {file.name} --name {name}")
            run_command(
                *("models", "push", str(file), "--name", name, "--gateway", url),
                environment={"HYBRID_TOKEN": admin},
            )
        made = run_command(
            *("gateway", "token", "create", "--role", "device", "--name", "demo", "--data", str(data)), "--json"
        )
        token = msgspec.json.decode(made, type=_TokenReply).data.token
        yield urlsplit(url).port or 0, token


class _TokenData(msgspec.Struct):
    token: str


class _TokenReply(msgspec.Struct):
    data: _TokenData


def _device(policy: Policy, stuff: material.Material, through: ShapedProxy | None, token: str) -> Child:
    assignment = Assignment(
        policy=policy,
        gateway=f"http://127.0.0.1:{through.port}" if through else "",
        pace=PACE,
        timeout_s=TIMEOUT_S,
        detector=str(stuff.detector),
        recogniser=str(stuff.recogniser),
        characters=str(stuff.characters),
        photo=str(stuff.photo),
    )
    text = msgspec.json.encode(assignment).decode()
    return Child(f"{policy} device", ("hybrid.cli.demo.device", text), environment={"HYBRID_TOKEN": token})


def _heard(device: Child, timeout_s: float) -> Said:
    line = device.line(timeout_s)
    try:
        said: Said = msgspec.json.decode(line, type=Said)
    except msgspec.DecodeError as error:
        raise DemoFailed(f"the {device.name} said {line[:200]!r}") from error
    return said


def _work(
    devices: dict[Policy, Child], links: dict[Policy, ShapedProxy], phases: tuple[link.Phase, ...], watch: Watch
) -> _Record:
    """Lets the devices work while the links go through their phases."""
    record = _Record(start_s=time.monotonic())
    listeners = [
        threading.Thread(target=_listen, args=(policy, device, record), daemon=True)
        for policy, device in devices.items()
    ]
    for listener, device in zip(listeners, devices.values(), strict=True):
        listener.start()
        device.say("go")
    for phase in phases:
        for one in links.values():
            one.set(phase.shape)
        while (at_s := time.monotonic() - record.start_s) < phase.ends_s and not record.failures:
            left_s = max(0.0, phase.ends_s - at_s)
            time.sleep(min(1.0, left_s))
            if left_s > _LEAST_S:
                watch(time.monotonic() - record.start_s, phase, dict(record.newest))
    for device in devices.values():
        device.say("stop")
    for listener in listeners:
        listener.join(_LAST_ANSWER_S)
    if record.failures:
        raise record.failures[0]
    return record


def _listen(policy: Policy, device: Child, record: _Record) -> None:
    """Takes down all that one device says, until its last word."""
    while policy not in record.done:
        try:
            said = _heard(device, _WARM_UP_S)
        except DemoFailed as error:
            record.failures.append(error)
            return
        if isinstance(said, Done):
            record.done[policy] = said
        elif isinstance(said, Answered | Failed):
            one = figures.sample(policy, said, record.start_s)
            record.samples.append(one)
            record.newest[policy] = one


def _outcome(record: _Record, phases: tuple[link.Phase, ...], setup_s: float) -> Outcome:
    samples = tuple(sorted(record.samples, key=lambda one: one.ended_s))
    right = figures.right_texts(samples)
    policies = tuple(figures.policy_figures(policy, samples, phases, right) for policy in POLICIES)
    lost = 0
    for one in policies:
        done = record.done.get(one.policy)
        if one.policy != "cloud":
            lost += done.n_started - one.n_answers if done else 1
    lines = tuple(text for _, text in sorted(right.items()))
    return Outcome(phases=phases, samples=samples, policies=policies, n_lost=lost, setup_s=setup_s, lines=lines)
