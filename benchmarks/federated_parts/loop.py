"""Rounds of learning without sockets or clocks: the library's forms, means and optimisers, and devices in one loop."""

from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec
import numpy as np

from hybrid.federated.aggregation.gates import Accepted, Gates, Limits, Offer
from hybrid.federated.aggregation.mean import RunningMean
from hybrid.federated.aggregation.optimizers import Kind, Optimizer, Settings
from hybrid.federated.aggregation.scaffold import Scaffold, control_change, paired
from hybrid.federated.coding.catalog import form
from hybrid.federated.coding.versions import follow, link, links_pay, view_digest
from tests.federated import digits_task as task

TARGET: Final = 0.95


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One way of learning the digits.

    Attributes:
        alpha: of the Dirichlet split; None: two label shards a device.
        algorithm: an optimiser of the server, or `scaffold`.
        rate: the server's.
        adaptivity: of adam and yogi.
        uplink: form of the updates.
        uplink_share: of the elements, where that is top-k.
        downlink: form of the links between versions; None: every version whole.
        downlink_share: of the elements, where that is top-k.
        n_chosen: devices in each round.
        dropout_ratio: chance of a chosen device to train nothing and send nothing.
        by_samples: whether devices weigh by their samples, or alike.
        proximal: FedProx's mu.
        max_rounds: then it is given up.
    """

    alpha: float | None = 0.5
    algorithm: Kind | str = "plain"
    rate: float = 1.0
    adaptivity: float = 1e-3
    uplink: str = "float32"
    uplink_share: float = 0.01
    downlink: str | None = None
    downlink_share: float = 0.01
    n_chosen: int = task.N_DEVICES
    dropout_ratio: float = 0.0
    by_samples: bool = True
    proximal: float = 0.0
    max_rounds: int = 150


class Outcome(NamedTuple):
    """What came of it.

    Attributes:
        rounds: until the target, None where it was never reached.
        accuracies: after each round.
        bytes_up: of all updates until then.
        bytes_down: of all that devices fetched until then, their first version included.
        n_rejected: updates that the gates refused.
    """

    rounds: int | None
    accuracies: list[float]
    bytes_up: int
    bytes_down: int
    n_rejected: int


class _Device:
    """What one device keeps between rounds."""

    def __init__(self, n_elements: int) -> None:
        self.version = -1
        self.view = np.zeros(0, np.float32)
        self.residual = np.zeros(n_elements, np.float32)
        self.control = np.zeros(task.LAYOUT.n_elements, np.float32)


class _Server:
    """Weights, what devices hold of them, and the way there."""

    def __init__(self, setting: Setting, seed: int) -> None:
        self.scaffold = Scaffold(task.LAYOUT, setting.rate) if setting.algorithm == "scaffold" else None
        self.layout = paired(task.LAYOUT) if self.scaffold else task.LAYOUT
        self.weights = task.first_weights(seed)
        self.view = self.wanted()
        self.links: list[bytes] = []
        self.digests: list[str] = []
        self._rng = np.random.default_rng(10_000 + seed)
        self._form = None if setting.downlink is None else form(setting.downlink, setting.downlink_share)
        self._optimizer: Optimizer | None = None
        if self.scaffold is None:
            numbers = msgspec.convert(
                {"kind": setting.algorithm, "rate": setting.rate, "adaptivity": setting.adaptivity}, Settings
            )
            self._optimizer = Optimizer(numbers, task.LAYOUT.n_elements)

    def wanted(self) -> np.ndarray:
        """What devices should hold: weights, and SCAFFOLD's control variate behind them."""
        return np.concatenate([self.weights, self.scaffold.control]) if self.scaffold else self.weights

    def serve(self, device: _Device) -> int:
        """Brings a device to the newest version; how many bytes that took."""
        newest = len(self.links)
        missing = self.links[max(device.version, 0) :]
        if self._form is None or device.version < 0 or not links_pay([len(each) for each in missing], self.layout):
            n_bytes = 0 if device.version == newest else 4 * self.layout.n_elements
            device.view, device.version = self.view.copy(), newest
            return n_bytes
        for content in missing:
            device.view = follow(self._form, device.view, content, self.layout, self.digests[device.version])
            device.version += 1
        return sum(len(each) for each in missing)

    def step(self, mean: RunningMean) -> None:
        """A new version."""
        if self.scaffold is not None:
            self.weights = self.scaffold.step(self.weights, mean.mean(), mean.n_updates, task.N_DEVICES)
        else:
            assert self._optimizer is not None
            self.weights = self._optimizer.step(self.weights, mean.mean())
        if self._form is None:
            self.view = self.wanted()
            self.links.append(b"")
        else:
            made = link(self._form, self.view, self.wanted(), self.layout, self._rng)
            self.view = made.view
            self.links.append(made.content)
        self.digests.append(view_digest(self.view))


def learn(
    setting: Setting,
    seed: int,
    *,
    attack: Callable[[int, np.ndarray], np.ndarray] | None = None,
    to_the_end: bool = False,
) -> Outcome:
    """Rounds until the target, or `max_rounds`.

    Args:
        attack: what a device (by its number) sends in place of its delta.
        to_the_end: goes on after the target was reached.
    """
    samples, test = task.devices(setting.alpha, seed)
    server = _Server(setting, seed)
    uplink = form(setting.uplink, setting.uplink_share)
    rng = np.random.default_rng(20_000 + seed)
    gates = Gates(Limits())
    fleet = [_Device(server.layout.n_elements) for _ in samples]
    accuracies: list[float] = []
    reached: int | None = None
    bytes_up = bytes_down = 0
    for number in range(setting.max_rounds):
        mean = RunningMean(server.layout)
        for chosen in sorted(rng.permutation(len(fleet))[: setting.n_chosen].tolist()):
            device = fleet[chosen]
            bytes_down += server.serve(device)
            if rng.random() < setting.dropout_ratio:
                continue
            update = _train(setting, device, samples[chosen], seed=1_000_000 * seed + 1000 * number + chosen)
            if attack is not None:
                update = attack(chosen, update)
            content, device.residual = uplink.encode(update, server.layout, rng, device.residual)
            bytes_up += len(content)
            vector = uplink.decode(content, server.layout)
            offer = Offer(f"device-{chosen}", f"round-{number}", number)
            if isinstance(
                gates.judge(offer, vector, server.layout, versions={number: 0}, now_s=60.0 * number), Accepted
            ):
                mean.add(vector, len(samples[chosen]) if setting.by_samples else 1.0)
        if mean.n_updates:
            server.step(mean)
        accuracies.append(task.accuracy(server.weights, test))
        if reached is None and accuracies[-1] >= TARGET:
            reached = number + 1
            if not to_the_end:
                break
    return Outcome(reached, accuracies, bytes_up, bytes_down, sum(gates.n_rejected.values()))


def _train(setting: Setting, device: _Device, samples: task.Samples, seed: int) -> np.ndarray:
    """A device's update of what it holds: a delta, and SCAFFOLD's change of its control variate."""
    n_elements = task.LAYOUT.n_elements
    weights = device.view[:n_elements]
    if setting.algorithm != "scaffold":
        return task.train(weights, samples, seed, proximal=setting.proximal).delta
    control = device.view[n_elements:]
    trained = task.train(weights, samples, seed, correction=control - device.control)
    change = control_change(trained.delta, control, trained.n_steps, task.RATE)
    device.control = device.control + change
    return np.concatenate([trained.delta, change])
