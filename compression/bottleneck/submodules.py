"""Which submodule of a torch module makes a tensor, and modules run with something else in its place."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import numpy as np
import torch

from compression.errors import NotTrainable
from compression.training.answering import evaluating

_TOLERANCE: Final = 1e-3
"""Largest distance relative to the largest value: an engine's fused layers round otherwise than torch."""


def find_submodule(module: torch.nn.Module, example: tuple[torch.Tensor, ...], value: np.ndarray) -> str:
    """The name of a submodule whose output is this value, the outermost of several.

    Args:
        module: run once, in evaluation mode.
        example: its arguments.
        value: the wanted tensor for this example, say from the exported graph.

    Raises:
        NotTrainable: none makes it, or only one that runs more than once.
    """
    found: dict[str, float] = {}
    n_runs: dict[str, int] = {}
    scale = max(float(np.abs(value).max(initial=0)), 1e-12)

    def look(name: str) -> Callable[..., None]:
        def see(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
            n_runs[name] = n_runs.get(name, 0) + 1
            if isinstance(output, torch.Tensor) and tuple(output.shape) == value.shape:
                distance = float(np.abs(output.detach().cpu().numpy() - value).max(initial=0)) / scale
                found[name] = min(distance, found.get(name, distance))

        return see

    with ExitStack() as hooks, evaluating(module):
        for name, part in module.named_modules():
            if name:
                hooks.callback(part.register_forward_hook(look(name)).remove)
        module(*example)
    close = {name: distance for name, distance in found.items() if distance <= _TOLERANCE}
    once = sorted((name for name in close if n_runs[name] == 1), key=lambda name: (name.count("."), len(name), name))
    if once:
        return once[0]
    if close:
        raise NotTrainable(
            f"{', '.join(close)} makes the tensor of shape {value.shape}, but runs more than once; give it a module of"
            " its own there (nn.Identity will do)"
        )
    nearest = f"; the nearest is {min(found, key=found.__getitem__)}" if found else ""
    raise NotTrainable(
        f"no submodule's output is the tensor of shape {value.shape}{nearest}; put an nn.Identity where it is made"
    )


class Place:
    """What stands in place of one submodule's output while a module runs.

    Attributes:
        through: makes the output that the rest of the module sees; None: its own.
        own: the submodule's own output of the last run.
    """

    def __init__(self) -> None:
        self.through: Callable[[torch.Tensor], torch.Tensor] | None = None
        self.own: torch.Tensor | None = None

    def seen(self) -> torch.Tensor | None:
        """The submodule's own output of the last run since it was asked, or None where it did not run."""
        seen, self.own = self.own, None
        return seen


@contextmanager
def replaced(module: torch.nn.Module, at: str) -> Iterator[Place]:
    """A place inside the module, for as long as the context lasts.

    Raises:
        NotTrainable: there is no such submodule; or, while the module runs, its output is no float tensor.
    """
    parts = dict(module.named_modules())
    if not at or at not in parts:
        raise NotTrainable(f"there is no submodule {at!r}; it has {', '.join(filter(None, parts))[:300]}")
    place = Place()

    def put(_module: torch.nn.Module, _inputs: Any, output: Any) -> torch.Tensor:
        if not isinstance(output, torch.Tensor) or output.dtype != torch.float32 or not 2 <= output.ndim <= 4:
            given = (
                f"{output.dtype} {tuple(output.shape)}" if isinstance(output, torch.Tensor) else type(output).__name__
            )
            raise NotTrainable(f"{at} gives {given}; one float32 tensor (n, c), (n, t, c) or (n, c, h, w) was expected")
        place.own = output
        seen = output if place.through is None else place.through(output)
        return seen.clone()  # what comes behind may work in place (nn.ReLU(inplace=True))

    handle = parts[at].register_forward_hook(put)
    try:
        yield place
    finally:
        handle.remove()


def submodules_after(module: torch.nn.Module, at: str, example: tuple[torch.Tensor, ...], most: int) -> Sequence[str]:
    """Names of at most so many submodules that run once, after `at`, on what it made, evenly spread.

    Raises:
        NotTrainable: `at` does not run exactly once.
    """
    order: list[str] = []

    def note(name: str) -> Callable[..., None]:
        def see(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
            fits = isinstance(output, torch.Tensor) and output.is_floating_point()
            order.append(name if fits or name == at else "")

        return see

    parts = {name: part for name, part in module.named_modules() if name}
    with ExitStack() as hooks, evaluating(module):
        for name, part in parts.items():
            hooks.callback(part.register_forward_hook(note(name)).remove)
        module(*example)
    if order.count(at) != 1:
        raise NotTrainable(f"{at} runs {order.count(at)} times for one answer; the submodule at a cut runs once")
    around = {at[:end] for end, letter in enumerate(at) if letter == "."}
    later = [name for name in order[order.index(at) + 1 :] if name and name not in around and order.count(name) == 1]
    top = [name for name in later if not any(name.startswith(f"{other}.") for other in later)]
    chosen = top if len(top) >= most else later
    if not most or not chosen:
        return ()
    places = np.unique(np.linspace(0, len(chosen) - 1, min(most, len(chosen))).round().astype(int))
    return [chosen[place] for place in places]
