"""What crosses as levels that the head itself computed: which heads do so, and what is asked of them."""

from collections.abc import Iterable, Mapping

import numpy as np

from compression.codecs.affine import Levels
from compression.codecs.level_names import LevelNames
from hybrid.route.way import Head

Crossed = Mapping[str, np.ndarray | Levels]
"""What crosses, by name: arrays, and levels where the head quantizes for the codec."""


def n_levels_of(codec: str) -> int:
    """Levels that a codec carries and an engine can compute; 0 for the other codecs."""
    from compression.codecs import catalog
    from compression.codecs.quantized import QuantizedCodec

    found = catalog.CODECS.get(codec)
    return found.n_levels if isinstance(found, QuantizedCodec) else 0


def wanted_levels(codecs: Iterable[str]) -> int:
    """Levels that a crossing's head should compute: the fewest that one of its codecs carries; 0 for a plain head."""
    return min(filter(None, map(n_levels_of, codecs)), default=0)


def run_head(
    head: Head, feeds: Mapping[str, np.ndarray], codec: str, wanted: Iterable[str]
) -> tuple[Crossed, dict[str, np.ndarray]]:
    """What crosses, as levels where head and codec agree on their number, and the floats that were asked for.

    Args:
        head: an open head.
        feeds: the model's inputs by name.
        codec: how the crossing is to be encoded.
        wanted: outputs of the whole model that the caller wants; crossing tensors too, if the device is to go on from
            them.
    """
    names = head.levels if head.n_levels and head.n_levels == n_levels_of(codec) else ()
    needless = {one.tensor for one in names}.difference(wanted)
    asked = [name for name in head.computed if name not in needless]
    parts = [part for one in names for part in (one.levels, one.scales, one.zeros)]
    found = head.run([*asked, *parts], {name: feeds[name] for name in head.inputs}, None)
    arrays = dict(zip((*asked, *parts), found, strict=True))
    quantized = {one.tensor: _levels(arrays, one) for one in names}
    crossing: dict[str, np.ndarray | Levels] = {}
    for name in head.crossing:
        crossing[name] = quantized[name] if name in quantized else arrays[name] if name in arrays else feeds[name]
    return crossing, {name: arrays[name] for name in asked}


def as_levels(head: Head | None, arrays: Mapping[str, np.ndarray], codec: str) -> Crossed:
    """The same crossing as `run_head` would give, from its arrays: what an encoding is timed with."""
    if head is None or not head.n_levels or head.n_levels != n_levels_of(codec):
        return arrays
    from compression.codecs.affine import quantized

    made = {one.tensor for one in head.levels}
    return {name: quantized(array, head.n_levels) if name in made else array for name, array in arrays.items()}


def _levels(arrays: Mapping[str, np.ndarray], names: LevelNames) -> Levels:
    return Levels(
        levels=arrays[names.levels],
        scales=arrays[names.scales].reshape(-1),
        zeros=arrays[names.zeros].reshape(-1),
        axis=names.axis,
    )
