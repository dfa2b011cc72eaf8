"""A gateway killed or frozen, or the link cut, at random moments of requests: right answers, in time, and back again.

    python -m benchmarks.faults [-n 200] [--most-s 240] [--link tun|proxy]    # goes on where the last portion ended

A program on an emulated device (a quota of the kernel for each of its cores) sends requests in a row to a real gateway
over the lab's link, half of the faults over real packets, half over shaped loopback. At a random moment of a request
that is on its way the gateway is killed (SIGKILL), frozen (SIGSTOP), or the link is cut. Every answer must be right;
none may come later than 1.2 times what the device alone takes, measured before and after each fault on the same
emulated cores; and the gateway must answer again within three seconds of its return.
"""

import argparse
import json
import os
import queue
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, ROOT, Bar, Record, publish

CONTROL = "alone"
"""The objective of the control: the device alone answers, while the same faults happen beside it."""

HARMS = ("killed", "frozen", "cut")
LINKS = ("tun", "proxy")
SHAPE = {"rate_bps": 100e6, "rtt_s": 0.01}
MODEL = "resnet50"
FACTOR, N_CORES = 5.0, 4
LATE_RATIO = 1.2
AWAY_S = (0.2, 1.2)
BACK_LIMIT_S = 20.0
N_ALONE = 2
"""Runs of the device alone, before and after each fault."""

SLOW_BACK_S = 1.5
"""What took longer than this to answer again is kept in detail."""

SETTLED_AFTER = 3
"""Remote answers in a row after which all is well."""

