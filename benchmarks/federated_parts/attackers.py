"""Fashion-MNIST on a hundred virtual devices with unlike data, a fifth of them hostile: what each rule makes of it."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np

from benchmarks import cascade
from benchmarks.federated_parts.loop import Attack, Outcome, Setting, learn
from hybrid.federated.layout import Layout
from tests.federated import digits_task as task

N_DEVICES: Final = 100
N_ATTACKERS: Final = 20
ALPHA: Final = 0.1
N_HIDDEN: Final = 32
N_ROUNDS: Final = 40
RULES: Final = ("mean", "norm-clip", "median", "trimmed-mean", "multi-krum")
ATTACKS: Final = ("none", "turned labels", "reversed", "a little")
TOLD_ROUNDS: Final = (1, 5, 10, 20, 40)

SETTING: Final = Setting(by_samples=False, n_epochs=1, batch=32, target=2.0, max_rounds=N_ROUNDS)
LAYOUT: Final = Layout(
    names=("hidden.weight", "hidden.bias", "output.weight", "output.bias"),
    shapes=((784, N_HIDDEN), (N_HIDDEN,), (N_HIDDEN, 10), (10,)),
)
COLUMNS: Final = ("attack", "rule", *(f"round {n}" for n in TOLD_ROUNDS), "refused")


class Curve(NamedTuple):
    """Accuracies of one rule under one attack, one outcome a seed."""

    attack: str
    rule: str
    outcomes: list[Outcome]

    def row(self) -> list[str | float]:
        """Median accuracies in percent, and the median of updates that the gates refused."""
        medians = [100 * statistics.median(each.accuracies[n - 1] for each in self.outcomes) for n in TOLD_ROUNDS]
        return [self.attack, self.rule, *medians, statistics.median(each.n_rejected for each in self.outcomes)]


def fashion(folder: Path, seed: int, attack: str) -> task.Problem:
    """Devices by a Dirichlet distribution of 0.1, with a network of 784-32-10; the first twenty are the attackers."""
    training, test = (
        task.Samples(data.images, data.labels.astype(np.int64))
        for data in (cascade.load(folder, part) for part in ("train", "t10k"))
    )
    held = [training.at(part) for part in task.by_dirichlet(training.labels, ALPHA, seed, N_DEVICES)]
    if attack == "turned labels":
        held[:N_ATTACKERS] = [task.Samples(each.pixels, 9 - each.labels) for each in held[:N_ATTACKERS]]
    rng = np.random.default_rng(seed)
    arrays = (
        rng.normal(size=shape) * np.sqrt(2 / shape[0]) if len(shape) == 2 else np.zeros(shape)
        for shape in LAYOUT.shapes
    )
    first = LAYOUT.vector({name: array.astype(np.float32) for name, array in zip(LAYOUT.names, arrays, strict=True)})
    return task.Problem(LAYOUT, first, held, test)


def reversed_updates(updates: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Attackers send three times the opposite of what they learned: mostly below the gate of four median norms."""
    return {device: -3 * update if device < N_ATTACKERS else update for device, update in updates.items()}


def a_little(updates: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """All attackers send the mean of their honest updates less one standard deviation of each coordinate.

    Source: Baruch et al., A Little Is Enough, NeurIPS 2019.
    """
    own = np.stack([update for device, update in updates.items() if device < N_ATTACKERS])
    sent = (own.mean(axis=0) - own.std(axis=0)).astype(np.float32)
    return {device: sent if device < N_ATTACKERS else update for device, update in updates.items()}


_SENT: Final[dict[str, Attack]] = {"reversed": reversed_updates, "a little": a_little}


def curve(folder: Path, attack: str, rule: str, seeds: Sequence[int] = (0, 1, 2)) -> Curve:
    """One rule under one attack."""
    setting = msgspec.structs.replace(SETTING, rule=rule, share_ratio=N_ATTACKERS / N_DEVICES)
    outcomes = [learn(setting, fashion(folder, seed, attack), seed, _SENT.get(attack)) for seed in seeds]
    return Curve(attack, rule, outcomes)
