"""The channels of a torch module that live and die together, found by torch-pruning's dependency graph.

Source: G. Fang, X. Ma, M. Song, M. B. Mi, X. Wang, DepGraph: Towards Any Structural Pruning, CVPR 2023 (2301.12900);
scopes of equal structure: G. Fang et al., Isomorphic Pruning for Vision Models, ECCV 2024 (2407.04616).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from compression.errors import NotPrunable

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Coupled:
    """One group of coupled channels of a traced module.

    Attributes:
        name: the first layer that makes these channels.
        layers: every layer that makes or carries them.
        n_channels: how many there are now.
        n_chunks: equal parts that must lose the same places (grouped convolutions, group norms).
        shape: which kinds of layers are coupled how, as one text: groups with equal texts can be ranked together.
        root: torch-pruning's own group with all indices.
    """

    name: str
    layers: tuple[str, ...]
    n_channels: int
    n_chunks: int
    shape: str
    root: Any


class Traced:
    """A module together with its dependency graph; pruning changes the module that was handed in."""

    def __init__(self, module: nn.Module, example: Sequence[Tensor]) -> None:
        """Trace.

        Raises:
            NotPrunable: the module does not run on the example, or its outputs do not depend on its weights.
        """
        import torch_pruning

        module.eval()
        self.module = module
        self._names = {layer: name for name, layer in module.named_modules()}
        frozen = [weight for weight in module.parameters() if not weight.requires_grad and weight.is_floating_point()]
        for weight in frozen:
            weight.requires_grad_(True)
        self._graph = torch_pruning.DependencyGraph()
        try:
            with naming_the_layer(module, "cannot be traced"), quiet():
                self._graph.build_dependency(
                    module, tuple(example), forward_fn=lambda net, feeds: net(*feeds), output_transform=_differentiable
                )
        finally:
            for weight in frozen:
                weight.requires_grad_(False)

    def groups(self, kept: Sequence[str]) -> tuple[list[Coupled], list[tuple[str, str]]]:
        """The groups that may be pruned, and the names of those that may not with the reason."""
        import torch

        found: list[Coupled] = []
        left: list[tuple[str, str]] = []
        types = (torch.nn.modules.conv._ConvNd, torch.nn.Linear)  # noqa: SLF001  (torch's only common class of convolutions)
        with quiet():
            roots = list(self._graph.get_all_groups(root_module_types=types))
        for root in roots:
            group = self._coupled(root)
            reason = self._why_not(root, group, kept)
            if reason:
                left.append((group.name, reason))
            else:
                found.append(group)
        return found, left

    def with_indices(self, group: Coupled, indices: Sequence[int]) -> Any:
        """Torch-pruning's group of only these channels, as the module stands now."""
        dependency = group.root[0].dep
        with quiet():
            return self._graph.get_pruning_group(dependency.target.module, dependency.handler, list(indices))

    def apply(self, group: Coupled, indices: Sequence[int]) -> None:
        """Take these channels out of the module.

        Raises:
            NotPrunable: the library could not.
        """
        with quiet():
            try:
                self.with_indices(group, indices).prune()
            except Exception as exc:
                raise NotPrunable(f"{group.name}: torch-pruning could not take its channels out: {_said(exc)}") from exc

    def makes(self, dependency: Any) -> bool:
        """Whether this step of a group takes output channels (and not a consumer's input channels)."""
        return bool(self._graph.is_out_channel_pruning_fn(dependency.handler))

    def _coupled(self, root: Any) -> Coupled:
        makers, chunks, shape = [], [1], []
        for dependency, _ in root:
            layer, pruner = dependency.target.module, self._graph.get_pruner_of_module(dependency.target.module)
            makes = self.makes(dependency)
            shape.append(f"{type(dependency.source.module).__name__}>{type(layer).__name__}:{makes}")
            if makes and layer in self._names:
                makers.append(self._names[layer])
            if not _is_depthwise(layer):
                groups_of = pruner.get_out_channel_groups if makes else pruner.get_in_channel_groups
                chunks.append(groups_of(layer))
        # A depthwise convolution may stand at the root; the group is called after the layer that makes its channels.
        order = {name: place for place, name in enumerate(self._names.values())}
        layers = tuple(sorted(set(makers), key=order.__getitem__))
        return Coupled(
            name=layers[0], layers=layers, n_channels=len(root[0].idxs), n_chunks=max(chunks),
            shape=" ".join(shape), root=root,
        )  # fmt: skip

    def _why_not(self, root: Any, group: Coupled, kept: Sequence[str]) -> str | None:
        for name in group.layers:
            if any(name == keep or name.startswith(f"{keep}.") for keep in kept):
                return f"{name} is to be kept"
        for dependency, _ in root:
            node = dependency.target
            if self.makes(dependency) and not node.outputs:
                return "these channels are outputs of the module"
        if group.n_channels % group.n_chunks:
            return f"{group.n_channels} channels do not divide into {group.n_chunks} equal parts"
        return None


def importance_of(group: Coupled, score: Callable[[Any], Any]) -> np.ndarray | None:
    """Worth of each place of a chunk by one of torch-pruning's scores; None where the score knows no layer."""
    try:
        with quiet():
            worth = score(group.root)
    except IndexError:  # a depthwise convolution with several outputs a channel, which the library's scores misread
        return None
    if worth is None or len(worth) != group.n_channels:
        return None
    values = worth.detach().cpu().double().numpy()
    return np.asarray(values.reshape(group.n_chunks, -1).mean(axis=0))


@contextmanager
def naming_the_layer(module: nn.Module, what: str) -> Iterator[None]:
    """Turn whatever is raised while the module runs into NotPrunable that names the layer that ran last."""
    entered = ["the module itself"]
    hooks = [
        layer.register_forward_pre_hook(lambda _layer, _feeds, name=name: entered.__setitem__(0, f"layer {name!r}"))
        for name, layer in module.named_modules()
        if name
    ]
    try:
        yield
    except NotPrunable:
        raise
    except Exception as exc:
        raise NotPrunable(f"the module {what}: {_said(exc)} (last entered: {entered[0]})") from exc
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def quiet() -> Iterator[None]:
    """Torch-pruning warns of every parameter outside a layer; whether it guessed right is proved afterwards."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unwrapped parameters detected", category=UserWarning)
        warnings.filterwarnings("ignore", message=r"\[Warning\] Unknown operation", category=UserWarning)
        yield


def tensors_in(value: object) -> list[Tensor]:
    """Every tensor of a module's answer, whatever it is nested in."""
    import torch

    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for part in value.values() for tensor in tensors_in(part)]
    if isinstance(value, (list, tuple)):
        return [tensor for part in value for tensor in tensors_in(part)]
    return []


def _differentiable(answer: object) -> list[Tensor]:
    found = [tensor for tensor in tensors_in(answer) if tensor.grad_fn is not None]
    if not found:
        raise NotPrunable("no output of the module depends on its weights by operations that have gradients")
    return found


def _is_depthwise(layer: object) -> bool:
    groups = getattr(layer, "groups", 1)
    return bool(groups > 1 and groups == getattr(layer, "out_channels", 0))


def _said(exc: Exception) -> str:
    text = " ".join(str(exc).split()) or "no words"
    return f"{type(exc).__name__}: {text[:300]}"
