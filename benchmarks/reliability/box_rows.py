"""Rows R1, R7 to R9, R11, R13, R19: real boxes and a real gateway, killed, stopped, filled up and damaged.

python -m benchmarks.reliability.box_rows [--seed 7] [--only R7]
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.reliability.stage import Box, Fleet, losses, until
from benchmarks.reliability.table import Finding, keep

ROWS: dict[str, Callable[[Fleet, random.Random, int], list[Finding]]] = {}
COMMAND = "python -m benchmarks.reliability.box_rows --seed {seed} --only {row}"
NOTHING_LOST = "P3, P4: every acknowledged result is stored once, in order"
DISK_BYTES = 24 << 20
READY_S = 2.0


def _row(name: str) -> Callable[[Callable[[Fleet, random.Random, int], list[Finding]]], None]:
    def add(rows: Callable[[Fleet, random.Random, int], list[Finding]]) -> None:
        ROWS[name] = rows

    return add


def _finding(row: str, seed: int, *, fault: str, promise: str, result: str, held: bool, times: int) -> Finding:
    command = COMMAND.format(seed=seed, row=row)
    return Finding(
        row=row, fault=fault, promise=promise, result=result, held=held, times=times, seed=seed, command=command
    )


def _settled(fleet: Fleet, name: str) -> Box:
    """A new box that runs the model."""
    box = Box(fleet.enroll(name))
    if until(box.infer, 60) is None:
        raise SystemExit(f"{name} has no model: {box.problems()}\n{box.log[-2000:]}")
    _commit(box)
    return box


def _commit(box: Box) -> None:
    """Runs until its version is committed."""
    if until(lambda: box.infer() and box.phase() == "committed", 60) is None:
        raise SystemExit(f"nothing is committed: {box.phase()} {box.problems()}\n{box.log[-2000:]}")


@_row("R1")
def gateway_killed(fleet: Fleet, rng: random.Random, seed: int) -> list[Finding]:
    """A program brings results to the box all the while."""
    n_kills, n_refused, n_failed = 8, 0, 0
    with _settled(fleet, "r1") as box:
        for _ in range(n_kills):
            fleet.gateway.kill()
            end_s = time.monotonic() + rng.uniform(0.2, 1.5)
            while time.monotonic() < end_s:
                n_refused += box.bring(rng.choice("ab"), rng.choice((200, 150_000)))[0] != 202
                n_failed += not box.infer()
            fleet.gateway.start()
            for _ in range(5):
                n_refused += box.bring(rng.choice("ab"))[0] != 202
        lost, twice, mixed = losses(fleet, box)
        n_results = sum(map(len, box.acknowledged.values()))
    result = f"{n_results} results: {lost} lost, {twice} twice, {mixed} streams out of order, {n_refused} refused; "
    result += f"the box's own model failed {n_failed} times"
    return [
        _finding(
            "R1", seed, fault="gateway killed (SIGKILL) under boxes that bring results", promise=NOTHING_LOST,
            result=result, held=not (lost or twice or mixed or n_refused or n_failed), times=n_kills,
        )
    ]  # fmt: skip


@_row("R8")
def box_killed(fleet: Fleet, rng: random.Random, seed: int) -> list[Finding]:
    """At random moments, with several programs bringing results."""
    n_kills, slowest_s = 12, 0.0
    with _settled(fleet, "r8") as box:
        for _ in range(n_kills):
            killer = subprocess.Popen(["sh", "-c", f"sleep {rng.uniform(0.02, 0.6):.3f}; kill -9 {box.pid}"])
            while box.bring(rng.choice("ab"), rng.choice((200, 4000, 150_000)))[0]:
                pass
            killer.wait()
            box.kill()
            slowest_s = max(slowest_s, box.start_in_s())
        lost, twice, mixed = losses(fleet, box)
        n_results = sum(map(len, box.acknowledged.values()))
    result = f"{n_results} results: {lost} lost, {twice} twice, {mixed} streams out of order; "
    result += f"ready again after at most {slowest_s:.2f} s, with the interpreter's start"
    return [
        _finding(
            "R8", seed, fault="agent killed (SIGKILL) while results are brought", promise=NOTHING_LOST, result=result,
            held=not (lost or twice or mixed), times=n_kills,
        )
    ]  # fmt: skip


@_row("R9")
def box_killed_during_installs(fleet: Fleet, rng: random.Random, seed: int) -> list[Finding]:
    """At random moments after a new version was assigned."""
    n_kills, n_silent, n_late = 12, 0, 0
    with _settled(fleet, "r9") as box:
        for version in range(100, 100 + n_kills):
            fleet.push(version)
            time.sleep(rng.uniform(0.0, 2.5))
            box.kill()
            # As if it had been up for long before each kill: no loop of crashes, which starts with less (R19).
            (box.data / "starts.json").unlink(missing_ok=True)
            box.start()
            n_silent += not box.infer()
            wanted = str(version)
            n_late += until(lambda wanted=wanted: box.version() == wanted, 60) is None  # type: ignore[misc]
            _commit(box)
    result = f"after {n_silent} of {n_kills} starts nothing answered; {n_late} versions did not arrive within 60 s"
    return [
        _finding(
            "R9", seed, fault="agent killed (SIGKILL) at a random moment of an installation",
            promise="P2: one whole verified version answers after every start; P5: the next one arrives",
            result=result, held=not (n_silent or n_late), times=n_kills,
        )
    ]  # fmt: skip


@_row("R7")
def disk_full(fleet: Fleet, _rng: random.Random, seed: int) -> list[Finding]:
    """The box's folder lies on a small file system, which fills up while it works, and while it starts."""
    data = fleet.enroll("r7")
    image, place = fleet.folder / "r7.img", fleet.folder / "r7-disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(DISK_BYTES + (64 << 20))
    for words in (("mkfs.ext4", "-q", "-F", str(image)), ("mount", "-o", "loop", str(image), str(place))):
        if subprocess.run(words, capture_output=True, check=False).returncode:
            raise SystemExit(f"no small file system here: {' '.join(words)}")
    try:
        subprocess.run(["cp", "-a", f"{data}/.", str(place)], check=True)
        return _on_full_disk(fleet, place, seed)
    finally:
        subprocess.run(["umount", str(place)], check=False)


