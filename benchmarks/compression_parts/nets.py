"""Nets that the compression benchmarks train: residual and inverted-residual blocks in two sizes."""

from typing import Final

import torch
from torch import Tensor, nn

N_CLASSES: Final = 10


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut, with a projection where shape or width changes."""

    def __init__(self, width_in: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.first = convolved(width_in, width, 3, stride)
        self.second = convolved(width, width, 3)
        same = stride == 1 and width_in == width
        self.shortcut = nn.Identity() if same else convolved(width_in, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(n, width_in, h, w) to (n, width, h / stride, w / stride)."""
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


class InvertedResidual(nn.Module):
    """Expansion, depthwise 3x3, projection (MobileNetV2), with a shortcut."""

    def __init__(self, width: int, expansion: int = 4) -> None:
        super().__init__()
        inner = width * expansion
        self.steps = nn.Sequential(
            convolved(width, inner, 1),
            nn.ReLU6(),
            convolved(inner, inner, 3, groups=inner),
            nn.ReLU6(),
            convolved(inner, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape."""
        found: Tensor = x + self.steps(x)
        return found


class Net(nn.Module):
    """A classifier of one-channel images: (n, 1, s, s) to (n, 10) logits.

    Args:
        width: channels of the first stage; the others have two and four times as many.
        is_deep: four more blocks, as the net of the digits has them.
    """

    def __init__(self, width: int = 32, *, is_deep: bool = True) -> None:
        super().__init__()
        first: list[nn.Module] = [convolved(1, width, 3), nn.ReLU()]
        if is_deep:
            first += [Residual(width, width), Residual(width, width)]
        self.stage1 = nn.Sequential(*first)
        self.stage2 = nn.Sequential(Residual(width, 2 * width, 2), InvertedResidual(2 * width))
        third: list[nn.Module] = [Residual(2 * width, 4 * width, 2)]
        if is_deep:
            third += [Residual(4 * width, 4 * width)]
        self.stage3 = nn.Sequential(*third)
        self.classify = nn.Linear(4 * width, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        found: Tensor = self.classify(self.stage3(self.stage2(self.stage1(x))).mean((2, 3)))
        return found


def convolved(width_in: int, width: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution that keeps height and width (but for its stride), and its normalisation."""
    convolution = nn.Conv2d(width_in, width, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width))
