"""What there is to choose from for one job: type pairs, ways to prune and to train, engines."""

import platform
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hybrid.compress.job import Job
from hybrid.compress.making.recipe import Engine, Recipe
from hybrid.compress.search.bench import Bench
from hybrid.compress.search.standing import Space
from hybrid.compress.uncompressed import Base

if TYPE_CHECKING:
    pass


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