def _on_full_disk(fleet: Fleet, place: Path, seed: int) -> list[Finding]:
    filler, n_failed, told = place / "filler", 0, set[int]()
    with Box(place) as box:
        if until(box.infer, 60) is None:
            raise SystemExit(f"no model on the small disk: {box.problems()}\n{box.log[-2000:]}")
        subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=64k"], capture_output=True, check=False)
        for _ in range(40):
            told.add(box.bring("a", 60_000)[0])
            n_failed += not box.infer()
        problems = box.problems()
        box.kill()
        starts_s = box.start_in_s()
        n_failed += until(box.infer, 5) is None
        filler.unlink()
        back_s = until(lambda: box.bring("a")[0] == 202, 90)
        ready_s = until(box.is_ready, 90)
        lost, twice, mixed = losses(fleet, box)
    result = (
        f"inference failed {n_failed} of 41 times; results answered {sorted(told)}; problems told: {problems}; "
        f"started on the full disk in {starts_s:.2f} s; took results again {back_s or float('inf'):.1f} s after there "
        f"was room, ready after {ready_s or float('inf'):.1f} s; {lost} acknowledged results lost, {twice} twice"
    )
    held = not (n_failed or lost or twice or mixed) and told <= {202, 503, 507} and bool(problems)
    return [
        _finding(
            "R7", seed, fault="disk full (small ext4), also at a start",
            promise="P1 inference goes on, refusals are typed; P3; P5 without a restart; P6 told",
            result=result, held=held and back_s is not None and ready_s is not None, times=1,
        )
    ]  # fmt: skip


