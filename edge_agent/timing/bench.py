"""Runs one timing at a time in a process of its own, out of the way of what the box answers.

Design: candidates are never installed and never answer anybody. A model that crashes the engine, or never ends, takes
its own process along and nothing else; what it needs on the disk goes when the call ends, or at the next start.
"""

import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from hybrid.errors import BadMessage, DiskFull, EngineCrashed, EngineFailed, Overloaded
from hybrid.wire.timing_call import FEEDS, TimingAnswer, TimingCall, TimingPlace

LIMIT_S: Final = 300.0
RESERVE_BYTES: Final = 256 << 20
"""Stays free on the disk whatever is timed."""
_RETRY_AFTER_S: Final = 10.0
_FOLDER: Final = "timing"


class TimingBench:
    """The place where one call at a time is carried out.

    Args:
        data: the agent's folder; what an earlier process left in it is removed.
        on_asked: told when a call begins (True) and ends: what trains here meanwhile would be in the figures.
    """

    def __init__(self, data: Path, on_asked: Callable[[bool], None] = lambda _: None) -> None:
        self._on_asked = on_asked
        self._folder = (data / _FOLDER).absolute()  # the worker runs in another folder
        self._lock = asyncio.Lock()
        shutil.rmtree(self._folder, ignore_errors=True)

    @asynccontextmanager
    async def room(self, call: TimingCall) -> AsyncIterator[Path]:
        """An empty folder for a call's files, for as long as the call takes.

        Raises:
            Overloaded: another call is carried out.
            DiskFull: the disk has no room for the files.
        """
        if self._lock.locked():
            raise Overloaded("the box times models of another call; try again later", retry_after_s=_RETRY_AFTER_S)
        async with self._lock:
            folder = await asyncio.to_thread(self._made, call)
            self._on_asked(True)
            try:
                yield folder
            finally:
                self._on_asked(False)
                await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))

    def _made(self, call: TimingCall) -> Path:
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            free_bytes = shutil.disk_usage(self._folder).free
            if free_bytes < call.n_bytes + RESERVE_BYTES:
                raise DiskFull(
                    f"{self._folder}: {call.n_bytes} bytes of models beside a reserve of {RESERVE_BYTES}, and only "
                    f"{free_bytes} are free; make room on the box",
                    path=str(self._folder),
                    wanted_bytes=call.n_bytes,
                )
            return Path(tempfile.mkdtemp(dir=self._folder))
        except OSError as exc:
            raise DiskFull(f"{self._folder}: {exc.strerror or exc}", path=str(self._folder)) from exc

    async def timed(self, call: TimingCall, folder: Path) -> TimingAnswer:
        """What the worker measures of the files that lie in a folder.

        Raises:
            EngineFailed: a model that does not run here with these inputs.
            EngineCrashed: the worker ended by itself, or did not end in time.
        """
        from hybrid.compress.timing.timer import (  # an idle agent needs no lab
            BLOCK_S,
            LEAST_ROUNDS,
            MOST_ROUNDS,
            WORKER,
        )

        task = {
            "models": [str(folder / name) for name in call.models],
            "feeds": str(folder / FEEDS),
            "threads": call.threads or _cores(),
            "block_s": BLOCK_S,
            "budget_s": call.budget_s,
            "least": LEAST_ROUNDS,
            "most": MOST_ROUNDS,
            "memory": call.wants_memory,
        }
        pipe = asyncio.subprocess.PIPE
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "-m", WORKER, stdin=pipe, stdout=pipe, stderr=pipe, cwd=folder
        )
        try:
            async with asyncio.timeout(LIMIT_S):
                said, complaint = await worker.communicate(json.dumps(task).encode())
        except TimeoutError as exc:
            raise EngineCrashed(
                f"timing took more than {LIMIT_S:g} s; the box is too slow for these models, or one never ends"
            ) from exc
        finally:
            if worker.returncode is None:
                worker.kill()
                await worker.wait()
        if worker.returncode != 0:
            lines = complaint.decode(errors="replace").strip().splitlines()
            kind = EngineCrashed if (worker.returncode or 0) < 0 or not lines else EngineFailed
            why = lines[-1][:400] if lines else f"its process ended with {worker.returncode}"
            raise kind(f"a candidate cannot be timed here: {why}")
        try:
            found = json.loads(said.splitlines()[-1])
        except (ValueError, IndexError) as exc:
            raise BadMessage("the worker's answer does not parse") from exc
        seconds = tuple(tuple(each) for each in found.get("seconds", ()))
        return TimingAnswer(seconds=seconds, memory_bytes=int(found.get("memory_bytes", 0)))


def place() -> TimingPlace:
    """What times here."""
    import onnxruntime

    from devices.machine import processor, this_device
    from devices.tflite_engine import engine_version

    device = this_device()
    engines = (f"onnxruntime {onnxruntime.__version__}", engine_version())
    return TimingPlace(
        processor=processor(),
        n_cores=_cores(),
        engines=tuple(engine for engine in engines if engine),
        device=device.name if device is not None else "",
    )


def _cores() -> int:
    from devices.machine import usable_cores

    return max(1, int(usable_cores()))
