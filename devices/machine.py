"""What this machine is: its processor, cores and memory, what a container leaves of them, and how fast one core is."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from math import log
from pathlib import Path
from typing import Final

from devices import pace
from devices.catalog.load import device, devices
from devices.cpu_quota import GROUP_PREFIX
from devices.device import Device
from devices.errors import DeviceError, EmulationError

VARIABLE: Final = "HYBRID_DEVICE"
"""The environment variable that says which machine this is: a name of the catalog, or a TOML file."""

CORES_VARIABLE: Final = "HYBRID_CORES"
"""The environment variable that says how many cores an emulated machine has."""

FACTOR_VARIABLE: Final = "HYBRID_DEVICE_FACTOR"
"""The environment variable by which a lab says a slowdown that was chosen, not measured."""

_BOARDS: Final = (
    "/proc/device-tree/model",
    "/sys/class/dmi/id/product_name",
    "/sys/class/dmi/id/board_name",
    "/sys/devices/soc0/soc_id",
)
"""Where a board says what it is: the device tree on Arm, the firmware's tables on x86."""

_MAX_TEXT: Final = 200
_NAMES: Final = ("model name", "Model", "Hardware", "cpu model", "Processor")
_PARTS: Final = ("CPU implementer", "CPU part", "CPU variant")

REFERENCE_GFLOPS: Final = 82.0
"""What the reference core computes of float32 convolutions, in 10⁹ operations a second.

From the same public table as the catalog's ratios, one thread: ResNet-50 (8.2·10⁹ operations) in 85.5 ms and MobileNet
(1.14·10⁹) in 16.2 ms; the geometric mean of both.
"""

_ALIKE_RATIO: Final = 1.5
"""A catalog machine is named as alike when its core is within this factor."""

_BENCHMARK: Final = """
import sys, time
import numpy as np, onnxruntime
from onnx import TensorProto, helper, numpy_helper

random = np.random.default_rng(0)

def network(n_in, size, layers):
    nodes, weights, name, operations, before = [], [], "x", 0, n_in
    for at, (kernel, n_out, groups) in enumerate(layers):
        weight = (0.05 * random.standard_normal((n_out, before // groups, kernel, kernel))).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{at}"))
        nodes.append(helper.make_node("Conv", [name, f"w{at}"], [f"c{at}"], pads=[kernel // 2] * 4, group=groups))
        nodes.append(helper.make_node("Relu", [f"c{at}"], [f"r{at}"]))
        operations += 2 * weight.size * size * size
        name, before = f"r{at}", n_out
    ends = [helper.make_tensor_value_info(*end) for end in (
        ("x", TensorProto.FLOAT, [1, n_in, size, size]), (name, TensorProto.FLOAT, [1, before, size, size]))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return model.SerializeToString(), operations

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
rates = []
for n_in, layers in (
    (64, [(3, 64, 1), (1, 256, 1), (1, 64, 1), (3, 64, 1)]),        # as in a ResNet
    (128, [(3, 128, 128), (1, 128, 1), (3, 128, 128), (1, 128, 1)]),  # as in a MobileNet
):
    model, operations = network(n_in, 28, layers)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = {"x": random.standard_normal((1, n_in, 28, 28), np.float32)}
    best_s, until_s = 1e9, time.perf_counter() + float(sys.argv[1]) / 2
    while time.perf_counter() < until_s or best_s == 1e9:
        began_s = time.process_time()
        session.run(None, feeds)
        best_s = min(best_s, max(time.process_time() - began_s, 1e-6))
    rates.append(operations / best_s / 1e9)
print((rates[0] * rates[1]) ** 0.5)
"""
"""The engine on two small networks, one thread, in processor seconds: what others compute meanwhile hardly counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """This machine, as a program on it finds it.

    Attributes:
        system: operating system, its version and the architecture.
        processor: its model as the kernel names it.
        n_processors: what the machine has.
        usable_cores: what this process may use of them: its affinity, and less where a control group says so.
        memory_bytes: of the machine.
        memory_limit_bytes: what a control group allows, None where it allows all.
        container: `docker`, `podman`, `kubernetes`, `lxc` or another name; None where none is seen.
    """

    system: str
    processor: str
    n_processors: int
    usable_cores: float
    memory_bytes: int
    memory_limit_bytes: int | None
    container: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast one core is, by a short benchmark in a process of its own.

    Attributes:
        gflops: float32 convolutions by onnxruntime, 10⁹ operations a second of processor time, the best of many.
        slowdown_ratio: estimate of what a catalog machine calls so: seconds of one core over the reference core's.
        alike: name of the catalog's machine whose core is nearest, None where none is within a factor of 1.5.
    """

    gflops: float
    slowdown_ratio: float
    alike: str | None


