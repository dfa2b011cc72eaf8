"""What there is to choose from for one job: type pairs, ways to prune and train, and the device's staircase."""

import platform
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

import msgspec

from hybrid.compress.bench import Bench
from hybrid.compress.job import Job
from hybrid.compress.recipe import Recipe
from hybrid.compress.search import Space
from hybrid.compress.uncompressed import Base

LIKELY_MULTIPLE: Final = 8
"""Of channel counts, where no clear step was measured."""


class Steps(msgspec.Struct, frozen=True, kw_only=True):
    """The staircase of the device's kernels."""

    multiple: int
    clear: bool
    seconds: dict[int, float]


def staircase_of(bench: Bench) -> Steps | None:
    """Which channel counts the device is really faster with; None where no model could be pruned."""
    from compression.pruning.staircase import staircase

    if not prunable(bench):
        return None
    key = ["staircase", bench.timer.told]
    kept = bench.journal.find(key)
    if kept is None:
        bench.stage("the staircase of channel counts")
        found = staircase(bench.timer)
        told_steps = Steps(multiple=found.multiple, clear=found.clear, seconds=dict(found.seconds))
        kept = bench.journal.keep(key, told_steps)
    return msgspec.json.decode(kept.content, type=Steps)


def space_of(job: Job, base: Base, bench: Bench, steps: Steps | None) -> Space:
    """What a search may do.

    Args:
        job: what is asked for.
        base: the uncompressed model.
        bench: with the samples, and the trainer where there is a training script.
        steps: of the device; None where nothing can be pruned.
    """
    trainer = bench.maker.trainer
    return Space(
        objective=job.objective,
        max_drop=job.max_drop,
        n_judge=len(bench.material.parts.judge),
        pairs=pairs_here(),
        has_products=has_products(base.path),
        prunable=prunable(bench),
        multiple=steps.multiple if steps is not None and steps.clear else LIKELY_MULTIPLE,
        rungs=tuple(dict.fromkeys((max(1, job.epochs // 4), job.epochs))) if trainer is not None else (),
        trained_int8=_trained_ways() if trainer is not None else (),
        has_student=trainer is not None and trainer.training_set.student is not None,
    )


def prunable(bench: Bench) -> Literal["", "module", "graph"]:
    """By which way channels can be taken away: by the module's dependency graph, else by the model's alone."""
    if bench.maker.trainer is not None:
        return "module"
    return "graph" if find_spec("compression.pruning.without_source") else ""


def _trained_ways() -> tuple[Literal["qat", "adaround"], ...]:
    return ("qat", "adaround") if find_spec("compression.training.rounding") else ("qat",)


def pairs_here() -> list[Recipe]:
    """An int8 recipe for each type pair that is worth measuring with this machine's kernels."""
    from compression.quantization.type_pairs import type_pairs

    return [
        Recipe(
            precision="int8",
            activations=pair.activations,
            weights=pair.weights,
            reduce_range=pair.reduce_range,
        )
        for pair in type_pairs(platform.machine(), _flags())
    ]


def _flags() -> list[str]:
    """What the processor can, in the kernel's words; nothing where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    return next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])


def has_products(path: Path) -> bool:
    """Whether products of matrices with constant weights are most of the model, as in transformers."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    return kinds.count("MatMul") > kinds.count("Conv")
