"""Runs a model on many samples: several at once where the model takes batches of any size, else one by one."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from devices.onnx_engine import ports
from hybrid.calibration.samples import Feeds
from hybrid.errors import EngineFailed

BATCH: Final = 32
"""Larger batches gain little and need memory."""

Answers = Mapping[str, np.ndarray]


def answered(session: Any, samples: Sequence[Feeds], names: Sequence[str] = ()) -> list[Answers]:
    """The outputs for each sample.

    Args:
        session: an open model.
        samples: requests.
        names: of the samples, for messages.

    Raises:
        EngineFailed: the model does not take one.
    """
    outputs = [port.name for port in session.get_outputs()]
    size = BATCH if _takes_batches(session, samples) else 1
    found: list[Answers] = []
    for start in range(0, len(samples), size):
        some = samples[start : start + size]
        try:
            found += _together(session, outputs, some) if size > 1 else _alone(session, outputs, some)
        except Exception as exc:
            named = names[start] if names else str(start)
            raise EngineFailed(f"the model does not take sample {named}: {exc}; give inputs as it wants them") from exc
    return found


def _alone(session: Any, outputs: Sequence[str], some: Sequence[Feeds]) -> list[Answers]:
    return [dict(zip(outputs, session.run(outputs, feeds), strict=True)) for feeds in some]


def _together(session: Any, outputs: Sequence[str], some: Sequence[Feeds]) -> list[Answers]:
    arrays = session.run(outputs, _stacked(some))
    return [
        {name: array[index : index + 1] for name, array in zip(outputs, arrays, strict=True)}
        for index in range(len(some))
    ]


def _takes_batches(session: Any, samples: Sequence[Feeds]) -> bool:
    """Whether every input and output has an open first size, and a batch gives what its samples give alone."""
    inputs, outputs = ports(session)
    is_open = all(port.shape and not isinstance(port.shape[0], int) for port in (*inputs, *outputs))
    if not is_open or len(samples) < 2 or any(len(array) != 1 for array in samples[0].values()):
        return False
    if any(array.dtype == object for array in samples[0].values()):
        return False
    names = [port.name for port in outputs]
    try:
        alone, both = _alone(session, names, samples[:2]), session.run(names, _stacked(samples[:2]))
    except Exception:  # noqa: BLE001 (whatever the engine says: then one by one)
        return False
    return all(
        array.shape[0] == 2 and np.allclose(array[1:2], alone[1][name], rtol=1e-4, atol=1e-5, equal_nan=True)
        for name, array in zip(names, both, strict=True)
    )


def _stacked(some: Sequence[Feeds]) -> Feeds:
    return {name: np.concatenate([sample[name] for sample in some]) for name in some[0]}
