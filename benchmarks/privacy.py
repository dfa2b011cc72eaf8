"""What noise costs in accuracy: the digits among 10, 100 and 1000 devices, all of a small network or its head alone.

Twenty rounds with every device in each, five local epochs, uniform weights, goal = devices, bound following the median
norm. Devices hold a Dirichlet(0.5) share of 1437 samples: with 1000 devices one or two each.

    python benchmarks/privacy.py [--seeds 3] [--out benchmarks/results/privacy.json]
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hybrid.federated.campaign import Privacy
from hybrid.federated.privacy.accountant import cost_of, epsilon_for
from hybrid.federated.privacy.clipping import clip_bit, clipped
from hybrid.federated.privacy.release import PrivateSum
from tests.federated import digits_task as task

N_ROUNDS = 20
N_PROXY = 150
FIRST_CLIP = 1.0
DELTA = 1e-5
NOISES = (0.0, 1.0, 2.0, 4.0, 8.0)
FLEETS = (10, 100, 1000)


class Row(NamedTuple):
    """One setting: epsilon of a device that took part in every round; accuracies are medians over the seeds."""

    part: str
    n_devices: int
    noise: float
    epsilon: float | None
    accuracy: float
    least: float
    most: float
    last_clip: float


def started(part: str, seed: int, training: task.Samples) -> np.ndarray:
    """Weights before the first round: drawn, or trained by the gateway on samples of its own where the head learns."""
    weights: np.ndarray = task.first_weights(seed)
    if part == "all":
        return weights
    delta: np.ndarray = task.train(task.LAYOUT, weights, training.at(np.arange(N_PROXY)), seed, n_epochs=30).delta
    trained: np.ndarray = weights + delta
    return trained


def learnt(part: str, n_devices: int, noise: float, seed: int) -> tuple[float, float]:
    """Accuracy after the rounds, and the last bound."""
    training, test = task.all_digits()
    weights = started(part, seed, training)
    held = training if part == "all" else training.at(np.arange(N_PROXY, len(training)))
    split = task.by_dirichlet(held.labels, 0.5, seed, n_devices)
    fleet = [held.at(indices) for indices in split]
    names = set(task.LAYOUT.names if part == "all" else ("output.weight", "output.bias"))
    learns = np.concatenate(
        [np.full(size, name in names) for name, size in zip(task.LAYOUT.names, task.LAYOUT.sizes, strict=True)]
    )
    privacy = Privacy(noise=noise, clip=FIRST_CLIP, is_adaptive=True)
    clip, rng = FIRST_CLIP, np.random.default_rng(seed)
    for number in range(N_ROUNDS):
        total = PrivateSum(privacy, clip, int(learns.sum()))
        for device, samples in enumerate(fleet):
            delta = task.train(task.LAYOUT, weights, samples, 1_000_000 * seed + 1000 * number + device).delta[learns]
            within, norm = clipped(delta, clip)
            total.add(within, bit=clip_bit(norm, clip))
        released = total.release(rng.bytes(32), n_devices)
        weights = weights.copy()
        weights[learns] += released.mean
        clip = released.clip_norm
    return task.accuracy(task.LAYOUT, weights, test), clip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--fleets", type=int, nargs="*", default=FLEETS)
    options = parser.parse_args()
    rows = []
    print("| part | devices | noise | epsilon | accuracy | least | most | last clip |")
    print("|---|---|---|---|---|---|---|---|")
    for part in ("head", "all"):
        for n_devices in options.fleets:
            for noise in NOISES:
                begun = time.perf_counter()
                outcomes = [learnt(part, n_devices, noise, seed) for seed in range(options.seeds)]
                accuracies = sorted(accuracy for accuracy, _ in outcomes)
                epsilon = epsilon_for(cost_of(noise, N_ROUNDS), DELTA) if noise else None
                clip = float(np.median([clip for _, clip in outcomes]))
                low, middle, high = accuracies[0], float(np.median(accuracies)), accuracies[-1]
                rows.append(Row(part, n_devices, noise, epsilon, middle, low, high, clip))
                figures = (
                    part,
                    n_devices,
                    f"{noise:g}",
                    "-" if epsilon is None else f"{epsilon:.2f}",
                    *(f"{x:.3f}" for x in (middle, low, high)),
                )
                print("| " + " | ".join(str(figure) for figure in figures) + f" | {clip:.2f} |", flush=True)
                print(f"  {time.perf_counter() - begun:.1f} s", file=sys.stderr)
    if options.out:
        options.out.write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