@_row("R11")
def files_damaged(fleet: Fleet, rng: random.Random, seed: int) -> list[Finding]:
    """Each state file of a stopped box: zeros, cut in half, a few flipped bits."""
    n_down, n_silent, bad = 0, 0, list[str]()
    with _settled(fleet, "r11") as box:
        files = [
            path
            for path in sorted(box.data.rglob("*"))
            if path.is_file() and path.suffix in (".db", ".json", ".sig") and "identity/enrolment" not in str(path)
        ]
        for path in files:
            for damage in (_zeroed, _halved, _flipped):
                box.stop()
                if not path.exists():
                    continue
                path.write_bytes(damage(path.read_bytes(), rng))
                name = str(path.relative_to(box.data))
                try:
                    box.start()
                except BaseException:  # noqa: BLE001 (the stage fails with pytest's outcome)
                    n_down += 1
                    bad.append(f"{name} {damage.__name__}: no start")
                    continue
                if until(box.infer, 30) is None:
                    n_silent += 1
                    bad.append(f"{name} {damage.__name__}: no answer, {box.problems()}")
        n_times = 3 * len(files)
    result = f"{len(files)} files: {n_down} times it did not start, {n_silent} times no model answered" + (
        f" ({'; '.join(bad[:5])})" if bad else ""
    )
    return [
        _finding(
            "R11", seed, fault="state files zeroed, halved, with flipped bits", promise="P5: starts and serves anyway",
            result=result, held=not (n_down or n_silent), times=n_times,
        )
    ]  # fmt: skip


def _zeroed(content: bytes, _: random.Random) -> bytes:
    return bytes(len(content))


def _halved(content: bytes, _: random.Random) -> bytes:
    return content[: len(content) // 2]


def _flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _number in range(16 if changed else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


@_row("R13")
def gateway_restarted(fleet: Fleet, _rng: random.Random, seed: int) -> list[Finding]:
    """In good order (SIGTERM), again and again, under boxes."""
    n_restarts, n_refused = 5, 0
    with _settled(fleet, "r13") as box:
        for number in range(n_restarts):
            fleet.gateway.stop()
            for _ in range(5):
                n_refused += box.bring("a")[0] != 202
            fleet.gateway.start()
            fleet.push(300 + number)
        wanted = str(299 + n_restarts)
        took_s = until(lambda: box.version() == wanted, 90)
        lost, twice, mixed = losses(fleet, box)
        n_results = sum(map(len, box.acknowledged.values()))
    result = f"{n_results} results: {lost} lost, {twice} twice, {n_refused} refused; the last version assigned arrived "
    result += f"after {took_s:.1f} s" if took_s is not None else "not within 90 s"
    return [
        _finding(
            "R13", seed, fault="gateway restarted in order (SIGTERM) under boxes", promise=NOTHING_LOST + "; P5",
            result=result, held=not (lost or twice or mixed or n_refused) and took_s is not None, times=n_restarts,
        )
    ]  # fmt: skip


@_row("R19")
def crash_loop(fleet: Fleet, rng: random.Random, seed: int) -> list[Finding]:
    """The agent dies again and again, as of memory; what starts it is this script, as systemd would."""
    n_safe, n_bare = 5, 7
    with _settled(fleet, "r19") as box:
        version = box.version()
        for number in range(1, n_bare + 1):
            time.sleep(rng.uniform(0.0, 0.5))
            box.kill()
            box.start()
            if number == n_safe:
                answers = until(box.infer, 10) is not None and box.version() == version
                problems = box.problems()
        told, is_ready = box.problems(), box.is_ready()
    result = f"after {n_safe} deaths the last good version {'answers' if answers else 'does not answer'} ({problems}); "
    result += f"after {n_bare} the agent starts without models, health is {is_ready}, problems told: {told}"
    return [
        _finding(
            "R19", seed, fault="agent killed (as by the out-of-memory killer) again and again, right after its start",
            promise="P2, P5: starts with the last good version; P6", result=result,
            held=answers and "crash_loop" in problems and "crash_loop" in told and not is_ready, times=n_bare,
        )
    ]  # fmt: skip


def main() -> int:
    """Run the rows, and keep what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--only", choices=sorted(ROWS), action="append")
    chosen = parser.parse_args()
    for row in chosen.only or sorted(ROWS, key=lambda name: int(name[1:])):
        with tempfile.TemporaryDirectory() as place:
            fleet = Fleet(Path(place))
            try:
                fleet.push(1)
                found = ROWS[row](fleet, random.Random(f"{chosen.seed} {row}"), chosen.seed)
            finally:
                fleet.close()
        keep(f"box_{row}", found)
        for finding in found:
            print(f"{finding.row} {finding.verdict}: {finding.result}", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
