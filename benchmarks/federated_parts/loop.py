"""Rounds of learning without sockets or clocks: the library's forms, gates, rules and optimisers, devices in a loop."""

from collections.abc import Callable
from typing import Final, Literal, NamedTuple

import msgspec
import numpy as np

from hybrid.federated.aggregation import rules
from hybrid.federated.aggregation.gates import Accepted, Gates, Limits, Offer
from hybrid.federated.aggregation.mean import RunningMean
from hybrid.federated.aggregation.optimizers import Optimizer, Settings
from hybrid.federated.aggregation.scaffold import Scaffold, control_change, halves, paired
from hybrid.federated.coding.catalog import form
from hybrid.federated.coding.versions import follow, link, links_pay, view_digest
from hybrid.federated.layout import Layout
from tests.federated import digits_task as task

TARGET: Final = 0.95

Attack = Callable[[dict[int, np.ndarray]], dict[int, np.ndarray]]
"""All honest updates of a round, by device, to what is sent in their place."""


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One way of learning together.

    Attributes:
        algorithm: an optimiser of the server, or `scaffold`.
        rate: the server's.
        rule: over the updates; `share_ratio` of them may be bad.
        uplink: form of the updates.
        uplink_share: of the elements, where that is top-k.
        downlink: form of the links between versions; None: every version whole.
        downlink_share: of the elements, where that is top-k.
        n_chosen: devices in each round; 0: all.
        dropout_ratio: chance of a chosen device to train nothing and send nothing.
        by_samples: whether devices weigh by their samples, or alike; with SCAFFOLD always alike.
        proximal: FedProx's mu.
        n_epochs, batch: of a device's training.
        target: accuracy at which it is done; above 1: never.
        max_rounds: then it is given up.
    """

    algorithm: Literal["plain", "momentum", "adam", "yogi", "scaffold"] = "plain"
    rate: float = 1.0
    rule: Literal["mean", "norm-clip", "median", "trimmed-mean", "multi-krum"] = "mean"
    share_ratio: float = 0.2
    uplink: str = "float32"
    uplink_share: float = 0.01
    downlink: str | None = None
    downlink_share: float = 0.01
    n_chosen: int = 0
    dropout_ratio: float = 0.0
    by_samples: bool = True
    proximal: float = 0.0
    n_epochs: int = 5
    batch: int = 16
    target: float = TARGET
    max_rounds: int = 150


class Outcome(NamedTuple):
    """What came of it.

    Attributes:
        rounds: until the target, None where it was never reached.
        accuracies: after each round.
        bytes_up: of all updates.
        bytes_down: of all that devices fetched, their first version included.
        n_rejected: updates that the gates refused.
    """

    rounds: int | None
    accuracies: list[float]
    bytes_up: int
    bytes_down: int
    n_rejected: int


class _Device:
    """What one device keeps between rounds."""

    def __init__(self, n_elements: int, layout: Layout) -> None:
        self.version = -1
        self.view = np.zeros(0, np.float32)
        self.residual = np.zeros(layout.n_elements, np.float32)
        self.control = np.zeros(n_elements, np.float32)


class _Server:
    """Weights, what devices hold of them, and the way there."""

    def __init__(self, setting: Setting, problem: task.Problem, seed: int) -> None:
        self.n_devices = len(problem.held)
        self.scaffold = Scaffold(problem.layout, setting.rate) if setting.algorithm == "scaffold" else None
        self.layout = paired(problem.layout) if self.scaffold else problem.layout
        self.weights = problem.first
        self.view = self.wanted()
        self.links: list[bytes] = []
        self.digests: list[str] = []
        self._setting = setting
        self._rng = np.random.default_rng(10_000 + seed)
        self._form = None if setting.downlink is None else form(setting.downlink, setting.downlink_share)
        kind = "plain" if setting.algorithm == "scaffold" else setting.algorithm
        self._optimizer = Optimizer(Settings(kind=kind, rate=setting.rate), problem.layout.n_elements)

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

    def combined(self, updates: list[np.ndarray], weights: list[float]) -> np.ndarray:
        """One vector of many, by the setting's rule."""
        setting = self._setting

        def spool() -> list[np.ndarray]:
            return updates

        if setting.rule == "median":
            return rules.median(spool, self.layout).delta
        if setting.rule == "trimmed-mean":
            return rules.trimmed_mean(spool, self.layout, setting.share_ratio).delta
        if setting.rule == "multi-krum":
            return rules.multi_krum(spool, self.layout, int(setting.share_ratio * len(updates))).delta
        if setting.rule == "norm-clip":
            return rules.norm_clipped(spool, self.layout, weights).delta
        mean = RunningMean(self.layout)
        for update, weight in zip(updates, weights, strict=True):
            mean.add(update, weight)
        return mean.mean()

    def step(self, mean: np.ndarray, n_updates: int) -> None:
        """A new version."""
        if self.scaffold is not None:
            self.weights = self.scaffold.step(self.weights, mean, n_updates, self.n_devices)
        else:
            self.weights = self._optimizer.step(self.weights, mean)
        if self._form is None:
            self.view = self.wanted()
            self.links.append(b"")
        else:
            made = link(self._form, self.view, self.wanted(), self.layout, self._rng)
            self.view = made.view
            self.links.append(made.content)
        self.digests.append(view_digest(self.view))


