"""What there is to choose from for one job: type pairs, ways to prune and train, and the device's staircase."""

import platform
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from hybrid.compress.job import Job
from hybrid.compress.making.recipe import Engine, Recipe
from hybrid.compress.search.bench import Bench, device_key
from hybrid.compress.search.standing import Space
from hybrid.compress.timing.agent_timer import OnAgent
from hybrid.compress.timing.timer import Here, Timer
from hybrid.compress.uncompressed import Base

if TYPE_CHECKING:
    from onnx import ModelProto

LIKELY_MULTIPLE: Final = 8
"""Of channel counts, where no clear step was measured."""


class Steps(msgspec.Struct, frozen=True, kw_only=True):
    """The staircase of the device's kernels, in one thread and in the precision that pruned models are shipped in."""

    multiple: int
    clear: bool
    seconds: dict[int, float]


def staircase_of(bench: Bench, int8: Recipe | None = None) -> Steps:
    """Which channel counts the device is really faster with.

    Args:
        bench: with the timer of the device.
        int8: in whose types pruned models are shipped; None for float32.
    """
    from compression.pruning.staircase import conv_stack, staircase

    timer = _in_one_thread(bench.timer)
    pair = (int8.activations, int8.weights, int8.reduce_range) if int8 is not None else ()
    key = ["staircase", *pair, *device_key(timer.told)]
    kept = bench.journal.find(key)
    if kept is None:
        bench.stage(f"the staircase of channel counts{' in int8' if pair else ''}")
        found = staircase(timer, _int8_stack(int8) if int8 is not None else conv_stack)
        told_steps = Steps(multiple=found.multiple, clear=found.clear, seconds=dict(found.seconds))
        kept = bench.journal.keep(key, told_steps)
    return msgspec.json.decode(kept.content, type=Steps)


def _in_one_thread(timer: Timer) -> Timer:
    """The same device in one thread, several rounds in the time of two calls."""
    told = msgspec.structs.replace(timer.told, threads=1)
    if isinstance(timer, Here):
        return replace(timer, told=told, budget_s=timer.budget_s / 2)
    return replace(timer, told=told, threads=1) if isinstance(timer, OnAgent) else timer


def _int8_stack(recipe: Recipe) -> "Callable[[int], ModelProto]":
    from compression.pruning.staircase import conv_stack, stack_feeds
    from compression.quantization.recipe import Int8Recipe
    from compression.quantization.static import quantize

    pair = Int8Recipe(activations=recipe.activations, weights=recipe.weights, reduce_range=recipe.reduce_range)
    return lambda width: quantize(conv_stack(width), [stack_feeds()], pair).model


def space_of(job: Job, base: Base, bench: Bench) -> Space:
    """What a search may do.

    Args:
        job: what is asked for.
        base: the uncompressed model.
        bench: with the samples, and the trainer where there is a training script.
    """
    trainer = bench.maker.trainer
    return Space(
        objective=job.objective,
        max_drop=job.max_drop,
        n_judge=len(bench.material.parts.judge),
        pairs=pairs_here(),
        has_products=has_products(base.path),
        prunings=prunings(bench),
        multiple=None,
        rungs=tuple(dict.fromkeys((max(1, job.epochs // 4), job.epochs))) if trainer is not None else (),
        trained_int8=("qat", "adaround") if trainer is not None else (),
        engines=engines(bench),
        has_student=trainer is not None and trainer.training_set.student is not None,
    )


def prunings(bench: Bench) -> tuple[Recipe, ...]:
    """By which ways channels can be taken away: the model's graph alone, then with its module and training."""
    alone = (Recipe(pruned="graph"), Recipe(pruned="graph", local=True))
    return alone if bench.maker.trainer is None else (*alone, Recipe(pruned="module"))


def multiple_of(steps: Steps) -> int:
    """To which channel counts are rounded."""
    return steps.multiple if steps.clear else LIKELY_MULTIPLE


def engines(bench: Bench) -> tuple[Engine, ...]:
    """Engines beside onnxruntime that a model can be written for here."""
    there = all(find_spec(name) is not None for name in ("litert_torch", "litert_quantizer"))
    return ("tflite",) if bench.maker.trainer is not None and there else ()


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
