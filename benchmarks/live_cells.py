"""Repeats cells of the matrix live: a real gateway and real sessions in the lab, beside the same cells simulated.

    python -m benchmarks.live_cells [NAME …] [--emulation quota|pacing]

Which cells is said in `live_cells.toml`. The link carries real packets under real TCP (BBR); the gateway is one core,
as in the matrix; the device is slowed by the kernel's quota on each of its cores (everything there is slow), or paced
(its engine is slow). Bar: the median latency of a live stream is within 10 % of the simulated one's.
"""

import argparse
import json
import os
import sys
import tempfile
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace as changed

from benchmarks.matrix_parts import MODELS
from benchmarks.report import RESULTS, ROOT, Bar, Record, publish
from devices.catalog import load
from devices.machine import CORES_VARIABLE
from devices.trace import Trace
from hybrid.bench.matrix import cell, read, work_of
from hybrid.bench.parts import ModelParts
from hybrid.bench.shelf import shelved
from hybrid.schedule.prices import PRICES
from hybrid.schedule.prospect import Constraints
from hybrid.simulation.curve import Steps
from hybrid.simulation.outcome import Outcome
from hybrid.simulation.policy import Policy, Static
from hybrid.simulation.scene import Scene
from hybrid.simulation.scheduled import Scheduled
from hybrid.simulation.stream import Stream
from hybrid.simulation.work import Work
from hybrid.simulation.world import World

N_INPUTS = 8
N_CORES = 4
COLUMNS = (
    "model", "device", "link", "policy", "answered remotely", "simulated ms", "live ms", "live / simulated", "host",
)  # fmt: skip
METHOD = """\
{} paced requests of each policy in the lab: a real gateway process of one core, real sessions, real packets under \
BBR; the device has {} cores, each slowed by its factor ({}). Medians, beside the same cell on the virtual clock, fed \
with parts that were measured before; `host` is how much slower this machine computed just then (processor seconds of \
the whole model, before and after the stream), by which the parts are scaled. A quota of the kernel is no better \
device here: after a rest a job's first one or two processor milliseconds pass unslowed, which is most of what Python \
does for a request and a fifth of EfficientNet's run (live over simulated 0.5 to 0.97 in the first cell). MiniLM's \
replies are 168 kB, 0.3 s apart: BBR begins such a reply after a rest more slowly than the simulated link does, some \
by a round trip."""
KINDS = {"quota": "a quota of the kernel", "pacing": "the engine's runs are paced, all else is this machine's"}
UNGUARDED = Constraints(max_accuracy_drop=1.0)

Way = tuple[str, int, str]


class LiveCell(msgspec.Struct, frozen=True, kw_only=True):
    """One model on one device over one link, with the ways that are repeated live (placement, cut's place, codec)."""

    model: str
    device: str
    link: str
    ways: tuple[Way, ...]
    hybrid_codec: str = "lossless"

    @property
    def name(self) -> str:
        """Model, device and link."""
        return f"{self.model} {self.device} {self.link}"


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What the file holds."""

    n_requests: int
    within_ratio: float
    cells: tuple[LiveCell, ...]


CHOICE = msgspec.convert(tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")), Choice)


def main() -> int:
    """Runs the cells that were asked for, keeps their rows, and publishes the table of all that are kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="only cells whose name holds one of these; others stay as they were")
    parser.add_argument("--emulation", choices=tuple(KINDS), default="pacing")
    parser.add_argument("--dry", action="store_true", help="print the table, write nothing but the raw rows")
    parser.add_argument("--keep", type=Path, default=RESULTS / "live_cells_raw.json")
    given = parser.parse_args()
    parts = {one.name: one for one in shelved()}
    kept: dict[str, Any] = json.loads(given.keep.read_text(encoding="utf-8")) if given.keep.is_file() else {}
    if kept.get("emulation") != given.emulation:
        kept = {"emulation": given.emulation}
    for one in CHOICE.cells:
        if not given.names or any(word in one.name for word in given.names):
            kept[one.name] = live(one, parts[one.model], given.emulation)
            given.keep.write_text(json.dumps(kept) + "\n", encoding="utf-8")
    record = record_of(kept, parts, given.emulation)
    if given.dry:
        print(*record.rows, sep="\n")
        return 0
    return publish(record)


