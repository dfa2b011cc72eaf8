"""Moments of activations over samples: what a model's channels do, and how those of two models go together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from compression.measuring import Feeds
from compression.pruning.channels import Channels
from compression.pruning.reconstruction import Moments
from compression.quantization.running import open_session, run, with_outputs

N_ROWS = 1024
"""Most positions of one sample that are looked at."""


@dataclass(slots=True)
class Seen:
    """Moments of one tensor across two models, and the size of its positions.

    Attributes:
        across: of the one model with the other.
        own: of the other with itself.
        sizes: axes after the channels, as last seen.
    """

    across: Moments = field(default_factory=Moments)
    own: Moments = field(default_factory=Moments)
    sizes: tuple[int, ...] = ()


def moments(
    model: onnx.ModelProto, tensors: Sequence[tuple[str, Channels]], samples: Sequence[Feeds], seed: int = 0
) -> dict[str, Moments]:
    """Moments of each tensor's channels, each with itself."""
    result = {name: Moments() for name, _ in tensors}
    session = open_session(with_outputs(model, [name for name, _ in tensors]))
    for number, feeds in enumerate(samples):
        values = run(session, [name for name, _ in tensors], feeds)
        for (name, channels), value in zip(tensors, values, strict=True):
            (rows,) = rows_of([value], [channels], seed + number)
            result[name].add(rows, rows)
    return result


def moments_across(
    whole: onnx.ModelProto, other: onnx.ModelProto, name: str, channels: tuple[Channels, Channels],
    samples: Sequence[Feeds],
) -> Seen:  # fmt: skip
    """Moments of one tensor in a whole model and in one that has fewer of its channels, at the same positions."""
    seen = Seen()
    sessions = [open_session(with_outputs(model, [name])) for model in (whole, other)]
    for number, feeds in enumerate(samples):
        values = [run(session, [name], _wanted(session, feeds))[0] for session in sessions]
        one, two = rows_of(values, channels, number)
        seen.across.add(one, two)
        seen.own.add(two, two)
        seen.sizes = values[0].shape[channels[0].axis + 1 :]
    return seen


def _wanted(session: object, feeds: Feeds) -> Feeds:
    names = {entry.name for entry in session.get_inputs()}  # type: ignore[attr-defined]
    return {name: value for name, value in feeds.items() if name in names}


def rows_of(values: Sequence[np.ndarray], channels: Sequence[Channels], seed: int) -> Iterator[np.ndarray]:
    """The values as rows of channels, `(positions, channels)`; the same seeded choice of positions for each."""
    chosen = None
    for value, layout in zip(values, channels, strict=True):
        repeat = layout.segments[0].repeat
        last = np.moveaxis(value, layout.axis, -1)
        if repeat > 1:
            last = np.moveaxis(last.reshape(*last.shape[:-1], -1, repeat), -1, -2)
        rows = last.reshape(-1, last.shape[-1])
        if chosen is None and len(rows) > N_ROWS:
            chosen = np.random.default_rng(seed).choice(len(rows), N_ROWS, replace=False)
        yield rows if chosen is None else rows[chosen]
