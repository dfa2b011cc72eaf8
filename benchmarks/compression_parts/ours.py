"""`hybrid compress` run as a user runs it, in a process of its own, for one task and seed."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.compression_parts.tasks import CACHE, Task
from hybrid.artifact.folder import open_folder

LIMIT_S: Final = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressed:
    """What came out.

    Attributes:
        original: the uncompressed model as it was exported.
        variants: what was shipped, by id, the best first.
        folder: the artifact's.
    """

    original: Path
    variants: dict[str, Path]
    folder: Path


def compressed(
    task: Task, seed: int, *, max_drop: float, minutes: float, objective: str = "latency", begun: Path | None = None
) -> Compressed:
    """The artifact of a task and seed; one that an earlier run has finished is taken as it is.

    Args:
        task, seed: what is compressed.
        max_drop, minutes, objective: as the command takes them.
        begun: another floor's artifact, whose journal is gone on with: pieces are the same under any floor.

    Raises:
        RuntimeError: nothing was won, or the command failed; says what it said last.
    """
    out = CACHE / f"{task.name}-{seed}-{objective}-{max_drop:g}"
    if not out.is_dir():
        data, labels = (CACHE / f"{out.name}.{kind}" for kind in ("npz", "npy"))
        CACHE.mkdir(parents=True, exist_ok=True)
        np.savez(data, image=task.held_images)
        np.save(labels, task.held_labels.astype(np.int64))
        work = out.with_name(f"{out.name}.work")
        if begun is not None and not work.exists():
            shutil.copytree(begun.with_name(f"{begun.name}.work"), work)
        done = subprocess.run(
            [
                sys.executable, "-m", "hybrid", "compress", "--data", str(data), "--labels", str(labels),
                "--train-script", f"benchmarks.compression_parts.scripts:{task.name}", "--max-drop", str(max_drop),
                "--budget", str(minutes), "--objective", objective, "--threads", "1", "--samples", "10000",
                "--seed", str(seed), "--out", str(out),
            ],
            env={**os.environ, "SEED": str(seed), "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
            capture_output=True, text=True, timeout=LIMIT_S, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"hybrid compress ended with {done.returncode}: {done.stderr.strip()[-400:]}")
    artifact = open_folder(out)
    original, *others = artifact.manifest.variants
    return Compressed(
        original=artifact.path_of(original.files[0]),
        variants={other.id: artifact.path_of(other.files[0]) for other in others if other.engine == "onnxruntime"},
        folder=out,
    )
