"""Proof that a pruned module computes what the whole one computes with those channels switched off.

Design: a dependency graph is a guess wherever it meets an operation that it does not know. What pruning means is exact:
the whole module in which every consumer of the removed channels has zeros for them (and every norm over channels looks
past them) must give the same outputs. Comparing the two on one example proves the coupling, before any training.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from compression.pruning.dependencies import Traced, naming_the_layer, tensors_in

if TYPE_CHECKING:
    from torch import Tensor, nn

TOLERANCE: Final = 2e-3
"""Largest difference to the largest output that sums in another order may make, in float32."""


def masked(traced: Traced, steps: Sequence[Any]) -> nn.Module:
    """A copy of the traced module in which the channels of these groups exist but count for nothing.

    Args:
        traced: the module before anything was taken from it.
        steps: torch-pruning's groups with the indices to take, as the whole module stands.
    """
    from torch import nn

    module = copy.deepcopy(traced.module)
    layers = dict(module.named_modules())
    names = {layer: name for name, layer in traced.module.named_modules()}
    gone: dict[str, set[int]] = {}
    for step in steps:
        for dependency, indices in step:
            layer = dependency.target.module
            if layer not in names:
                continue
            if isinstance(layer, (nn.LayerNorm, nn.GroupNorm)):
                gone.setdefault(names[layer], set()).update(indices)
            elif not traced.makes(dependency):
                _switch_off(layers[names[layer]], sorted(set(indices)))
    for name, indices in gone.items():
        parent, _, last = name.rpartition(".")
        setattr(layers[parent], last, _norm_past(layers[name], sorted(indices)))
    return module.eval()


def _switch_off(layer: Any, indices: list[int]) -> None:
    """Zero what a layer takes from these input channels."""
    import torch
    from torch import nn

    with torch.no_grad():
        if isinstance(layer, nn.Linear):
            layer.weight[:, indices] = 0
        elif isinstance(layer, nn.LSTM):
            for name in ("weight_ih_l0", "weight_ih_l0_reverse"):
                if hasattr(layer, name):
                    getattr(layer, name)[:, indices] = 0
        elif isinstance(layer, nn.modules.conv._ConvNd):  # noqa: SLF001  (torch's only common class of convolutions)
            if layer.groups > 1 and layer.groups == layer.out_channels == layer.in_channels:
                return  # depthwise: carries channels on, and whoever consumes them is switched off
            size = layer.in_channels // layer.groups
            if layer.transposed:
                layer.weight[indices] = 0
                return
            per_group = layer.out_channels // layer.groups
            for index in indices:
                first = index // size * per_group
                layer.weight[first : first + per_group, index % size] = 0


def _norm_past(norm: Any, indices: list[int]) -> nn.Module:
    """A layer or group norm whose mean and variance are those of the other channels alone."""
    import torch
    from torch import nn

    class NormPast(nn.Module):
        eps: Any
        weight: Any
        bias: Any

        def __init__(self) -> None:
            super().__init__()
            by_group = isinstance(norm, nn.GroupNorm)
            self.n_groups = norm.num_groups if by_group else 1
            self.axis = 1 if by_group else -1
            self.keep: Tensor
            n_channels = norm.num_channels if by_group else norm.normalized_shape[-1]
            keep = torch.ones(n_channels)
            keep[indices] = 0
            self.register_buffer("keep", keep)
            self.eps, self.weight, self.bias = norm.eps, norm.weight, norm.bias

        def forward(self, x: Tensor) -> Tensor:
            moved = x.movedim(self.axis, -1)
            n_rows = moved.shape[0]
            shape = (n_rows, -1, self.n_groups, moved.shape[-1] // self.n_groups)
            parts = moved.reshape(shape) if self.axis == 1 else moved.reshape(-1, 1, 1, moved.shape[-1])
            keep = self.keep.reshape(parts.shape[2:]).expand_as(parts)
            over = (1, 3)
            n_kept = keep.sum(over, keepdim=True)
            mean = (parts * keep).sum(over, keepdim=True) / n_kept
            variance = (((parts - mean) * keep) ** 2).sum(over, keepdim=True) / n_kept
            done = ((parts - mean) / torch.sqrt(variance + self.eps)).reshape(moved.shape)
            if self.weight is not None:
                done = done * self.weight
            if self.bias is not None:
                done = done + self.bias
            return (done * self.keep).movedim(-1, self.axis)

    return NormPast()


def probe_of(example: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The example itself, with seeded noise in place of inputs that are the same everywhere and so show nothing."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(part.shape, generator=generator, dtype=part.dtype)
        if part.is_floating_point() and part.numel() > 1 and float(part.max()) == float(part.min())
        else part
        for part in example
    )


def difference(whole: nn.Module, pruned: nn.Module, probe: Sequence[Tensor]) -> str | None:
    """What differs between the answers of two modules, in words; None when nothing does.

    Raises:
        NotPrunable: one of them does not run.
    """
    import torch

    with torch.no_grad(), naming_the_layer(pruned, "does not run once pruned"):
        wanted, seen = tensors_in(whole(*probe)), tensors_in(pruned(*probe))
    if [part.shape for part in wanted] != [part.shape for part in seen]:
        return f"outputs of shapes {[tuple(p.shape) for p in seen]}, not {[tuple(p.shape) for p in wanted]}"
    for number, (one, other) in enumerate(zip(wanted, seen, strict=True)):
        if not one.is_floating_point():
            continue
        scale = float(one.abs().max()) or 1.0
        gap = float((one - other).abs().max()) / scale
        if not gap <= TOLERANCE:
            return f"output {number} is off by {gap:.2g} of its largest value"
    return None
