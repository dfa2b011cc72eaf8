"""The exact minimum cut against trying every set of nodes, and the prefix scan against the exact minimum cut."""

import math
import random
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.graph.normalise import normalise
from hybrid.graph.read import read_view
from hybrid.graph.shape_key import ShapeKey
from hybrid.graph.shapes import infer
from hybrid.partition.mincut import cost_of, crossing, least_head
from hybrid.partition.order import crossing_bytes, cut_orders
from hybrid.partition.wiring import wire
from tests import zoo
from tests.partition.drawn_graphs import graphs, heads, least_on_prefixes

COSTS = st.integers(0, 50)


def _drawn_costs(data, wiring):
    n_nodes, n_tensors = len(wiring.work), len(wiring.names)
    return [data.draw(st.lists(COSTS, min_size=n, max_size=n)) for n in (n_nodes, n_nodes, n_tensors)]


@settings(deadline=None, max_examples=300)
@given(view=graphs(), data=st.data())
def test_the_minimum_cut_is_the_least_of_all_divisions(view, data):
    wiring = wire(view)
    costs = _drawn_costs(data, wiring)
    best = least_head(wiring, *costs)
    every = {head: cost_of(wiring, head, *costs) for head in heads(wiring)}
    assert best in every  # closed under ancestors: nothing flows from tail to head
    assert every[best] == min(every.values())
    assert all(len(best) <= len(head) for head, cost in every.items() if cost == every[best])


@settings(deadline=None, max_examples=200)
@given(view=graphs(), data=st.data())
def test_nodes_that_are_not_free_stay_where_they_are_put(view, data):
    wiring = wire(view)
    costs = _drawn_costs(data, wiring)
    every = sorted(heads(wiring), key=sorted)
    low, high = data.draw(st.sampled_from(every)), data.draw(st.sampled_from(every))
    low, high = low & high, low | high
    chosen = low | least_head(wiring, *costs, free=sorted(high - low), always_head=low)
    between = [cost_of(wiring, head, *costs) for head in every if low <= head <= high]
    assert cost_of(wiring, chosen, *costs) == min(between)


@settings(deadline=None, max_examples=300)
@given(view=graphs(), per_byte=st.integers(0, 1000), per_work=st.integers(0, 1000))
def test_the_scan_is_exact_where_the_gateway_is_faster_by_one_factor(view, per_byte, per_work):
    """The theorem of docs/cuts.md, on graphs of any shape: each bandwidth, each ratio of the two speeds."""
    wiring = wire(view)
    head_costs = [round(amount) * per_work for amount in wiring.work]
    nothing = [0] * len(wiring.work)
    bytes_costs = [size * per_byte for size in crossing_bytes(wiring)]
    least = min(cost_of(wiring, head, head_costs, nothing, bytes_costs) for head in heads(wiring))
    assert least_on_prefixes(wiring, cut_orders(view), head_costs, nothing, bytes_costs) == least


@settings(deadline=None, max_examples=150)
@given(view=graphs(), per_byte=st.integers(0, 1000), per_work=st.integers(0, 1000))
def test_the_scan_is_exact_too_where_inputs_must_not_leave(view, per_byte, per_work):
    wiring = wire(view)
    head_costs = [round(amount) * per_work for amount in wiring.work]
    nothing = [0] * len(wiring.work)
    costs = crossing_bytes(wiring)
    heavy = 1 + sum(costs)
    bytes_costs = [
        (heavy if maker < 0 else cost) * per_byte for cost, maker in zip(costs, wiring.producer, strict=True)
    ]
    least = min(cost_of(wiring, head, head_costs, nothing, bytes_costs) for head in heads(wiring))
    assert least_on_prefixes(wiring, cut_orders(view), head_costs, nothing, bytes_costs) == least


@settings(deadline=None, max_examples=200)
@given(view=graphs(), data=st.data())
def test_any_costs_are_met_exactly_on_a_chain_and_never_beaten_elsewhere(view, data):
    """Costs drawn for each node and tensor apart: no single order can hold every division of a branchy graph."""
    wiring = wire(view)
    costs = _drawn_costs(data, wiring)
    exact = cost_of(wiring, least_head(wiring, *costs), *costs)
    scanned = least_on_prefixes(wiring, cut_orders(view), *costs)
    assert scanned >= exact
    if len(list(heads(wiring))) == len(wiring.work) + 1:
        assert scanned == exact


@settings(deadline=None, max_examples=100)
@given(view=graphs(max_nodes=9))
def test_orders_are_topological_and_hold_each_node_once(view):
    wiring = wire(view)
    for order in cut_orders(view):
        assert sorted(order) == list(range(len(view.nodes)))
        place = {node: at for at, node in enumerate(order)}
        for node in order:
            makers = {wiring.producer[tensor] for tensor in wiring.reads[node]} - {-1}
            assert all(place[maker] < place[node] for maker in makers)


@cache
def view_of(name):
    with TemporaryDirectory() as folder:
        shape_key = ShapeKey.of(zoo.feeds(name))
        model = normalise(zoo.path(name), shape_key, Path(folder))
        return read_view(model, infer(model, shape_key, Path(folder)))