RAW = RESULTS / "faults_raw.jsonl"
CONTROL_RAW = RESULTS / "faults_control.jsonl"
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault and what came of it.

    Attributes:
        number: of the fault in its link's series; with the seed it fixes what is done and when.
        at_ratio: how far the request was that it struck, as a share of that request's seconds; None: between two.
        local_s: the device alone: median of the runs before and after.
        alone_ratio: the slowest of those runs over their median.
        worst_ratio: the slowest request from the fault until the gateway answered again, over `local_s`.
        fair_ratio: the same, where `local_s` is what it would have been with the processor seconds of that very
            request: this machine's two processors slow each other, so that a gateway that starts slows the device.
        back_s: from the gateway's return until it answered again.
        worst: where the time of the slowest request went.
        after: where the gateway answered late: what was believed of it, request by request, from its return on.
    """

    link: str
    number: int
    harm: str
    at_ratio: float | None
    away_s: float
    local_s: float
    alone_ratio: float
    n_requests: int
    n_wrong: int
    worst_ratio: float
    fair_ratio: float
    back_s: float
    commit: str
    worst: Row = field(default_factory=dict)
    after: list[Row] = field(default_factory=list)


# -- beside it


class Scene:
    """A program on a slow device, a gateway, and a link between them that can be harmed."""

    def __init__(self, lab: Any, gateway: Any, process: "subprocess.Popen[str]", objective: str) -> None:
        self._is_control = objective == CONTROL
        self._lab, self._gateway, self._process = lab, gateway, process
        self._rows: queue.SimpleQueue[Row] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None, "it was asked for"
        for line in self._process.stdout:
            self._rows.put(json.loads(line))
        self._rows.put({"kind": "gone"})

    def say(self, word: str) -> None:
        """Tells the device what to do now."""
        assert self._process.stdin is not None, "it was asked for"
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()

    def row(self, limit_s: float = 60.0) -> Row:
        """The next thing that the device says."""
        found = self._rows.get(timeout=limit_s)
        if found["kind"] == "gone":
            raise SystemExit("the device's program ended")
        return found

    def alone(self) -> list[Row]:
        """A few runs of the device alone."""
        for _ in range(N_ALONE):
            self.say("alone")
        return [self.row() for _ in range(N_ALONE)]

    def off(self) -> list[Row]:
        """Ends the requests; those that had not been read."""
        self.say("off")
        rows = []
        while (row := self.row())["kind"] != "off":
            rows.append(row)
        return rows

    def settled(self) -> float:
        """Requests in a row until the gateway answers them; the seconds of one then."""
        self.say("on")
        until_s = time.perf_counter() + BACK_LIMIT_S
        remote: list[float] = []
        while len(remote) < SETTLED_AFTER:
            row = self.row()
            remote = [*remote, row["took_s"]] if self._is_well(row) else []
            if time.perf_counter() > until_s:
                raise SystemExit(f"the gateway is not used: {row}")
        return float(statistics.median(remote))

    def _is_well(self, row: Row) -> bool:
        """Whether the gateway answered; without one to answer, all is well."""
        return self._is_control or row["placement"] != "local"

    def harm(self, harm: str) -> None:
        """Brings it about."""
        if harm == "killed":
            self._gateway.kill()
        elif harm == "frozen":
            self._gateway.signal(signal.SIGSTOP)
        else:
            self._lab.link.blackhole()

    def mend(self, harm: str) -> None:
        """Ends it."""
        if harm == "killed":
            self._gateway.start()
        elif harm == "frozen":
            self._gateway.signal(signal.SIGCONT)
        else:
            self._lab.link.restore()

    def fault(self, link: str, number: int, seed: int, commit: str) -> Fault:
        """One fault, from well to well."""
        rng, harm = random.Random(f"{seed} {link} {number}"), HARMS[number % len(HARMS)]
        alone = self.alone()
        one_s = self.settled()
        wait_s, away_s = rng.uniform(0, 2 * one_s), rng.uniform(*AWAY_S)
        time.sleep(wait_s)
        struck_s = time.perf_counter()
        self.harm(harm)
        time.sleep(away_s)
        self.mend(harm)
        mended_s, rows, is_back = time.perf_counter(), [], False
        while not is_back and time.perf_counter() - mended_s < BACK_LIMIT_S:
            rows.append(row := self.row())
            is_back = self._is_well(row) and row["start_s"] + row["took_s"] > mended_s
        back_s = rows[-1]["start_s"] + rows[-1]["took_s"] - mended_s if is_back else BACK_LIMIT_S
        self.off()
        alone += self.alone()
        local_s, cpu_s = (statistics.median(row[name] for row in alone) for name in ("took_s", "cpu_s"))
        rows = [row for row in rows if row["start_s"] + row["took_s"] > struck_s]
        worst = max(rows, key=lambda row: float(row["took_s"]))
        first = rows[0]
        return Fault(
            link=link,
            number=number,
            harm=harm,
            at_ratio=(struck_s - first["start_s"]) / first["took_s"] if first["start_s"] < struck_s else None,
            away_s=mended_s - struck_s,
            local_s=local_s,
            alone_ratio=max(row["took_s"] for row in alone) / local_s,
            n_requests=len(rows),
            n_wrong=sum(not row["is_right"] for row in rows),
            worst_ratio=worst["took_s"] / local_s,
            fair_ratio=max(_fair(row, local_s, cpu_s) for row in rows),
            back_s=back_s,
            commit=commit,
            worst=worst | {"at": rows.index(worst)},
            after=[_brief(row, mended_s) for row in rows if row["start_s"] > mended_s] if back_s > SLOW_BACK_S else [],
        )


def _brief(row: Row, mended_s: float) -> Row:
    shown = {name: row.get(name) for name in ("placement", "took_s", "fallback", "decided", "believed")}
    return {"at_s": row["start_s"] - mended_s} | shown


def _fair(row: Row, local_s: float, cpu_s: float) -> float:
    """Seconds over the device's own with this request's processor seconds, those of encoding left out."""
    host_ratio = (row["cpu_s"] - row["encode_s"] - row["wasted_s"]) / cpu_s if row["placement"] == "local" else 1.0
    return float(row["took_s"]) / (local_s * max(1.0, host_ratio))


@contextmanager
def scene_over(link: str, seed: int, objective: str) -> Iterator[Scene]:
    """A lab with its gateway and the program on its device."""
    import numpy as np

    from devices.lab.lab import Lab
    from devices.shape import Shape
    from tests import zoo
    from tests.live_gateway import LiveGateway

    with (
        tempfile.TemporaryDirectory() as place,
        Lab(Shape.even(**SHAPE), kind=link, seed=seed, factor=FACTOR, n_cores=N_CORES) as lab,  # type: ignore[arg-type]
    ):
        # The device's cores are on the last processor: the gateway, and whatever else starts here, keeps the others.
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:-1]) or {0})
        folder = Path(place)
        np.savez(folder / "feeds.npz", **zoo.feeds(MODEL, seed))  # type: ignore[arg-type]  # names it does not know
        flags = ("--no-announce", *(("--plain-http",) if link == "tun" else ()))
        with LiveGateway(folder / "gateway", *flags, place=lab.gateway) as gateway:
            gateway.push(zoo.path(MODEL), MODEL.replace("_", "-"))
            spec = {"model": str(zoo.path(MODEL)), "feeds": str(folder / "feeds.npz"), "objective": objective}
            process = lab.device.popen(
                [sys.executable, "-m", "benchmarks.faults_device", json.dumps(spec)],
                env=_environment(lab.url(gateway.port), gateway.token, folder),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            )  # fmt: skip
            scene = Scene(lab, gateway, process, objective)
            if not scene.row(120)["prepared"]:
                raise SystemExit("the gateway is not usable")
            yield scene
            scene.say("end")
            process.wait(10)


def _environment(url: str, token: str, folder: Path) -> dict[str, str]:
    return {**os.environ, "HYBRID_GATEWAY": url, "HYBRID_TOKEN": token, "HYBRID_CACHE": str(folder / "cache")}


# -- all of them


def kept(path: Path) -> list[Fault]:
    """The faults of earlier portions."""
    if not path.is_file():
        return []
    return [Fault(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def portion(link: str, numbers: list[int], chosen: argparse.Namespace, until_s: float) -> None:
    """As many of these faults as the time allows, each kept at once."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    with scene_over(link, chosen.seed, chosen.objective) as scene:
        for number in numbers:
            if time.monotonic() > until_s:
                return
            fault = scene.fault(link, number, chosen.seed, commit)
            with chosen.raw.open("a", encoding="utf-8") as raw:
                raw.write(json.dumps(asdict(fault)) + "\n")
            print(
                f"{link} {number} {fault.harm}: {fault.n_wrong} of {fault.n_requests} wrong, "
                f"worst {fault.worst_ratio:.2f} (fair {fault.fair_ratio:.2f}, alone {fault.alone_ratio:.2f}), "
                f"back {fault.back_s:.2f} s",
                file=sys.stderr,
                flush=True,
            )


