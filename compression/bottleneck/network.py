"""Encoder, decoder and probabilities of a bottleneck as torch modules, begun at principal components.

Design: the encoder is one strided convolution, or two with a ReLU between them, since it must cost a fraction of the
head; the decoder adds what residual blocks find to what a linear one gives. Rounding belongs to neither: training adds
noise or passes gradients straight through, the exported graphs quantize.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from compression.bottleneck.bottleneck_recipe import BottleneckShape
from compression.bottleneck.graph import Chain
from compression.bottleneck.linear import Components

_LEAST_SHARE = 1e-6
_LOGISTICS = 3


def pads_of(size: int, window: int, stride: int) -> tuple[int, int]:
    """Zeros before and behind a side of this size, so that the latent's is the size over the stride, rounded up."""
    total = (-(-size // stride) - 1) * stride + window - size
    before = min((window - stride) // 2, max(total, 0))
    return before, total - before


class Encoder(nn.Module):
    """Planes (n, c, h, w) to a latent that is not rounded yet, (n, channels, h / stride, w / stride)."""

    def __init__(self, planes: tuple[int, int, int, int], shape: BottleneckShape, *, scale: float) -> None:
        super().__init__()
        _, c, height, width = planes
        self._stride, self._scale = shape.stride, scale
        top, bottom = pads_of(height, shape.window, shape.stride)
        left, right = pads_of(width, shape.window, shape.stride)
        self._pads = (top, left, bottom, right)
        self.first = nn.Conv2d(c, shape.hidden or shape.channels, shape.window, shape.stride)
        self.second = nn.Conv2d(shape.hidden, shape.channels, 1) if shape.hidden else None

    def begin_at(self, found: Components, step: float) -> None:
        """A single convolution takes the components, in steps; of two, the first is scaled to what it sees."""
        with torch.no_grad():
            if self.second is not None:
                self.first.weight /= max(float(found.strengths[0]), 1e-6) / math.sqrt(found.basis.shape[1])
                return
            side = self._stride
            basis = torch.from_numpy(found.basis / step).float()
            offset = (self.first.kernel_size[0] - side) // 2
            self.first.weight.zero_()
            self.first.weight[:, :, offset : offset + side, offset : offset + side] = basis.reshape(
                len(basis), -1, side, side
            )
            self.first.bias.copy_(torch.from_numpy(-found.basis @ found.mean / step))  # type: ignore[union-attr]

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        """The latent, in steps of its rounding."""
        top, left, bottom, right = self._pads
        seen: torch.Tensor = self.first(F.pad(planes / self._scale, (left, right, top, bottom)))
        return seen if self.second is None else self.second(F.relu(seen))

    def write(self, chain: Chain) -> None:
        """The same as nodes."""
        weight, bias = _weights(self.first)
        chain.convolve(weight / self._scale, bias, stride=self._stride, pads=self._pads)
        if self.second is not None:
            chain.node("Relu")
            chain.convolve(*_weights(self.second))


class _Block(nn.Module):
    def __init__(self, width: int, window: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, window, padding=window // 2)
        self.second = nn.Conv2d(width, width, window, padding=window // 2)

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = seen + self.second(F.relu(self.first(seen)))
        return made

    def write(self, chain: Chain) -> None:
        before = chain.end
        for conv in (self.first, self.second):
            pad = conv.kernel_size[0] // 2
            chain.convolve(*_weights(conv), pads=(pad, pad, pad, pad))
            if conv is self.first:
                chain.node("Relu")
        chain.node("Add", before)


class Decoder(nn.Module):
    """A rounded latent to planes: a linear part, what residual blocks add, and a ReLU where the planes had one."""

    def __init__(
        self,
        planes: tuple[int, int, int, int],
        shape: BottleneckShape,
        *,
        scale: float,
        sequence: bool,
        rectified: bool,
    ) -> None:
        super().__init__()
        _, c, self._height, self._width = planes
        self._stride, self._scale, self._rectified = shape.stride, scale, rectified
        window = 1 if sequence else 3
        self.linear = nn.ConvTranspose2d(shape.channels, c, shape.stride, shape.stride)
        self.wide = nn.Conv2d(shape.channels, shape.width, window, padding=window // 2) if shape.blocks else None
        self.blocks = nn.ModuleList(_Block(shape.width, window) for _ in range(shape.blocks))
        self.last = nn.ConvTranspose2d(shape.width, c, shape.stride, shape.stride) if shape.blocks else None

    def begin_at(self, found: Components, step: float) -> None:
        """The linear part gives what the components give; the blocks add nothing yet."""
        with torch.no_grad():
            c, side = self.linear.out_channels, self._stride
            self.linear.weight.copy_(torch.from_numpy(found.basis * step).reshape(-1, c, side, side))
            self.linear.bias.copy_(torch.from_numpy(found.mean.reshape(c, -1).mean(axis=1)))  # type: ignore[union-attr]
            if self.wide is not None and self.last is not None:
                self.wide.weight /= max(float(found.strengths[0]) / step, 1.0)
                self.last.weight.zero_()
                self.last.bias.zero_()  # type: ignore[union-attr]

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """Planes (n, c, h, w)."""
        made: torch.Tensor = self.linear(latent)
        if self.wide is not None and self.last is not None:
            seen = F.relu(self.wide(latent))
            for block in self.blocks:
                seen = block(seen)
            made = made + self.last(F.relu(seen))
        made = made[:, :, : self._height, : self._width] * self._scale
        return F.relu(made) if self._rectified else made

    def write(self, chain: Chain) -> None:
        """The same as nodes, but for the cut to height and width."""
        latent = chain.end
        self._up(chain, self.linear)
        if self.wide is not None and self.last is not None:
            linear, chain.end = chain.end, latent
            pad = self.wide.kernel_size[0] // 2
            chain.convolve(*_weights(self.wide), pads=(pad, pad, pad, pad))
            chain.node("Relu")
            for block in self.blocks:
                block.write(chain)  # type: ignore[operator]
            chain.node("Relu")
            self._up(chain, self.last)
            chain.node("Add", linear)
        if self._rectified:
            chain.node("Relu")

    def _up(self, chain: Chain, conv: nn.ConvTranspose2d) -> None:
        weight, bias = _weights(conv)
        chain.convolve(weight * self._scale, bias * self._scale, stride=self._stride, transposed=True)


class Probabilities(nn.Module):
    """How probable each rounded value is: a mixture of logistic distributions for each channel, in whole steps."""

    def __init__(self, spreads: torch.Tensor) -> None:
        """Begins with the standard deviations of each channel, in steps."""
        super().__init__()
        wide = spreads.clamp_min(0.1)[:, None] * torch.tensor([0.15, 0.5, 1.2])[None, :_LOGISTICS]
        self.scales = nn.Parameter(wide.log())
        self.means = nn.Parameter(torch.zeros_like(wide))
        self.shares = nn.Parameter(torch.zeros_like(wide))

    def bits(self, latent: torch.Tensor) -> torch.Tensor:
        """Bits of each value of a latent (n, c, h, w), whole or with noise."""
        away = latent[..., None] - self.means[:, None, None, :]
        scale = self.scales.exp()[:, None, None, :].clamp_min(0.02)
        upper, lower = (away + 0.5) / scale, (away - 0.5) / scale
        flip = -torch.sign(upper + lower).detach()  # differences in the tail that is near 0 keep their digits
        share = (torch.sigmoid(flip * upper) - torch.sigmoid(flip * lower)).abs()
        share = torch.where(flip == 0, torch.sigmoid(upper) - torch.sigmoid(lower), share)
        mixed = (share * self.shares.softmax(dim=-1)[:, None, None, :]).sum(dim=-1)
        return -torch.log2(mixed.clamp_min(_LEAST_SHARE))


def _weights(conv: nn.Conv2d | nn.ConvTranspose2d) -> tuple[np.ndarray, np.ndarray]:
    assert conv.bias is not None
    return conv.weight.detach().cpu().numpy(), conv.bias.detach().cpu().numpy()
