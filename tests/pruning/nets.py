"""Small torch nets, one a way in which channels depend on one another, and some where they cannot be followed."""

import torch
from torch import nn
from torch.nn import functional


def conv(n_in: int, n_out: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()
    )


class Residual(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = conv(1, width)
        self.first = conv(width, width)
        self.second = nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.short = nn.Conv2d(width, 2 * width, 1, 2)
        self.fc = nn.Linear(2 * width, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.first(x)
        return self.fc(functional.relu(self.second(x) + self.short(x)).mean((2, 3)))


class Inverted(nn.Module):
    """An inverted residual: expansion, depthwise convolution, projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(1, 16)
        self.expand = conv(16, 64, 1)
        self.depthwise = conv(64, 64, groups=64)
        self.project = nn.Sequential(nn.Conv2d(64, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.fc = nn.Linear(16 * 9, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.project(self.depthwise(self.expand(x)))
        return self.fc(functional.adaptive_avg_pool2d(x, 3).flatten(1))


class Dense(nn.Module):
    """Concatenations of everything before."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(1, 24)
        self.layers = nn.ModuleList([conv(24 + 16 * place, 16) for place in range(3)])
        self.end = conv(72, 32, 1)
        self.fc = nn.Linear(32, 5)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.fc(self.end(x).mean((2, 3)))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(1, 32)
        self.wide = conv(32, 64, groups=4)
        self.back = conv(64, 32, groups=2)
        self.fc = nn.Linear(32, 5)

    def forward(self, x):
        x = self.stem(x)
        return self.fc((x + self.back(self.wide(x))).mean((2, 3)))


class Gated(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(1, 32)
        self.gate = nn.Sequential(nn.Conv2d(32, 8, 1), nn.ReLU(), nn.Conv2d(8, 32, 1), nn.Sigmoid())
        self.end = conv(32, 32)
        self.fc = nn.Linear(32, 5)

    def forward(self, x):
        x = self.stem(x)
        return self.fc(self.end(x * self.gate(x.mean((2, 3), keepdim=True))).mean((2, 3)))


class Block(nn.Module):
    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.second_norm = nn.LayerNorm(width)
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x):
        n, length, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, length, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, -1))
        return x + self.narrow(functional.gelu(self.wide(self.second_norm(x))))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 32)
        self.position = nn.Parameter(torch.randn(1, 9, 32) * 0.1)
        self.block = Block(32, 4)
        self.norm = nn.LayerNorm(32)
        self.fc = nn.Linear(32, 5)

    def forward(self, x):
        return self.fc(self.norm(self.block(self.embed(x) + self.position)).mean(1))


class Shuffled(nn.Module):
    """A channel shuffle, which a dependency graph takes for a reshape and so couples the wrong channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(1, 32)
        self.first = conv(32, 32, 1, groups=2)
        self.second = conv(32, 32, groups=32)
        self.end = conv(32, 32, 1, groups=2)
        self.fc = nn.Linear(32, 5)

    def forward(self, x):
        x = self.first(self.stem(x))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.fc(self.end(self.second(x)).mean((2, 3)))


class Features(nn.Module):
    """Hands out its inner channels, beside a second input."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(1, 16, 3, 1, 1)
        self.right = nn.Conv2d(2, 16, 3, 1, 1)
        self.shown = nn.Conv2d(16, 16, 3, 1, 1)
        self.fc = nn.Conv2d(16, 4, 1)

    def forward(self, x, y):
        shown = self.shown(functional.relu(self.left(x)) * torch.sigmoid(self.right(y)))
        return {"scores": self.fc(functional.relu(shown)), "features": [shown]}


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 32, 3)
        self.norm = nn.GroupNorm(4, 32)
        self.second = nn.Conv2d(32, 32, 3)
        self.fc = nn.Linear(32, 5)

    def forward(self, x):
        return self.fc(functional.relu(self.second(functional.relu(self.norm(self.first(x))))).mean((2, 3)))


class Decided(nn.Module):
    """Returns only the number of a class: nothing that has a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(1, 8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.stem(x).mean((2, 3))).argmax(1)
