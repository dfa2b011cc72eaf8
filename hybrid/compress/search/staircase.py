"""The staircase of a job's device: which channel counts its kernels are really faster with, measured once and kept."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import msgspec

from hybrid.compress.making.recipe import Recipe
from hybrid.compress.search.bench import Bench, device_key
from hybrid.compress.timing.agent_timer import OnAgent
from hybrid.compress.timing.timer import Here, Timer

if TYPE_CHECKING:
    from onnx import ModelProto

HERE_BUDGET_S: Final = 1.0
"""For all widths once, where they are timed on this machine."""

LIKELY_MULTIPLE: Final = 8
"""Of channel counts, where no clear step was measured."""


class Stairs(msgspec.Struct, frozen=True, kw_only=True):
    """The staircase of the device's kernels, in one thread and in the precision that pruned models are shipped in."""

    multiple: int
    clear: bool
    seconds: dict[int, float]


def staircase_of(bench: Bench, int8: Recipe | None = None) -> Stairs:
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
        stairs = Stairs(multiple=found.multiple, clear=found.clear, seconds=dict(found.seconds))
        kept = bench.journal.keep(key, stairs)
    return msgspec.json.decode(kept.content, type=Stairs)


def _in_one_thread(timer: Timer) -> Timer:
    """The same device in one thread, several rounds in the time of two calls.

    An emulated one is not slowed for this: its kernels are this machine's, so the steps are too, and a quota would only
    make them take minutes, and blur them.
    """
    told = msgspec.structs.replace(timer.told, threads=1)
    if isinstance(timer, Here):
        return replace(timer, told=told, slowdown=None, scale=told.factor, budget_s=HERE_BUDGET_S)
    return replace(timer, told=told, threads=1) if isinstance(timer, OnAgent) else timer


def _int8_stack(recipe: Recipe) -> "Callable[[int], ModelProto]":
    from compression.pruning.staircase import conv_stack, stack_feeds
    from compression.quantization.recipe import Int8Recipe
    from compression.quantization.static import quantize

    pair = Int8Recipe(activations=recipe.activations, weights=recipe.weights, reduce_range=recipe.reduce_range)
    return lambda width: quantize(conv_stack(width), [stack_feeds()], pair).model


def multiple_of(stairs: Stairs) -> int:
    """To which channel counts are rounded, so that each is one that the device is faster with."""
    return stairs.multiple if stairs.clear else LIKELY_MULTIPLE