def _realistic_costs(wiring, seed):
    """As measured in the field: 2.5-800 Mbit/s, a gateway 3-50 times as fast, each node's ratio off by a factor of its
    own, lognormal(0, 0.5); the input raw, or encoded to a tenth or a fortieth."""
    rng = random.Random(seed)
    total, n_nodes = sum(wiring.work), len(wiring.work)
    local_s, faster = 10 ** rng.uniform(-1.5, 1), rng.uniform(3, 50)
    bytes_per_s = 10 ** rng.uniform(math.log10(2.5e6 / 8), math.log10(800e6 / 8))
    input_ratio = rng.choice([1, 0.1, 0.025])
    shares = [amount / total + 0.02 / n_nodes for amount in wiring.work]
    head_ns = [int(1e9 * local_s * share * math.exp(rng.gauss(0, 0.5))) for share in shares]
    tail_ns = [int(1e9 * local_s / faster * share * math.exp(rng.gauss(0, 0.5))) for share in shares]
    crossing_ns = [
        int(1e9 * size / bytes_per_s * (input_ratio if maker < 0 else 1))
        for size, maker in zip(crossing_bytes(wiring), wiring.producer, strict=True)
    ]
    return head_ns, tail_ns, crossing_ns


SEVERAL_INPUTS = ("silero", "minilm")
"""Here a side chain of a few bytes (a sample rate, a mask) may lie on either side; two orders do not hold all."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [*zoo.TRAINED, *zoo.LIGHT])
def test_the_scan_equals_the_minimum_cut_on_random_costs_of_real_graphs(name):
    view = view_of(name)
    slack_ratio = 0.01 if name in SEVERAL_INPUTS else 0.0
    wiring, orders = wire(view), cut_orders(view)

    @settings(deadline=None, max_examples=60)
    @given(seed=st.integers(0, 2**32))
    def check(seed):
        costs = _realistic_costs(wiring, seed)
        exact = cost_of(wiring, least_head(wiring, *costs), *costs)
        assert exact <= least_on_prefixes(wiring, orders, *costs) <= exact * (1 + slack_ratio)

    check()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["ppocr_det", "ppocr_rec", "ppocr_cls", "magika", "resnet50", "shufflenet", "squeezenet"]
)
def test_the_scan_equals_the_minimum_cut_where_splits_are_frequent(name):
    """Inputs up to 10,000 times as dear as their bytes: then half of the best divisions lie inside the graph."""
    view = view_of(name)
    wiring, orders = wire(view), cut_orders(view)
    n_inside = 0
    for seed in range(40):
        head_ns, tail_ns, crossing_ns = _realistic_costs(wiring, seed)
        dearer = 10 ** (seed % 5)
        crossing_ns = [
            cost * dearer if maker < 0 else cost for cost, maker in zip(crossing_ns, wiring.producer, strict=True)
        ]
        best = least_head(wiring, head_ns, tail_ns, crossing_ns)
        n_inside += 0 < len(best) < len(wiring.work)
        exact = cost_of(wiring, best, head_ns, tail_ns, crossing_ns)
        assert least_on_prefixes(wiring, orders, head_ns, tail_ns, crossing_ns) == exact, seed
    assert n_inside >= 10


def test_the_minimum_cut_agrees_with_another_solver():
    """scipy's maximum flow, on a graph too large to try every division."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

    wiring = wire(view_of("ppocr_cls"))
    for seed in range(5):
        head_us, tail_us, crossing_us = ([cost // 1000 for cost in part] for part in _realistic_costs(wiring, seed))
        n_nodes = len(wiring.work)
        edges = [(0, 2 + v, tail_us[v]) for v in range(n_nodes)] + [(2 + v, 1, head_us[v]) for v in range(n_nodes)]
        limit = 2**31 - 1 - 2**20
        for tensor, readers in enumerate(wiring.consumers):
            at = 2 + n_nodes + tensor
            maker = wiring.producer[tensor]
            edges.append((0 if maker < 0 else 2 + maker, at, crossing_us[tensor]))
            edges += [(at, 2 + reader, limit) for reader in readers]
            edges += [(2 + reader, 2 + maker, limit) for reader in readers if maker >= 0]
        start, end, capacity = (np.array(column, np.int32) for column in zip(*edges, strict=True))
        size = 2 + n_nodes + len(wiring.names)
        flow = maximum_flow(csr_array((capacity, (start, end)), shape=(size, size)), 0, 1).flow_value
        ours = least_head(wiring, head_us, tail_us, crossing_us)
        assert cost_of(wiring, ours, head_us, tail_us, crossing_us) == flow


def test_a_tensor_with_many_readers_is_paid_once():
    view = view_of("ppocr_cls")
    wiring = wire(view)
    shared = max(range(len(wiring.names)), key=lambda tensor: len(wiring.consumers[tensor]))
    assert len(wiring.consumers[shared]) >= 2
    maker = wiring.producer[shared]
    above, stack = {maker}, [maker]
    while stack:
        found = {wiring.producer[tensor] for tensor in wiring.reads[stack.pop()]} - above - {-1}
        above |= found
        stack += found
    assert crossing(wiring, frozenset(above)).count(shared) == 1