def facts() -> Facts:
    """What this machine is."""
    import psutil

    return Facts(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=processor(),
        n_processors=os.cpu_count() or 1,
        usable_cores=usable_cores(),
        memory_bytes=int(psutil.virtual_memory().total),
        memory_limit_bytes=_memory_limit_bytes(int(psutil.virtual_memory().total)),
        container=_container(),
    )


def machine_class() -> str:
    """This machine without its name, for what was measured here: the same text on every machine that is like it.

    An emulated machine is called by its name in the catalog: its factor is measured anew by each lab, and differs a
    little each time. A factor that somebody chose is said.
    """
    text = f"{platform.machine() or 'unknown'} {processor()}"
    factor = pace.factor()
    name = _named() if factor != 1.0 or _is_in_lab() else None
    if name is not None:
        chosen = os.environ.get(FACTOR_VARIABLE, "")
        return f"{text} cores={_told_cores() or _n_allowed():g} as={name}" + (f" factor={chosen}" if chosen else "")
    text = f"{text} cores={usable_cores():g}"
    return text if factor == 1.0 else f"{text} pace={factor:g}"


def _named() -> str | None:
    """The name of the machine that `HYBRID_DEVICE` says, None where it says none."""
    try:
        return device(os.environ[VARIABLE]).name if os.environ.get(VARIABLE) else None
    except DeviceError:
        return None  # said where it is asked for


def _is_in_lab() -> bool:
    """Whether this process runs in a lab's group, or was told so many cores by one."""
    return _told_cores() > 0 or any(folder.name.startswith(GROUP_PREFIX) for folder in _groups("cpu"))


@cache
def processor() -> str:
    """The processor's model as the kernel names it, else what Python knows."""
    known: dict[str, str] = {}
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        known.setdefault(name.strip(), value.strip())
    named = next((known[name] for name in _NAMES if known.get(name)), "")
    parts = " ".join(known[name] for name in _PARTS if known.get(name))
    text = " ".join(filter(None, (named, parts))) or platform.processor() or "unknown"
    return " ".join(text.split())[:_MAX_TEXT]


def usable_cores() -> float:
    """Cores that this process may use: its affinity, and less where a control group's quota says so.

    `HYBRID_CORES` overrules both, as an emulated machine sets it: its cores may share one processor of this one.
    """
    told = _told_cores()
    return told or min([_n_allowed(), *(round(quota.cores, 2) for quota in _quotas())])


def quota_period_s() -> float | None:
    """The longest period of the quotas that bind this process; None where none does.

    A program under a quota computes at full speed until its share of a period is used, and stands still for the rest:
    what is timed over less than some periods is timed wrongly.
    """
    allowed = _n_allowed()
    return max((quota.period_s for quota in _quotas() if quota.cores < allowed), default=None)


def _told_cores() -> float:
    told = os.environ.get(CORES_VARIABLE, "")
    return float(told) if told.isdigit() else 0.0


