"""Means and optimisers: by hand, in any order, and over a restart."""

import msgspec
import numpy as np
import pytest

from hybrid.errors import BadMessage, TensorMismatch
from hybrid.federated.aggregation import optimizers
from hybrid.federated.aggregation.mean import RunningMean, staleness_weight
from hybrid.federated.aggregation.optimizers import Optimizer, Settings
from hybrid.federated.aggregation.scaffold import Scaffold, control_change, halves, paired
from hybrid.federated.layout import Layout

LAYOUT = Layout(names=("w", "b"), shapes=((20, 5), (7,)))
N = LAYOUT.n_elements
KINDS = ("plain", "momentum", "adam", "yogi")


def updates(n_updates: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=N).astype(np.float32) * np.float32(10.0 ** rng.integers(-3, 3)) for _ in range(n_updates)]


def mean_of(vectors, weights, dampings=None) -> np.ndarray:
    mean = RunningMean(LAYOUT)
    for vector, weight, damping in zip(vectors, weights, dampings or [1.0] * len(vectors), strict=True):
        mean.add(vector, weight, damping)
    return mean.mean()


def test_the_mean_weighs_by_samples():
    vectors, weights = updates(7), [3, 144, 1, 20, 999, 5, 5]
    expected = np.average(np.array(vectors, np.float64), axis=0, weights=weights)
    np.testing.assert_array_equal(mean_of(vectors, weights), expected.astype(np.float32))
    np.testing.assert_allclose(mean_of(vectors, [1.0] * 7), np.mean(vectors, axis=0), rtol=1e-4, atol=1e-6)


def test_the_order_of_arrival_does_not_show():
    vectors, weights = updates(40, seed=1), [float(weight) for weight in range(1, 41)]
    first = mean_of(vectors, weights)
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(40)
        again = mean_of([vectors[index] for index in order], [weights[index] for index in order])
        np.testing.assert_array_max_ulp(again, first, maxulp=1)
        assert (again != first).mean() < 0.02


def test_an_update_is_not_kept_or_changed():
    vector = updates(1)[0]
    before = vector.copy()
    mean = RunningMean(LAYOUT)
    mean.add(vector, 3.0, 0.5)
    np.testing.assert_array_equal(vector, before)
    vector[:] = 0
    np.testing.assert_allclose(mean.mean(), 0.5 * before, rtol=1e-6)


def test_stale_updates_make_a_smaller_step():
    ones = np.ones(N, np.float32)
    assert [staleness_weight(behind) for behind in (0, 3, 8)] == [1.0, 0.5, 1 / 3]
    np.testing.assert_allclose(mean_of([ones, ones], [1, 1], [1.0, staleness_weight(3)]), 0.75)
    np.testing.assert_allclose(mean_of([ones, ones], [1, 3], [1.0, staleness_weight(3)]), 0.625)


def test_a_mean_of_nothing_changes_nothing():
    mean = RunningMean(LAYOUT)
    assert not mean.mean().any()
    assert mean.mean().shape == (N,)


@pytest.mark.parametrize(
    ("vector", "weight", "damping"),
    [
        (np.zeros(N - 1, np.float32), 1.0, 1.0),
        (np.zeros(N, np.float64), 1.0, 1.0),
        (np.zeros(N, np.float32), 0.0, 1.0),
        (np.zeros(N, np.float32), -1.0, 1.0),
        (np.zeros(N, np.float32), np.nan, 1.0),
        (np.zeros(N, np.float32), np.inf, 1.0),
        (np.zeros(N, np.float32), 1.0, 1.1),
    ],
)
def test_what_a_mean_refuses(vector, weight, damping):
    mean = RunningMean(LAYOUT)
    with pytest.raises(TensorMismatch):
        mean.add(vector, weight, damping)
    assert mean.n_updates == 0


def test_the_plain_optimiser_is_fedavg():
    weights, delta = updates(2)
    np.testing.assert_array_equal(optimizers.plain(N).step(weights, delta), weights + delta)
    np.testing.assert_allclose(optimizers.plain(N, rate=0.5).step(weights, delta), weights + 0.5 * delta, rtol=1e-6)


def test_momentum_by_hand():
    one = np.ones(1, np.float32)
    momentum = optimizers.momentum(1, rate=0.1, decay=0.9)
    weights = [one * 0]
    for _ in range(3):
        weights.append(momentum.step(weights[-1], one))
    np.testing.assert_allclose(np.diff(np.concatenate(weights)), [0.1, 0.19, 0.271], rtol=1e-5)


