"""The digits, divided among devices that see unlike parts of them, and a network of 4,810 weights that learns them."""

from typing import Final, NamedTuple

import numpy as np

from hybrid.federated.layout import Layout

N_DEVICES: Final = 10
N_TEST: Final = 360
N_HIDDEN: Final = 64
RATE: Final = 0.1
LAYOUT: Final = Layout(
    names=("hidden.weight", "hidden.bias", "output.weight", "output.bias"), shapes=((64, 64), (64,), (64, 10), (10,))
)


class Samples(NamedTuple):
    """Pixels, float32 (n, 64) from 0 to 1, and labels, int64 (n,)."""

    pixels: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, indices) -> "Samples":
        return Samples(self.pixels[indices], self.labels[indices])


def all_digits() -> tuple[Samples, Samples]:
    """Training and test samples, always the same ones."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    samples = Samples((bunch.data / 16.0).astype(np.float32), bunch.target.astype(np.int64))
    order = np.random.default_rng(1234).permutation(len(samples))
    return samples.at(order[N_TEST:]), samples.at(order[:N_TEST])


def by_dirichlet(labels: np.ndarray, alpha: float, seed: int, n_devices: int = N_DEVICES) -> list[np.ndarray]:
    """Indices of each device: every class is dealt out in shares drawn from a Dirichlet distribution."""
    rng = np.random.default_rng(seed)
    dealt = []
    for label in range(10):
        indices = np.flatnonzero(labels == label)
        rng.shuffle(indices)
        cuts = (np.cumsum(rng.dirichlet([alpha] * n_devices)) * len(indices)).astype(int)
        dealt.append(np.split(indices, cuts[:-1]))
    held = [np.concatenate([shares[device] for shares in dealt]) for device in range(n_devices)]
    return [indices if len(indices) else np.array([rng.integers(len(labels))]) for indices in held]


def by_shards(labels: np.ndarray, seed: int, n_devices: int = N_DEVICES) -> list[np.ndarray]:
    """Indices of each device: two runs of the samples sorted by label, so that most know two digits."""
    shards = np.array_split(np.argsort(labels, kind="stable"), 2 * n_devices)
    order = np.random.default_rng(seed).permutation(2 * n_devices)
    return [np.concatenate([shards[first], shards[second]]) for first, second in order.reshape(n_devices, 2)]


class Problem(NamedTuple):
    """Something to learn together: a network of one or two layers, what devices hold, and what judges it."""

    layout: Layout
    first: np.ndarray
    held: list[Samples]
    test: Samples


def digits(alpha: float | None, seed: int) -> Problem:
    """Ten devices (`alpha` None: two label shards each) and the whole network."""
    training, test = all_digits()
    split = by_shards(training.labels, seed) if alpha is None else by_dirichlet(training.labels, alpha, seed)
    return Problem(LAYOUT, first_weights(seed), [training.at(indices) for indices in split], test)


def digits_head(alpha: float | None, seed: int, n_proxy: int = 150) -> Problem:
    """The network's last layer alone, 650 weights; below it and in it is what a server learned from a few samples.

    No device holds those samples.
    """
    training, test = all_digits()
    proxy, training = training.at(slice(n_proxy)), training.at(slice(n_proxy, None))
    split = by_shards(training.labels, seed) if alpha is None else by_dirichlet(training.labels, alpha, seed)
    weights = first_weights(seed)
    weights += train(LAYOUT, weights, proxy, seed, n_epochs=60).delta
    hidden, hidden_bias, output, output_bias = LAYOUT.arrays(weights).values()

    def features(samples: Samples) -> Samples:
        return Samples(np.maximum(samples.pixels @ hidden + hidden_bias, 0), samples.labels)

    layout = Layout(names=LAYOUT.names[2:], shapes=LAYOUT.shapes[2:])
    first = np.concatenate([output.ravel(), output_bias])
    return Problem(layout, first, [features(training.at(indices)) for indices in split], features(test))


def first_weights(seed: int) -> np.ndarray:
    """The network before training, as one vector."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(64, N_HIDDEN)) * np.sqrt(2 / 64)
    output = rng.normal(size=(N_HIDDEN, 10)) * np.sqrt(1 / N_HIDDEN)
    arrays = (hidden, np.zeros(N_HIDDEN), output, np.zeros(10))
    return LAYOUT.vector({name: array.astype(np.float32) for name, array in zip(LAYOUT.names, arrays, strict=True)})


def accuracy(layout: Layout, weights: np.ndarray, samples: Samples) -> float:
    """Share of samples that it names rightly."""
    *below, output, output_bias = layout.arrays(weights).values()
    activation = np.maximum(samples.pixels @ below[0] + below[1], 0) if below else samples.pixels
    return float(((activation @ output + output_bias).argmax(axis=1) == samples.labels).mean())


class Trained(NamedTuple):
    """What training changed (weights after less weights before), and in how many steps."""

    delta: np.ndarray
    n_steps: int


def train(
    layout: Layout,
    weights: np.ndarray,
    samples: Samples,
    seed: int,
    *,
    rate=RATE,
    n_epochs=5,
    batch=16,
    proximal=0.0,
    correction=None,
) -> Trained:
    """Plain SGD on cross-entropy from these weights.

    Args:
        proximal: FedProx's mu, the pull back to `weights`.
        correction: added to every gradient (SCAFFOLD: c - c_i), a vector.
    """
    after = weights.copy()
    *below, output, output_bias = layout.arrays(after).values()
    gradient = np.empty_like(after)
    *slopes_below, slope, slope_bias = layout.arrays(gradient).values()
    rng = np.random.default_rng(seed)
    n_steps = 0
    for _ in range(n_epochs):
        order = rng.permutation(len(samples))
        for start in range(0, len(samples), batch):
            chosen = order[start : start + batch]
            pixels = samples.pixels[chosen]
            activation = np.maximum(pixels @ below[0] + below[1], 0) if below else pixels
            scores = activation @ output + output_bias
            likelihood = np.exp(scores - scores.max(axis=1, keepdims=True))
            likelihood /= likelihood.sum(axis=1, keepdims=True)
            likelihood[np.arange(len(chosen)), samples.labels[chosen]] -= 1
            likelihood /= len(chosen)
            np.matmul(activation.T, likelihood, out=slope)
            slope_bias[:] = likelihood.sum(axis=0)
            if below:
                back = (likelihood @ output.T) * (activation > 0)
                np.matmul(pixels.T, back, out=slopes_below[0])
                slopes_below[1][:] = back.sum(axis=0)
            if proximal:
                gradient += np.float32(proximal) * (after - weights)
            if correction is not None:
                gradient += correction
            after -= np.float32(rate) * gradient
            n_steps += 1
    return Trained(after - weights, n_steps)
