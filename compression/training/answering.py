"""Modules asked for their answers, and left as they were: modes of training, gradients and the global seed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain

import numpy as np
import torch

from compression.errors import InvalidTrainingSet


def device_of(module: torch.nn.Module) -> torch.device:
    """Where the module's first parameter or buffer lies; the CPU for a module without any."""
    first = next(chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def arguments(
    module: torch.nn.Module, inputs: Mapping[str, np.ndarray], index: slice | np.ndarray
) -> tuple[torch.Tensor, ...]:
    """Some samples as the module's arguments, copied to its device."""
    device = device_of(module)
    return tuple(torch.from_numpy(np.array(values[index])).to(device) for values in inputs.values())


def outputs_of(answer: object) -> tuple[torch.Tensor, ...]:
    """What a module returned as a flat tuple: a tensor, a tuple or list of tensors, or a dictionary of them.

    Raises:
        InvalidTrainingSet: it returned something else.
    """
    if isinstance(answer, torch.Tensor):
        return (answer,)
    items = list(answer.values()) if isinstance(answer, Mapping) else answer
    if not isinstance(items, list | tuple) or not items or not all(isinstance(one, torch.Tensor) for one in items):
        raise InvalidTrainingSet(f"the module returned {type(answer).__name__}; wanted a tensor, or a tuple of tensors")
    return tuple(items)


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The module in evaluation mode and without gradients; afterwards each part is in the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield module
    finally:
        for part, mode in modes:
            part.training = mode


def answers(module: torch.nn.Module, inputs: Mapping[str, np.ndarray], *, batch: int = 64) -> tuple[torch.Tensor, ...]:
    """All the outputs for all samples, on the CPU."""
    n_samples = len(next(iter(inputs.values())))
    with evaluating(module):
        parts = [
            outputs_of(module(*arguments(module, inputs, slice(start, start + batch))))
            for start in range(0, n_samples, batch)
        ]
    return tuple(torch.cat([part[at].cpu() for part in parts]) for at in range(len(parts[0])))


@contextmanager
def seeded(seed: int) -> Iterator[torch.Generator]:
    """Torch's own chance (dropout, fresh weights) follows the seed inside and is as before outside.

    Yields:
        a generator for what takes one.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield torch.Generator().manual_seed(seed)