def _n_allowed() -> float:
    return float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def this_device() -> Device | None:
    """Which machine of the catalog this is: as `HYBRID_DEVICE` says, else by what its board and processor say.

    Raises:
        CatalogUnknown: the variable is neither a name of the catalog nor a file.
        CatalogInvalid: the file that it names does not say what it must.
    """
    named = os.environ.get(VARIABLE, "")
    if named:
        return device(named)
    texts = [processor(), *(_text(Path(place)).replace("\0", " ").strip() for place in _BOARDS)]
    return recognised(texts)


def recognised(texts: Sequence[str]) -> Device | None:
    """The machine of the catalog that calls itself so; the longest name wins (a Zero 2 W is no Zero)."""
    hits = [(len(name), one) for one in devices() for name in one.recognised_by if any(name in text for text in texts)]
    return max(hits, key=lambda hit: hit[0])[1] if hits else None


def interface(proc: Path = Path("/proc"), sys_net: Path = Path("/sys/class/net")) -> str:
    """What carries this machine's traffic: `wifi`, `lte` or `ethernet` (also where it cannot be told).

    Args:
        proc: for tests.
        sys_net: for tests.
    """
    name = ""
    for line in _text(proc / "net/route").splitlines()[1:]:
        words = line.split()
        if len(words) > 1 and words[1] == "00000000":
            name = words[0]
            break
    if (sys_net / name / "wireless").exists() or name.startswith("wl"):
        return "wifi"
    return "lte" if name.startswith(("ww", "ppp", "rmnet", "usb")) else "ethernet"


def measured_speed(seconds: float = 0.3) -> Speed:
    """How fast one core is; computes for about so long, plus half a second to begin.

    Args:
        seconds: of the benchmark.

    Raises:
        EmulationError: the benchmark did not run.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", _BENCHMARK, str(seconds)],
            capture_output=True,
            text=True,
            check=True,
            timeout=10 + 10 * seconds,
        )
        gflops = float(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as exc:
        raise EmulationError(f"the benchmark of one core did not run: {exc}") from exc
    slowdown_ratio = REFERENCE_GFLOPS / gflops
    near = min(devices(), key=lambda one: _distance(one, slowdown_ratio))
    alike = near.name if _distance(near, slowdown_ratio) <= log(_ALIKE_RATIO) else None
    return Speed(gflops=gflops, slowdown_ratio=slowdown_ratio, alike=alike)


def _distance(one: Device, slowdown_ratio: float) -> float:
    return abs(log(one.slowdown_ratio / slowdown_ratio))


@dataclass(frozen=True, slots=True)
class _Quota:
    """So many cores' time in each period."""

    cores: float
    period_s: float


def _quotas() -> Iterator[_Quota]:
    """Quotas of the groups that hold this process."""
    for folder in _groups("cpu"):
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        for words in (_text(folder / "cpu.max").split(), [_text(folder / name).strip() for name in names]):
            with suppress(ValueError):
                quota_us, period_us = (int(word) for word in words)
                if quota_us > 0 and period_us > 0:
                    yield _Quota(quota_us / period_us, period_us / 1e6)


def _memory_limit_bytes(total_bytes: int) -> int | None:
    limits = [
        int(text)
        for folder in _groups("memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        if (text := _text(folder / name).strip()).isdigit()
    ]
    lowest = min(limits, default=total_bytes)
    return lowest if lowest < total_bytes else None


def _groups(controller: str) -> Iterator[Path]:
    """Folders of this process's control group and of those above it, in v1's tree of a controller and in v2's."""
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = Path("/sys/fs/cgroup") / controllers
        folder = root / path.lstrip("/")
        yield from (one for one in (folder, *folder.parents) if one.is_dir() and root in (one, *one.parents))


def _container() -> str | None:
    """The container that this process is in, by the marks that each leaves."""
    marks = {"docker": Path("/.dockerenv"), "podman": Path("/run/.containerenv")}
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "kubernetes"
    for name, mark in marks.items():
        if mark.exists():
            return name
    named = _text(Path("/run/systemd/container")).strip()
    return named or None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
