"""Which channel counts are really faster on a device: the staircase of its kernels, measured.

Kernels work on blocks of channels: 61 channels cost what 64 do, or more. Stacks of convolutions of several widths are
timed side by side, and the widths at which the time really falls tell the block, for one precision of one device.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from compression.measuring import Feeds, Measure

if TYPE_CHECKING:
    import onnx

MULTIPLES: Final = (1, 2, 4, 8, 16, 32)
"""The steps that are looked for."""
TOP: Final = 64
"""The widest stack; it is a multiple of every step."""
_LEAST_GAIN: Final = 0.5
_AGREE: Final = 0.8
"""Share of the rounds that must find the step by themselves: other work on a machine moves one round, not most."""

_N_INPUTS: Final = 16
_N_CONVOLUTIONS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Staircase:
    """Widths and times of one precision on one device.

    Attributes:
        multiple: channel counts worth having are multiples of it; the largest looked for when no step was found.
        seconds: of each measured width: the median of the rounds' medians.
        noise_ratio: by how much a round differs from that, of a usual width.
        clear: whether a step was found, and nearly every round by itself finds the same.
    """

    multiple: int
    seconds: Mapping[int, float]
    noise_ratio: float
    clear: bool

    def next_below(self, width: int) -> int | None:
        """The widest channel count below this one that is really faster; None below the first step."""
        below = (width - 1) // self.multiple * self.multiple
        return below or None


def staircase(
    measure: Measure,
    make: "Callable[[int], onnx.ModelProto] | None" = None,
    feeds: Feeds | None = None,
    rounds: int = 5,
) -> Staircase:
    """Time stacks of convolutions of several widths on a device, and find the step.

    Args:
        measure: times models on the device, side by side in turns; in one thread, or threads that wait for one another
            hide the steps.
        make: a model of so many channels with the inputs of `conv_stack`; for int8, a quantized `conv_stack`.
        feeds: inputs for every model; those of `conv_stack` unless given.
        rounds: how often all are measured.

    Raises:
        CompressionError: the device does not run one of them.
    """
    import onnx

    widths = measured_widths()
    with tempfile.TemporaryDirectory(prefix="staircase-") as folder:
        paths = [Path(folder) / f"{width}.onnx" for width in widths]
        for width, path in zip(widths, paths, strict=True):
            onnx.save((make or conv_stack)(width), path)
        given = feeds if feeds is not None else stack_feeds()
        seen = np.array([[timing.p50_s for timing in measure(paths, given)] for _ in range(rounds)])
    usual = np.median(seen, axis=0)
    noise = float(np.median(np.abs(seen / usual - 1)))
    seconds = dict(zip(widths, usual.tolist(), strict=True))
    multiple = step(seconds, noise)
    n_agree = sum(step(dict(zip(widths, row.tolist(), strict=True)), noise) == multiple for row in seen)
    is_clear = multiple is not None and n_agree >= _AGREE * rounds
    return Staircase(multiple=multiple or MULTIPLES[-1], seconds=seconds, noise_ratio=noise, clear=is_clear)


def measured_widths() -> list[int]:
    """From the widest down: two steps of each kind."""
    wanted = {TOP - steps * multiple for multiple in MULTIPLES for steps in (0, 1, 2)}
    return sorted((width for width in wanted if width > 0), reverse=True)


def step(seconds: Mapping[int, float], noise_ratio: float = 0.0) -> int | None:
    """The smallest multiple at which every further step down is really faster, or None.

    Really faster: by more than twice the noise, and by at least `_LEAST_GAIN` of what the arithmetic that is saved
    would save if time followed it (width times width). A step of 4 on a device with blocks of 16 fails at once, because
    60 channels take what 64 take.
    """
    top = max(seconds)
    for multiple in MULTIPLES:
        stairs = [width for width in (top, top - multiple, top - 2 * multiple) if width in seconds]
        if len(stairs) > 1 and all(_falls(seconds, *pair, noise_ratio) for pair in pairwise(stairs)):
            return multiple
    return None


def _falls(seconds: Mapping[int, float], wide: int, narrow: int, noise_ratio: float) -> bool:
    gain = 1 - seconds[narrow] / seconds[wide]
    ideal = 1 - (narrow / wide) ** 2
    return gain > 2 * noise_ratio and gain >= _LEAST_GAIN * ideal


def stack_feeds(size: int = 56) -> dict[str, np.ndarray]:
    """Seeded inputs of `conv_stack`."""
    rng = np.random.default_rng(0)
    return {"x": rng.standard_normal((1, _N_INPUTS, size, size), dtype=np.float32)}


def conv_stack(width: int, size: int = 56) -> "onnx.ModelProto":
    """A float model of 3x3 convolutions with this many channels: the same inputs and outputs for every width."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(width)
    nodes, weights = [], []
    channels = [_N_INPUTS, *[width] * (_N_CONVOLUTIONS + 1)]
    at = "x"
    for place, (n_in, n_out) in enumerate(pairwise(channels)):
        kernel = rng.standard_normal((n_out, n_in, 3, 3)) * np.sqrt(2 / (9 * n_in))
        weights.append(numpy_helper.from_array(kernel.astype(np.float32), f"w{place}"))
        weights.append(numpy_helper.from_array(np.zeros(n_out, np.float32), f"b{place}"))
        nodes.append(helper.make_node("Conv", [at, f"w{place}", f"b{place}"], [f"c{place}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{place}"], [f"r{place}"]))
        at = f"r{place}"
    nodes.append(helper.make_node("ReduceMean", [at], ["y"], axes=[1, 2, 3], keepdims=0))
    graph = helper.make_graph(
        nodes,
        f"stack_{width}",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, _N_INPUTS, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model
