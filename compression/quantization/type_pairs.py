"""Which type pairs are worth measuring on a machine, and the fastest of them by measuring."""

import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from compression.errors import NotQuantizable
from compression.measuring import Feeds, Measure, Timing
from compression.quantization.recipe import Int8Recipe, Quantized
from compression.quantization.static import quantize

_VNNI = {"avx512_vnni", "avx512vnni", "avx_vnni", "avxvnni"}
_X86 = {"x86_64", "amd64", "i686", "i386", "x86"}
_ARM = {"aarch64", "arm64", "armv7l", "armv8l", "arm"}

_U8S8 = Int8Recipe()
_S8S8 = Int8Recipe(activations="int8")
_U8U8 = Int8Recipe(weights="uint8")
_U8S7 = Int8Recipe(reduce_range=True)


def type_pairs(architecture: str, flags: Collection[str] = ()) -> tuple[Int8Recipe, ...]:
    """Recipes whose speed differs on such a machine, the likeliest winner first.

    Args:
        architecture: as `platform.machine()` says it.
        flags: what its CPU can, as /proc/cpuinfo says it; on x86 these decide whether sums saturate.
    """
    kind, able = architecture.lower(), {flag.lower() for flag in flags}
    if kind in _X86:
        # without VNNI two products are added in 16 bits: 8 by 8 bits saturate there, 8 by 7 bits do not
        return (_U8S8, _S8S8) if able & _VNNI else (_U8S7, _U8U8, _S8S8)
    if kind in _ARM:
        return (_S8S8, _U8S8, _U8U8)
    return (_U8S8, _S8S8, _U8U8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One recipe on one machine: what it made and how long that runs; `recipe` None is the float model."""

    recipe: Int8Recipe | None
    timing: Timing
    quantized: Quantized | None


def fastest(
    model: onnx.ModelProto, samples: Sequence[Feeds], recipes: Sequence[Int8Recipe], measure: Measure
) -> list[Timed]:
    """The float model and each recipe, timed side by side on the first sample; the fastest first.

    Raises:
        NotQuantizable: no recipe was given, or one does not fit.
        CompressionError: the device cannot run one.
    """
    if not recipes:
        raise NotQuantizable("no recipe was given, wanted at least one; type_pairs names those worth measuring")
    made = [quantize(model, samples, recipe) for recipe in recipes]
    with tempfile.TemporaryDirectory(prefix="hybrid-pairs-") as folder:
        paths = [Path(folder) / f"{number}.onnx" for number in range(len(made) + 1)]
        for path, proto in zip(paths, [model, *(one.model for one in made)], strict=True):
            path.write_bytes(proto.SerializeToString())
        timings = measure(paths, samples[0])
    known = [Timed(recipe=None, timing=timings[0], quantized=None)]
    known += [
        Timed(recipe=recipe, timing=timing, quantized=one)
        for recipe, timing, one in zip(recipes, timings[1:], made, strict=True)
    ]
    return sorted(known, key=lambda one: one.timing.p50_s)
