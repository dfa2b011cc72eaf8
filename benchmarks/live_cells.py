"""Repeats cells of the matrix live: a real gateway and real sessions in the lab, beside the same cells simulated.

    python benchmarks/live_cells.py [NAME …] [--requests N] [--kind tun|proxy]

The device is paced (its engine runs take its factor longer), the link carries real packets under real TCP. Bar: the
median latency of a live stream is within 10 % of the simulated one's.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.matrix_parts import MODELS  # noqa: E402
from benchmarks.report import Bar, Record, publish  # noqa: E402
from devices import pace  # noqa: E402
from devices.catalog import load  # noqa: E402
from devices.trace import Trace  # noqa: E402
from hybrid.bench.matrix import cell, read, work_of  # noqa: E402
from hybrid.bench.parts import ModelParts  # noqa: E402
from hybrid.bench.shelf import shelved  # noqa: E402
from hybrid.schedule.prices import PRICES  # noqa: E402
from hybrid.schedule.prospect import Constraints  # noqa: E402
from hybrid.simulation.curve import Steps  # noqa: E402
from hybrid.simulation.outcome import Outcome  # noqa: E402
from hybrid.simulation.policy import Policy, Static  # noqa: E402
from hybrid.simulation.scene import Scene  # noqa: E402
from hybrid.simulation.scheduled import Scheduled  # noqa: E402
from hybrid.simulation.stream import Stream  # noqa: E402
from hybrid.simulation.work import Work  # noqa: E402
from hybrid.simulation.world import World  # noqa: E402
from tests import zoo  # noqa: E402

HYBRID = Path(sys.executable).parent / "hybrid"
WITHIN = 0.10
N_INPUTS = 8
COLUMNS = (
    "model", "device", "link", "policy", "answered remotely", "simulated ms", "live ms", "live / simulated", "host",
)  # fmt: skip
METHOD = """\
{} paced requests of each policy (24 of the detector) in the lab: a real gateway process, real sessions, real packets \
under BBR; the device's engine is paced. Medians, beside the same cell on the virtual clock, fed with parts that were \
measured before; `host` is how much slower this machine computed just then, by which the parts are scaled. What is \
likely behind the misses: device, gateway and link share two cores here, which the simulation does not know (the \
gateway's tails took up to three times as long beside a race), and a split's head quantizes in the graph, which pacing \
slows, where the parts count it as encoding, which pacing does not slow."""
UNGUARDED = Constraints(max_accuracy_drop=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveCell:
    """One model on one device over one link, with the ways that are repeated live (placement, cut's place, codec)."""

    model: str
    device: str
    link: str
    ways: tuple[tuple[str, int, str], ...]
    hybrid_codec: str = "lossless"

    @property
    def name(self) -> str:
        """Model, device and link."""
        return f"{self.model} {self.device} {self.link}"


CELLS = (
    LiveCell(
        model="efficientnet", device="rpi-4b", link="wifi-good",
        ways=(("local", 0, "none"), ("offload", 0, "lossless"), ("split", 2, "q8")),
    ),
    LiveCell(
        model="efficientnet", device="rpi-4b", link="lte",
        ways=(("offload", 0, "lossless"), ("split", 3, "q8")),
    ),
    LiveCell(
        model="ppocr_det", device="rpi-4b", link="wifi-good", ways=(("local", 0, "none"), ("offload", 0, "lossless")),
    ),
    LiveCell(model="ppocr_det", device="rpi-3b-plus", link="lte", ways=(("offload", 0, "lossless"),)),
    LiveCell(model="magika", device="rpi-3b-plus", link="lte", ways=(("offload", 0, "lossless"),)),
)  # fmt: skip
"""Chosen before the runs; links below 50 Mbit/s, since the emulation itself needs a part of this machine."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="only cells whose name holds one of these")
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--kind", default="auto", choices=("auto", "tun", "proxy"))
    parser.add_argument("--dry", action="store_true", help="print the table, write nothing but the raw rows")
    parser.add_argument("--keep", type=Path, default=ROOT / "benchmarks" / "results" / "live_cells_raw.json")
    given = parser.parse_args()
    parts = {one.name: one for one in shelved()}
    kept: dict[str, Any] = json.loads(given.keep.read_text(encoding="utf-8")) if given.keep.is_file() else {}
    for one in CELLS:
        if not given.names or any(word in one.name for word in given.names):
            kept[one.name] = live(one, parts[one.model], given.requests, given.kind)
            given.keep.write_text(json.dumps(kept) + "\n", encoding="utf-8")
    record = record_of(kept, parts, given.requests)
    if given.dry:
        print(*record.rows, sep="\n")
        return 0
    return publish(record)


# -- live


def live(one: LiveCell, model: ModelParts, n_requests: int, kind: str) -> list[dict[str, Any]]:
    """The rows of every policy, from the lab."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        samples, _ = MODELS[one.model][2]()
        arrays: dict[str, Any] = {f"{name}@{at}": a for at in range(N_INPUTS) for name, a in samples[at].items()}
        np.savez(folder / "inputs.npz", **arrays)
        file = zoo.path(MODELS[one.model][0])
        spec = {
            "model": str(file),
            "inputs": str(folder / "inputs.npz"),
            "out": str(folder / "out.json"),
            "whole_s": model.whole_s,
            "n_warm": 3,
            "n_requests": n_requests,
            "period_s": scene_of(one, model).stream.period_s,
            "policies": [
                {"name": way_name(way), "placement": placement(way, model), "codec": way[2]} for way in one.ways
            ] + [{"name": "hybrid", "placement": "auto", "codec": one.hybrid_codec}],
        }  # fmt: skip
        (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
        lab = ["lab", "run", "--link", one.link, "--kind", kind, "--congestion-control", "bbr", "--model", str(file)]
        paced = ["env", f"{pace.VARIABLE}={factor_of(one)}", sys.executable]
        program = [str(ROOT / "benchmarks" / "live_device.py"), str(folder / "spec.json")]
        command = [str(HYBRID), *lab, "--", *paced, *program]
        done = subprocess.run(command, cwd=ROOT, timeout=400, check=False)
        if not (folder / "out.json").is_file():
            raise SystemExit(f"{one.name}: the lab ended with {done.returncode} and no rows")
        rows: list[dict[str, Any]] = json.loads((folder / "out.json").read_text(encoding="utf-8"))
        return rows


def way_name(way: tuple[str, int, str]) -> str:
    return " ".join(str(part) for part in way if part not in (0, "none"))


def placement(way: tuple[str, int, str], model: ModelParts) -> str:
    return f"split:{model.cuts[way[1]].cut}" if way[0] == "split" else way[0]


# -- simulated


def factor_of(one: LiveCell) -> float:
    """How many times slower than this machine the device's engine is."""
    return round(load.device(one.device).factor_on(read().host_slowdown_ratio), 1)


def scene_of(one: LiveCell, model: ModelParts, host_ratio: float = 1.0) -> Scene:
    """The cell's steady scene, as the lab emulates it: pacing slows the engine, not the encoding beside it.

    `host_ratio` is how much slower the measuring machine was during the live stream than when the parts were measured.
    """
    device, link = load.device(one.device), load.link_class(one.link)
    scene = cell(read(), model, [model], device, link, trace_kind="steady").scene
    matrix = read()
    work = work_of(model, factor_of(one) * host_ratio, encode_factor=host_ratio)
    machine = replace(scene.device, attempt_s=matrix.attempt_s * host_ratio)
    gateway = replace(scene.gateway, load=Steps.steady(host_ratio))
    scene = replace(
        scene,
        work=work,
        device=machine,
        gateway=gateway,
        link=replace(scene.link, trace=Trace.steady(link), congestion="bbr"),
    )
    return replace(scene, stream=Stream(period_s=scene.stream.period_s, duration_s=120.0))


def simulated(one: LiveCell, model: ModelParts, name: str, host_ratio: float) -> Outcome:
    scene = scene_of(one, model, host_ratio)
    policy: Policy
    if name == "hybrid":
        kept = [at for at, way in enumerate(scene.work.prospects) if at == 0 or way.codec == one.hybrid_codec]
        scene = replace(scene, work=chosen(scene.work, kept))
        policy = Scheduled(scene.work, PRICES["latency"], constraints=UNGUARDED)
    else:
        way = next(way for way in one.ways if way_name(way) == name)
        policy = Static(number_of(scene.work, way, model), name)
    return World(scene, policy).run()


def number_of(work: Work, way: tuple[str, int, str], model: ModelParts) -> int:
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


def record_of(kept: dict[str, Any], parts: dict[str, ModelParts], n_requests: int) -> Record:
    rows: list[tuple[str | float, ...]] = []
    bars: list[Bar] = []
    for one in CELLS:
        for stream in kept.get(one.name, ()):
            latencies = [row["latency_s"] for row in stream["rows"]]
            outcome = simulated(one, parts[one.model], stream["policy"], stream.get("host_ratio", 1.0))
            expected_s = float(np.median(outcome.latency_s))
            if not latencies:
                rows.append(
                    (
                        one.model,
                        one.device,
                        one.link,
                        stream["policy"],
                        stream.get("error", "no answer"),
                        "",
                        "",
                        "",
                        "",
                    )
                )
                continue
            median_s = float(np.median(latencies))
            remote = sum(row["placement"] != "local" for row in stream["rows"]) / len(latencies)
            rows.append((
                one.model, one.device, one.link, stream["policy"], f"{remote:.0%}", 1e3 * expected_s, 1e3 * median_s,
                median_s / expected_s, stream.get("host_ratio", 1.0),
            ))  # fmt: skip
            off = abs(median_s / expected_s - 1)
            bars.append(Bar(name=f"{one.name}, {stream['policy']}: off by", measured=off, limit=WITHIN))
    return Record(
        name="live_cells",
        claim="What the simulation says is what happens live",
        method=METHOD.format(n_requests),
        seed=0,
        columns=COLUMNS,
        rows=rows,
        bars=bars,
    )


if __name__ == "__main__":
    sys.exit(main())