def main() -> int:
    """One portion, or all; then the table of what there is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("-n", type=int, default=200, help="how many in all, half over each link")
    parser.add_argument("--link", choices=LINKS, help="only this one now")
    parser.add_argument("--most-s", type=float, default=float("inf"), help="begin no fault after so many seconds")
    parser.add_argument("--objective", default="latency")
    parser.add_argument("--raw", type=Path, default=RAW, help="where faults are kept")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier portions did")
    parser.add_argument("--dry", action="store_true", help="write no table")
    chosen = parser.parse_args()
    if chosen.fresh:
        chosen.raw.unlink(missing_ok=True)
    until_s = time.monotonic() + chosen.most_s
    for link in LINKS if chosen.link is None else (chosen.link,):
        done = {fault.number for fault in kept(chosen.raw) if fault.link == link}
        left = [number for number in range(chosen.n // len(LINKS)) if number not in done]
        if left and time.monotonic() < until_s:
            portion(link, left, chosen, until_s)
    return 0 if chosen.dry else publish(record(kept(chosen.raw), kept(CONTROL_RAW), chosen.seed))


def record(found: list[Fault], control: list[Fault], seed: int) -> Record:
    """The table with its bars."""
    rows: list[tuple[str | float, ...]] = []
    for link in LINKS:
        for harm in HARMS:
            those = [fault for fault in found if (fault.link, fault.harm) == (link, harm)]
            if those:
                rows.append((link, harm, len(those), *_figures(those)))
    late = [fault for fault in found if fault.worst_ratio > LATE_RATIO]
    unfair = [fault for fault in found if fault.fair_ratio > LATE_RATIO]
    wrong, slow = sum(fault.n_wrong for fault in found), sum(fault.back_s > 3.0 for fault in found)
    return Record(
        name="faults",
        claim="A gateway killed or frozen, or the link cut, in mid-request",
        method=(
            f"{len(found)} faults at random moments of requests in a row; {MODEL} on an emulated device of {N_CORES} "
            f"cores, each 1/{FACTOR:.0f} of this machine's (quota of the kernel); 100 Mbit/s and 10 ms, over real "
            "packets (tun) and over shaped loopback (proxy); the gateway is away for 0.2 to 1.2 s (and, killed, "
            f"as long as it takes to start). Worst: the slowest answer from the fault until the gateway answers "
            f"again, over the device alone ({2 * N_ALONE} runs around each fault, median); fair: over that with the "
            "processor seconds of the very request, since this machine's two processors slow each other and a gateway "
            f"that starts slows the device. The control, the device alone while {len(control)} such faults happened "
            f"beside it, was later than 1.2 x in {_share_late(control)} (fair: {_share_late(control, is_fair=True)}). "
            f"{_where_late(late)} "
            f"Commits: {', '.join(sorted({fault.commit for fault in found}))}."
        ),
        seed=seed,
        columns=(
            "link", "fault", "times", "requests", "wrong answers", "worst (median)", "worst (p95)", "worst (max)",
            "later than 1.2 x local", "fair", "back after (median s)", "back after (max s)",
        ),
        rows=rows,
        bars=(
            Bar(name="wrong answers", measured=float(wrong), limit=0.0),
            Bar(name="faults with an answer later than 1.2 x local", measured=float(len(late)), limit=0.0),
            Bar(name="the same, fair", measured=float(len(unfair)), limit=0.0),
            Bar(name="faults after which the gateway answered again only after 3 s", measured=float(slow), limit=0.0),
        ),
    )  # fmt: skip


def _where_late(late: list[Fault]) -> str:
    """What the late answers were late by."""
    here = [fault.worst for fault in late if fault.worst["placement"] == "local"]
    if not here:
        return "None of the late answers was the device's."
    outside_ms = sorted(1e3 * (row["took_s"] - row["head_s"]) for row in here)
    n_alone = sum(row["attempts"] == 1 for row in here)
    return (
        f"Of {len(late)} late answers the device gave {len(here)}, {n_alone} of them with nothing sent; outside of its "
        f"own engine run they took {statistics.median(outside_ms):.1f} ms (median; at most {outside_ms[-1]:.1f} ms): "
        "it was the run itself that was slower, on a machine where other programs ran too, which the control met less."
    )


def _share_late(found: list[Fault], *, is_fair: bool = False) -> str:
    if not found:
        return "none"
    return (
        f"{sum((fault.fair_ratio if is_fair else fault.worst_ratio) > LATE_RATIO for fault in found) / len(found):.0%}"
    )


def _figures(those: list[Fault]) -> tuple[float, ...]:
    worst, back = sorted(fault.worst_ratio for fault in those), [fault.back_s for fault in those]
    p95 = worst[min(len(worst) - 1, round(0.95 * len(worst)))]
    late, unfair = sum(ratio > LATE_RATIO for ratio in worst), sum(fault.fair_ratio > LATE_RATIO for fault in those)
    n_requests, n_wrong = sum(fault.n_requests for fault in those), sum(fault.n_wrong for fault in those)
    return (
        n_requests, n_wrong, statistics.median(worst), p95, worst[-1], late, unfair, statistics.median(back), max(back)
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