def learn(setting: Setting, problem: task.Problem, seed: int, attack: Attack | None = None) -> Outcome:
    """Rounds until the target, or `max_rounds`."""
    server = _Server(setting, problem, seed)
    uplink = form(setting.uplink, setting.uplink_share)
    rng = np.random.default_rng(20_000 + seed)
    gates = Gates(Limits())
    by_samples = setting.by_samples and server.scaffold is None  # its variates are a plain mean
    fleet = [_Device(problem.layout.n_elements, server.layout) for _ in problem.held]
    accuracies: list[float] = []
    bytes_up = bytes_down = 0
    for number in range(setting.max_rounds):
        updates: dict[int, np.ndarray] = {}
        for chosen in sorted(rng.permutation(len(fleet))[: setting.n_chosen or None].tolist()):
            bytes_down += server.serve(fleet[chosen])
            if rng.random() >= setting.dropout_ratio:
                training_seed = 1_000_000 * seed + 1000 * number + chosen
                updates[chosen] = _trained(setting, problem, fleet[chosen], problem.held[chosen], training_seed)
        counted: list[np.ndarray] = []
        weights: list[float] = []
        norms: list[dict[str, float]] = []
        for chosen, update in (attack(updates) if attack else updates).items():
            content, fleet[chosen].residual = uplink.encode(update, server.layout, rng, fleet[chosen].residual)
            bytes_up += len(content)
            if server.scaffold:  # as `hybrid.federated.box.work`: a variate moves by what was said of it
                unsaid = halves(fleet[chosen].residual)[1]
                fleet[chosen].control -= unsaid
                unsaid[:] = 0.0
            vector = uplink.decode(content, server.layout)
            offer = Offer(f"device-{chosen}", f"round-{number}", number)
            verdict = gates.judge(
                offer,
                vector,
                server.layout,
                versions={number: 0},
                now_s=60.0 * number,
                base_norm=rules.norm(server.view),
            )
            if isinstance(verdict, Accepted):
                norms.append(verdict.norms)
                counted.append(vector)
                weights.append(len(problem.held[chosen]) if by_samples else 1.0)
        for late in reversed(gates.outliers(norms)):
            gates.refuse("norm", "too large beside the others of its round")
            del counted[late], weights[late]
        if counted:
            server.step(server.combined(counted, weights), len(counted))
        accuracies.append(task.accuracy(problem.layout, server.weights, problem.test))
        if accuracies[-1] >= setting.target:
            break
    reached = len(accuracies) if accuracies[-1] >= setting.target else None
    return Outcome(reached, accuracies, bytes_up, bytes_down, sum(gates.n_rejected.values()))


def _trained(setting: Setting, problem: task.Problem, device: _Device, samples: task.Samples, seed: int) -> np.ndarray:
    """A device's update of what it holds: a delta, and SCAFFOLD's change of its control variate."""
    n_elements = problem.layout.n_elements
    numbers = {"n_epochs": setting.n_epochs, "batch": setting.batch, "proximal": setting.proximal}
    weights, control = device.view[:n_elements], device.view[n_elements:]
    if setting.algorithm != "scaffold":
        return task.train(problem.layout, weights, samples, seed, **numbers).delta
    trained = task.train(problem.layout, weights, samples, seed, correction=control - device.control, **numbers)
    change = control_change(trained.delta, control, trained.n_steps, task.RATE)
    device.control = device.control + change
    return np.concatenate([trained.delta, change])