@pytest.mark.parametrize("kind", ["adam", "yogi"])
def test_adaptive_steps_by_hand(kind):
    """Algorithm 2 of Reddi et al. in plain Python, for one element."""
    deltas, rate, tau = [0.5, -0.2, 0.3, 0.0, 0.001], 0.03, 1e-3
    first, second, weight, expected = 0.0, tau**2, 1.0, []
    for delta in deltas:
        first = 0.9 * first + 0.1 * delta
        if kind == "adam":
            second = 0.99 * second + 0.01 * delta**2
        else:
            second -= 0.01 * delta**2 * np.sign(second - delta**2)
        weight += rate * first / (second**0.5 + tau)
        expected.append(weight)
    optimizer = Optimizer(Settings(kind=kind, rate=rate, adaptivity=tau), 1)
    weights, seen = np.ones(1, np.float32), []
    for delta in deltas:
        weights = optimizer.step(weights, np.array([delta], np.float32))
        seen.append(float(weights[0]))
    np.testing.assert_allclose(seen, expected, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_an_optimiser_goes_on_after_a_restart_with_the_same_bits(kind):
    through = Optimizer(Settings(kind=kind, rate=0.1), N)
    restarted = Optimizer(Settings(kind=kind, rate=0.1), N)
    weights = weights_too = updates(1)[0]
    for delta in updates(5, seed=2):
        weights = through.step(weights, delta)
        restarted = Optimizer.from_bytes(restarted.to_bytes())
        weights_too = restarted.step(weights_too, delta)
    assert weights.tobytes() == weights_too.tobytes()
    assert restarted.n_steps == 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_to_what_is_not_finite_is_not_taken(kind):
    optimizer = Optimizer(Settings(kind=kind, rate=1.0), N)
    weights, delta = updates(2)
    optimizer.step(weights, delta)
    before = optimizer.to_bytes()
    with pytest.raises(TensorMismatch, match="not finite"):
        optimizer.step(weights, np.full(N, np.nan, np.float32))
    with pytest.raises(TensorMismatch, match="was wanted"):
        optimizer.step(weights[:-1], delta)
    assert optimizer.to_bytes() == before


@pytest.mark.parametrize(
    "numbers",
    [{"rate": 0.0}, {"rate": float("nan")}, {"rate": 1.0, "decay_first": 1.0}, {"rate": 1.0, "adaptivity": 0.0}],
)
def test_numbers_that_no_optimiser_works_with(numbers):
    with pytest.raises(BadMessage):
        Settings(kind="adam", **numbers)


@pytest.mark.parametrize("kind", KINDS)
def test_an_optimisers_state_is_read_strictly(kind):
    optimizer = Optimizer(Settings(kind=kind, rate=1.0), N)
    optimizer.step(*updates(2))
    data = optimizer.to_bytes()
    for wrong in (b"", data[:-1], data + b"\0", b"\xc1" * 40, msgspec.msgpack.encode({"settings": 1})):
        with pytest.raises(BadMessage):
            Optimizer.from_bytes(wrong)
    told = msgspec.msgpack.decode(data)
    longer = [vector + b"\0\0\0\0" for vector in told["vectors"]] or [b"\0\0\0\0"]
    with pytest.raises(BadMessage, match="and vectors of"):
        Optimizer.from_bytes(msgspec.msgpack.encode(told | {"vectors": longer}))
    if told["vectors"]:
        wild = [b"\xff\xff\xff\xff" * N] * len(told["vectors"])
        with pytest.raises(BadMessage, match="not finite"):
            Optimizer.from_bytes(msgspec.msgpack.encode(told | {"vectors": wild}))
    with pytest.raises(BadMessage, match="-1 elements"):
        Optimizer.from_bytes(msgspec.msgpack.encode(told | {"n_elements": -1, "vectors": []}))


def test_a_paired_layout_has_a_control_for_each_tensor():
    both = paired(LAYOUT)
    assert both.n_elements == 2 * N
    assert both.names == ("w", "b", "control/w", "control/b")
    weights, controls = halves(np.arange(2 * N, dtype=np.float32))
    assert (weights[0], controls[0]) == (0, N)
    with pytest.raises(TensorMismatch):
        halves(np.zeros(3, np.float32))


def test_the_servers_control_is_the_mean_of_all_devices():
    """Of those too that sent nothing, in rounds of three of five devices; a sixth joins later."""
    rng = np.random.default_rng(3)
    scaffold = Scaffold(LAYOUT)
    weights, own, n_devices = np.zeros(N, np.float32), np.zeros((6, N)), 5
    for number in range(12):
        n_devices = 5 if number < 6 else 6
        mean = RunningMean(paired(LAYOUT))
        for device in rng.permutation(n_devices)[:3]:
            delta = rng.normal(size=N).astype(np.float32)
            change = control_change(delta, scaffold.control, n_steps=4, rate=0.1)
            np.testing.assert_allclose(change, -delta / 0.4 - scaffold.control, rtol=1e-4, atol=1e-5)
            own[device] += change
            mean.add(np.concatenate([delta, change]))
        before = weights
        weights = scaffold.step(weights, mean.mean(), mean.n_updates, n_devices)
        np.testing.assert_allclose(weights - before, mean.mean()[:N], atol=1e-5)
        np.testing.assert_allclose(scaffold.control, own[:n_devices].mean(axis=0), atol=1e-4)
        scaffold = Scaffold.from_bytes(scaffold.to_bytes(), LAYOUT)


def test_scaffold_refuses_what_does_not_fit():
    scaffold = Scaffold(LAYOUT)
    weights, data = np.zeros(N, np.float32), Scaffold(LAYOUT).to_bytes()
    with pytest.raises(TensorMismatch, match="twice"):
        scaffold.step(weights, np.zeros(N + 1, np.float32), 1, 1)
    with pytest.raises(TensorMismatch, match="not finite"):
        scaffold.step(weights, np.full(2 * N, np.inf, np.float32), 1, 1)
    assert not scaffold.control.any()
    for n_steps, rate in ((0, 0.1), (3, 0.0), (3, float("nan"))):
        with pytest.raises(BadMessage, match="say nothing"):
            control_change(weights, weights, n_steps, rate)
    for wrong in (b"", data[:-1], data + b"x"):
        with pytest.raises(BadMessage):
            Scaffold.from_bytes(wrong, LAYOUT)
    with pytest.raises(BadMessage, match="control variate of"):
        Scaffold.from_bytes(data, paired(LAYOUT))