# -- live


def live(one: LiveCell, model: ModelParts, emulation: str) -> list[dict[str, Any]]:
    """The rows of every policy, from the lab."""
    from devices.lab.lab import Lab
    from tests import zoo
    from tests.live_gateway import LiveGateway

    is_quota, here = emulation == "quota", os.sched_getaffinity(0)
    slowed = {"slowdown": "quota", "n_cores": N_CORES} if is_quota else {"slowdown": "pacing"}
    with (
        tempfile.TemporaryDirectory() as place,
        Lab(one.link, kind="tun", congestion_control="bbr", factor=factor_of(one), **slowed) as lab,
    ):
        folder, file = Path(place), zoo.path(MODELS[one.model][0])
        os.sched_setaffinity(
            0, set(sorted(here)[:-1]) or here
        )  # the device has the last processor, all else the others
        try:
            gateway_of = LiveGateway(folder / "gateway", "--no-announce", "--plain-http", place=lab.gateway)
            with gateway_of as gateway:
                gateway.push(file, one.model.replace("_", "-"))
                spec = spec_of(one, model, file, folder)
                (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
                told = {"HYBRID_GATEWAY": lab.url(gateway.port), "HYBRID_TOKEN": gateway.token}
                own = {"HYBRID_CACHE": str(folder / "cache"), CORES_VARIABLE: str(N_CORES)}
                pinned = [] if is_quota else ["taskset", "-c", str(max(here))]
                command = [*pinned, sys.executable, "-m", "benchmarks.live_device", str(folder / "spec.json")]
                lab.device.run(command, env={**os.environ, **told, **own}, cwd=ROOT, timeout_s=400)
        finally:
            os.sched_setaffinity(0, here)
        if not (folder / "out.json").is_file():
            raise SystemExit(f"{one.name}: the device's program left no rows")
        rows: list[dict[str, Any]] = json.loads((folder / "out.json").read_text(encoding="utf-8"))
        return rows


def spec_of(one: LiveCell, model: ModelParts, file: Path, folder: Path) -> dict[str, Any]:
    """What the device's program is told; leaves the inputs in the folder."""
    samples, _ = MODELS[one.model][2]()
    arrays: dict[str, Any] = {f"{name}@{at}": a for at in range(N_INPUTS) for name, a in samples[at].items()}
    np.savez(folder / "inputs.npz", **arrays)
    fixed = [{"name": way_name(way), "placement": placement(way, model), "codec": way[2]} for way in one.ways]
    return {
        "model": str(file),
        "inputs": str(folder / "inputs.npz"),
        "out": str(folder / "out.json"),
        "whole_s": model.whole_s,
        "n_warm": 3,
        "n_requests": CHOICE.n_requests,
        "period_s": scene_of(one, model, "quota").stream.period_s,
        "policies": [*fixed, {"name": "hybrid", "placement": "auto", "codec": one.hybrid_codec}],
    }


def way_name(way: Way) -> str:
    return " ".join(str(part) for part in way if part not in (0, "none"))


def placement(way: Way, model: ModelParts) -> str:
    return f"split:{model.cuts[way[1]].cut}" if way[0] == "split" else way[0]


# -- simulated


def factor_of(one: LiveCell) -> float:
    """How many times slower than this machine the device's engine is."""
    return round(load.device(one.device).factor_on(read().host_slowdown_ratio), 1)


def scene_of(one: LiveCell, model: ModelParts, emulation: str, host_ratio: float = 1.0) -> Scene:
    """The cell's steady scene, as the lab emulates it: a quota slows all that the device does, pacing only its engine.

    `host_ratio` is how much slower the measuring machine was during the live stream than when the parts were measured.
    """
    matrix, device, link = read(), load.device(one.device), load.link_class(one.link)
    scene = cell(matrix, first_inputs(model), [model], device, link, trace_kind="steady").scene
    factor = factor_of(one) * host_ratio
    beside_factor = factor if emulation == "quota" else host_ratio
    return replace(
        scene,
        work=work_of(first_inputs(model), factor, encode_factor=beside_factor),
        device=replace(scene.device, attempt_s=matrix.attempt_s * beside_factor, n_cores=N_CORES),
        gateway=replace(scene.gateway, load=Steps.steady(host_ratio)),
        link=replace(scene.link, trace=Trace.steady(link), congestion="bbr"),
        stream=Stream(period_s=scene.stream.period_s, duration_s=120.0),
    )


def first_inputs(model: ModelParts) -> ModelParts:
    """The same parts for those inputs alone that the live streams send: photographs differ in size."""
    cuts = tuple(
        changed(cut, codecs=tuple(changed(part, n_bytes=part.n_bytes[:N_INPUTS]) for part in cut.codecs))
        for cut in model.cuts
    )
    return changed(model, cuts=cuts)


def simulated(one: LiveCell, model: ModelParts, name: str, emulation: str, host_ratio: float) -> Outcome:
    scene = scene_of(one, model, emulation, host_ratio)
    policy: Policy
    if name == "hybrid":
        kept = [at for at, way in enumerate(scene.work.prospects) if at == 0 or way.codec == one.hybrid_codec]
        scene = replace(scene, work=chosen(scene.work, kept))
        policy = Scheduled(
            scene.work, PRICES["latency"], constraints=UNGUARDED, n_cores=N_CORES, congestion=scene.link.congestion
        )
    else:
        way = next(way for way in one.ways if way_name(way) == name)
        policy = Static(number_of(scene.work, way, model), name)
    return World(scene, policy).run()


def number_of(work: Work, way: Way, model: ModelParts) -> int:
    kind, place, codec = way
    cut = model.cuts[place].cut if kind == "split" else ""
    return next(
        at
        for at, prospect in enumerate(work.prospects)
        if (prospect.placement, prospect.cut, prospect.codec) == (kind, cut, codec)
    )


def chosen(work: Work, kept: list[int]) -> Work:
    """Only some of the ways; what is forced needs no calibration."""
    return Work(
        name=work.name,
        prospects=tuple(replace(work.prospects[at], accuracy_drop=0.0) for at in kept),
        decode_s=tuple(work.decode_s[at] for at in kept),
        size_ratios=tuple(work.size_ratios[at] for at in kept),
    )


def record_of(kept: dict[str, Any], parts: dict[str, ModelParts], emulation: str) -> Record:
    """The table with its bars."""
    rows: list[tuple[str | float, ...]] = []
    bars: list[Bar] = []
    for one in CHOICE.cells:
        for stream in kept.get(one.name, ()):
            place = (one.model, f"{one.device} (1/{factor_of(one):g})", one.link, stream["policy"])
            latencies, host_ratio = [row["latency_s"] for row in stream["rows"]], stream.get("host_ratio", 1.0)
            if not latencies:
                rows.append((*place, stream.get("error", "no answer"), "", "", "", ""))
                bars.append(Bar(name=f"{one.name}, {stream['policy']}: no answers", measured=1.0, limit=0.0))
                continue
            outcome = simulated(one, parts[one.model], stream["policy"], emulation, host_ratio)
            expected_s, median_s = float(np.median(outcome.latency_s)), float(np.median(latencies))
            remote = sum(row["placement"] != "local" for row in stream["rows"]) / len(latencies)
            ratio = median_s / expected_s
            rows.append((*place, f"{remote:.0%}", 1e3 * expected_s, 1e3 * median_s, ratio, host_ratio))
            name = f"{one.name}, {stream['policy']}: off by"
            bars.append(Bar(name=name, measured=abs(ratio - 1), limit=CHOICE.within_ratio))
    return Record(
        name="live_cells",
        claim="What the simulation says is what happens live",
        method=METHOD.format(CHOICE.n_requests, N_CORES, KINDS[emulation]),
        seed=0,
        columns=COLUMNS,
        rows=rows,
        bars=bars,
    )


if __name__ == "__main__":
    sys.exit(main())
