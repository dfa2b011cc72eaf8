"""Data with known answers, and the trained nets that are compressed: digits at 32x32, Fashion-MNIST at 28x28.

Trained weights are kept below the cache by task, seed and form, so that a second run begins where the first stopped.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import cascade
from benchmarks.compression_parts.nets import Net

CACHE: Final = Path(__file__).resolve().parents[2] / ".cache" / "compression"
BATCH: Final = 64
SMOOTHING: Final = 0.05
N_HELD_DIGITS: Final = 300
N_HELD_FASHION: Final = 8000


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task: float32 images (n, 1, s, s), classes, and how its net is made and trained.

    Attributes:
        name: of its files.
        images, labels: to train with.
        held_images, held_labels: to calibrate with and to choose by; the net has not been trained on them.
        test_images, test_labels: to judge with; nothing else sees them.
        make: an untrained net.
        epochs: of its training.
        shift: pixels by which training images move at random.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    held_images: np.ndarray
    held_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    make: Callable[[], nn.Module]
    epochs: int
    shift: int


def digits() -> Task:
    """The 1,797 digits of scikit-learn at 32x32: 540 to judge with, 300 held back."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    loaded = load_digits()
    small = torch.tensor((loaded.images / 16.0).astype(np.float32)[:, None])
    images = ((nn.functional.interpolate(small, size=(32, 32), mode="bilinear") - 0.3) / 0.35).numpy()
    train, test, labels, test_labels = train_test_split(
        images, loaded.target, test_size=0.3, random_state=0, stratify=loaded.target
    )
    train, held, labels, held_labels = train_test_split(
        train, labels, test_size=N_HELD_DIGITS, random_state=0, stratify=labels
    )
    return Task(
        name="digits",
        images=train,
        labels=labels,
        held_images=held,
        held_labels=held_labels,
        test_images=test,
        test_labels=test_labels,
        make=Net,
        epochs=8,
        shift=3,
    )


def fashion() -> Task:
    """Fashion-MNIST: 52,000 images to train with, 8,000 held back, 10,000 to judge with."""
    folder = cascade.data_folder(CACHE.parent)
    train, test = cascade.load(folder, "train"), cascade.load(folder, "t10k")

    def shaped(images: np.ndarray) -> np.ndarray:
        return (images.reshape(-1, 1, 28, 28) - np.float32(0.286)) / np.float32(0.353)

    return Task(
        name="fashion",
        images=shaped(train.images[:-N_HELD_FASHION]),
        labels=train.labels[:-N_HELD_FASHION],
        held_images=shaped(train.images[-N_HELD_FASHION:]),
        held_labels=train.labels[-N_HELD_FASHION:],
        test_images=shaped(test.images),
        test_labels=test.labels,
        make=lambda: Net(16, is_deep=False),
        epochs=5,
        shift=1,
    )


def shifted(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Images that moved by up to so many pixels, round the edges."""
    rows, columns = torch.randint(-pixels, pixels + 1, (2,), generator=generator).tolist()
    return torch.roll(images, (rows, columns), (2, 3))


def trained(task: Task, seed: int) -> nn.Module:
    """The task's net, trained with this seed; from the cache where it was trained before."""
    kept = CACHE / f"{task.name}-{seed}.pt"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = task.make()
        if kept.is_file():
            net.load_state_dict(torch.load(kept, weights_only=True))
            return net.eval()
        train(net, task, task.epochs, seed)
    CACHE.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), kept)
    return net


def train(net: nn.Module, task: Task, epochs: int, seed: int, rate: float = 2e-3) -> nn.Module:
    """Cross entropy with smoothed labels, AdamW, one cycle; as every tool's own fine-tuning here."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.tensor(task.images), torch.tensor(task.labels)
    optimizer = torch.optim.AdamW(net.parameters(), rate, weight_decay=1e-3)
    n_steps = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=n_steps)
    net.train()
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for start in range(0, len(images) - BATCH + 1, BATCH):
            batch = order[start : start + BATCH]
            scores = net(shifted(images[batch], task.shift, generator))
            loss = nn.functional.cross_entropy(scores, labels[batch], label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # (torch's own)
            optimizer.step()
            schedule.step()
    return net.eval()
