"""What stays open beside the whole model: budget and order of closing, rests that answer as the whole, failures."""

import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from hybrid.errors import PlanError
from hybrid.partition.cut import Cut
from hybrid.partition.prepared import Prepared
from hybrid.route.departure import gone_on, headed
from hybrid.route.engine import Settings, open_piece
from hybrid.route.holding import Holding
from hybrid.route.route import Route
from hybrid.route.this_machine import ThisMachine
from hybrid.route.way import Crossing, Way
from hybrid.schedule.prospect import Prospect
from hybrid.scouting import heads as heads_module
from hybrid.scouting.background import BackgroundEngine
from hybrid.scouting.heads import VARIABLE, OpenHeads, close
from hybrid.transport.client import acquire, release
from hybrid.transport.trust import Trust
from tests.halves import prepare_here
from tests.odd_models import text

N_LAYERS = 5
WIDTH = 512
LAYER_BYTES = WIDTH * WIDTH * 4
FEEDS = {"x": np.random.default_rng(1).standard_normal((1, WIDTH), np.float32)}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Five equal layers of a megabyte: the head of the n-th cut holds n of them."""
    rng = np.random.default_rng(0)
    weights = {f"w{n}": rng.standard_normal((WIDTH, WIDTH), np.float32) / WIDTH**0.5 for n in range(N_LAYERS)}
    layers = " ".join(f"m{n} = MatMul(t{n}, w{n}) t{n + 1} = Tanh(m{n})" for n in range(N_LAYERS))
    body = f"g (float[1,{WIDTH}] x) => (float[1,{WIDTH}] y) {{ t0 = Identity(x) {layers} y = Exp(t{N_LAYERS}) }}"
    folder = tmp_path_factory.mktemp("heads")
    onnx.save(text(body, **weights), folder / "model.onnx")
    return prepare_here(folder / "model.onnx", FEEDS, folder / "cache")


@pytest.fixture(autouse=True)
def _no_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models count like large ones, by their bytes alone."""
    monkeypatch.setattr(heads_module, "LEAST_BYTES", 0)
    monkeypatch.setattr(heads_module, "MOST_HEADS", N_LAYERS)


@pytest.fixture
def engine(prepared: Prepared) -> BackgroundEngine:
    settings = Settings()
    return BackgroundEngine(open_piece(prepared.graph_path, settings).run, partial(open_piece, settings=settings))


@pytest.fixture
def holding() -> Iterator[Holding]:
    """A gateway that is away."""
    client = acquire("http://127.0.0.1:9", None, trust=Trust())
    yield Holding(client, None, {}, ("none", "q8z"))
    release(client)


@pytest.fixture
def crossings(prepared: Prepared, holding: Holding) -> list[Crossing]:
    """One for the activation after each layer but the last, shallowest first."""
    return [crossing_of(prepared.table.get(cut.id), holding) for cut in after_layers(prepared)]


def after_layers(prepared: Prepared) -> list[Cut]:
    by_tensor = {cut.tensors[0].name: cut for cut in prepared.table.interior if len(cut.tensors) == 1}
    return [by_tensor[f"t{n}"] for n in range(1, N_LAYERS)]


def crossing_of(cut: Cut, holding: Holding, codec: str = "none") -> Crossing:
    crossing = Crossing(holding, cut, verified=True)
    prospect = Prospect(placement="split", cut=cut.id, codec=codec, gateway=holding.client.url)
    crossing.ways.append(Way(prospect, crossing))
    return crossing


def allowed(monkeypatch: pytest.MonkeyPatch, n_layers: float) -> None:
    monkeypatch.setenv(VARIABLE, str((n_layers + 0.1) / N_LAYERS))


def route_of(engine: BackgroundEngine, local_s: float = 10.0) -> Route:
    """A route that knows its sample, the whole model's answer, and a whole that takes long."""
    route = Route((("x", (1, WIDTH)),), "latency", ThisMachine(n_cores=2, attempt_s=0.0))
    route.take_sample(FEEDS)
    route.reference, _ = engine.timed_whole(["y"], FEEDS, n_runs=1)
    route.scheduler.profile_local(local_s, is_settled=True)
    return route


def open_all(heads: OpenHeads, prepared: Prepared, crossings: list[Crossing]) -> None:
    for crossing in crossings:
        heads.open(prepared, crossing, crossings)


def open_heads(crossings: list[Crossing]) -> list[bool]:
    return [crossing.head is not None for crossing in crossings]


def open_rests(crossings: list[Crossing]) -> list[bool]:
    return [crossing.rest is not None for crossing in crossings]


def test_a_head_above_the_budget_is_said_and_never_opened(prepared, engine, crossings, monkeypatch) -> None:
    allowed(monkeypatch, 2)
    heads = OpenHeads(engine)
    said = [heads.obstacle(prepared, crossing.cut) for crossing in crossings]
    assert [bool(why) for why in said] == [False, False, True, True]
    assert "its head would hold 3 MB of weights beside the whole model, 2 are allowed" in said[2]
    assert VARIABLE in said[2]


@pytest.mark.parametrize("value", ["nonsense", "-1", "inf", "nan", ""])
def test_a_ratio_that_makes_no_sense_is_the_usual_one(value, prepared, engine, monkeypatch) -> None:
    monkeypatch.setenv(VARIABLE, value)
    assert OpenHeads(engine).budget_bytes(prepared) == pytest.approx(0.2 * N_LAYERS * LAYER_BYTES, rel=0.01)


def test_what_loading_left_unused_may_be_used_but_no_more_than_the_model_weighs(prepared, engine) -> None:
    whole_bytes = OpenHeads(engine).budget_bytes(prepared) / 0.2
    for given_back_bytes, more_bytes in ((0, 0), (LAYER_BYTES, LAYER_BYTES), (10**12, whole_bytes)):
        found_bytes = OpenHeads(engine, given_back_bytes).budget_bytes(prepared)
        assert found_bytes == pytest.approx(0.2 * whole_bytes + more_bytes, rel=0.01)


def test_the_worst_are_closed_first_and_only_as_many_as_must_be(prepared, engine, crossings, monkeypatch) -> None:
    allowed(monkeypatch, 6)
    heads = OpenHeads(engine)
    open_all(heads, prepared, crossings[:3])  # 1 + 2 + 3 layers
    best_last = [crossings[1], crossings[0], crossings[2], crossings[3]]
    assert heads.open(prepared, crossings[3], best_last)  # 4 more: 2 and 1 are not enough, so 3 as well
    assert open_heads(crossings) == [False, False, False, True]
    assert not any(crossing.verified for crossing in crossings[:3])
    assert not heads.open(prepared, crossings[1], best_last)  # 4 + 2: there is room
    assert open_heads(crossings) == [False, True, False, True]
    assert not heads.open(prepared, crossings[1], best_last)


def test_making_room_leaves_the_offload_alone(prepared, engine, holding, crossings, monkeypatch) -> None:
    allowed(monkeypatch, 2)
    offload = Crossing(holding, None, verified=True)
    heads = OpenHeads(engine)
    heads.open(prepared, crossings[1], [offload, *crossings])
    assert heads.open(prepared, crossings[0], [offload, *crossings])
    assert open_heads(crossings) == [True, False, False, False]
    assert offload.verified


def test_the_best_keep_their_heads(prepared, engine, crossings, monkeypatch) -> None:
    monkeypatch.setenv(VARIABLE, "9")
    open_all(OpenHeads(engine), prepared, crossings)
    allowed(monkeypatch, 5)
    heads = OpenHeads(engine)
    best_first = [crossings[2], crossings[3], crossings[1], crossings[0]]  # 3, 4, 2, 1 layers
    assert heads.fitting(prepared, best_first) == [crossings[2], crossings[1]]


def test_no_more_heads_are_open_than_may_be_though_they_fit(prepared, engine, crossings, monkeypatch) -> None:
    monkeypatch.setenv(VARIABLE, "9")
    monkeypatch.setattr(heads_module, "MOST_HEADS", 2)
    heads = OpenHeads(engine)
    open_all(heads, prepared, crossings[:2])
    assert heads.open(prepared, crossings[2], crossings)
    assert open_heads(crossings) == [False, True, True, False]
    crossings[0].head = crossings[1].head
    assert heads.fitting(prepared, crossings) == crossings[:2]


def test_two_gateways_share_a_head_and_its_rest(prepared, engine, holding, monkeypatch) -> None:
    allowed(monkeypatch, 5)
    pair = [crossing_of(after_layers(prepared)[1], holding) for _ in range(2)]
    heads = OpenHeads(engine)
    open_all(heads, prepared, pair)
    assert pair[0].head is pair[1].head is not None
    heads.go_on(prepared, route_of(engine), ("y",), pair)
    assert pair[0].rest is pair[1].rest is not None


def test_a_request_ends_with_the_head_that_it_began_with(prepared, engine, crossings, monkeypatch) -> None:
    """Threads run heads and rests while both are closed and opened again: right answers, or another way."""
    allowed(monkeypatch, 5)
    heads, route, crossing = OpenHeads(engine), route_of(engine), crossings[2]
    heads.open(prepared, crossing, [crossing])
    heads.go_on(prepared, route, ("y",), [crossing])
    wrong: list[object] = []
    n_right, is_over = [0, 0, 0], threading.Event()

    def request(at: int) -> None:
        while not is_over.is_set():
            try:
                here = headed(crossing.ways[0], FEEDS, ("y",))
            except PlanError:
                continue  # it was closed at that moment
            if here.rest is None:
                continue
            found = gone_on(here, ("y",))
            if not np.allclose(found[0], route.reference[0], rtol=1e-5):
                wrong.append(found)
            n_right[at] += 1

    threads = [threading.Thread(target=request, args=(at,)) for at in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(8):
        close(crossing)
        heads.open(prepared, crossing, [crossing])
        heads.go_on(prepared, route, ("y",), [crossing])
        time.sleep(0.02)
    is_over.set()
    for thread in threads:
        thread.join(20)
    assert not wrong
    assert all(n_right)


@pytest.mark.parametrize("codec", ["none", "q8z"])
def test_the_device_goes_on_from_its_own_exact_activation(codec, prepared, engine, holding, monkeypatch) -> None:
    allowed(monkeypatch, 5)
    crossing, route = crossing_of(after_layers(prepared)[2], holding, codec), route_of(engine)
    heads = OpenHeads(engine)
    heads.open(prepared, crossing, [crossing])
    assert headed(crossing.ways[0], FEEDS, ("y",)).rest is None
    heads.go_on(prepared, route, ("y",), [crossing])
    here = headed(crossing.ways[0], FEEDS, ("y",))
    plain = onnxruntime.InferenceSession(prepared.head_path(crossing.cut.id)).run(["t3"], FEEDS)[0]
    assert np.array_equal(here.held["t3"], plain)
    assert isinstance(here.crossing["t3"], np.ndarray) == (codec == "none")  # levels cross
    np.testing.assert_allclose(gone_on(here, ("y",))[0], route.reference[0], rtol=1e-5)
    assert crossing.ways[0].prospect.rest_s == crossing.rest.rest_s > 0


def test_a_run_from_the_activation_can_be_stopped(prepared, engine, crossings, monkeypatch) -> None:
    allowed(monkeypatch, 5)
    heads, route = OpenHeads(engine), route_of(engine)
    heads.open(prepared, crossings[0], crossings)
    heads.go_on(prepared, route, ("y",), crossings[:1])
    options = onnxruntime.RunOptions()
    options.terminate = True
    with pytest.raises(Exception, match="terminate"):
        gone_on(headed(crossings[0].ways[0], FEEDS, ("y",)), ("y",), options)


def test_rests_get_what_the_heads_leave_and_give_way_to_them(prepared, engine, crossings, monkeypatch) -> None:
    allowed(monkeypatch, 5)
    heads, route = OpenHeads(engine), route_of(engine)
    open_all(heads, prepared, crossings[:2])  # 1 + 2 layers; 2 are left, and their rests hold 4 and 3
    heads.go_on(prepared, route, ("y",), [crossings[1], crossings[0]])
    assert open_rests(crossings) == [False, False, False, False]
    close(crossings[0])
    heads.go_on(prepared, route, ("y",), [crossings[1]])
    assert open_rests(crossings) == [False, True, False, False]
    assert not heads.open(prepared, crossings[0], crossings)  # no head is closed for it, the rest is
    assert open_heads(crossings) == [True, True, False, False]
    assert open_rests(crossings) == [False, False, False, False]
    assert crossings[1].ways[0].prospect.rest_s is None


def test_a_rest_that_cannot_be_had_is_done_without(prepared, engine, crossings, monkeypatch, caplog) -> None:
    """A damaged file, or other answers than the model's."""
    allowed(monkeypatch, 5)
    for spoil, said in ((damage, "rest.unusable"), (other_answer, "differs from the whole model")):
        heads, route, crossing = OpenHeads(engine), route_of(engine), crossings[1]
        heads.open(prepared, crossing, [crossing])
        path = prepared.tail_path(crossing.cut.id)
        content = path.read_bytes()
        heads._n_bytes(prepared, crossing.cut.id, "tail")  # the size is known from before the damage
        spoil(path, route)
        caplog.clear()
        for _ in range(2):
            heads.go_on(prepared, route, ("y",), [crossing])
        path.write_bytes(content)
        assert crossing.rest is None, spoil
        assert crossing.ways[0].prospect.rest_s is None
        assert caplog.text.count("rest.unusable") == 1  # it is not tried again
        assert said in caplog.text
        here = headed(crossing.ways[0], FEEDS, ("y",))
        with pytest.raises(PlanError, match="compute from the inputs"):
            gone_on(here, ("y",))


def test_a_rest_that_saves_hardly_anything_is_not_opened(prepared, engine, crossings, monkeypatch) -> None:
    allowed(monkeypatch, 5)
    heads, route = OpenHeads(engine), route_of(engine)
    heads.open(prepared, crossings[0], crossings)
    monkeypatch.setattr(heads_module, "GAIN_RATIO", crossings[0].cut.head_work_ratio + 0.01)
    heads.go_on(prepared, route, ("y",), crossings[:1])
    assert crossings[0].rest is None
    monkeypatch.setattr(heads_module, "GAIN_RATIO", crossings[0].cut.head_work_ratio - 0.01)
    heads.go_on(prepared, route, ("y",), crossings[:1])
    assert crossings[0].rest is not None


def test_a_rest_never_counts_for_more_than_the_whole(prepared, engine, crossings, monkeypatch) -> None:
    """Or a measurement on a busy machine would have the planner believe that going on is worse than beginning anew."""
    allowed(monkeypatch, 5)
    heads, route = OpenHeads(engine), route_of(engine, local_s=1e-9)
    heads.open(prepared, crossings[1], crossings)
    heads.go_on(prepared, route, ("y",), crossings[1:2])
    assert crossings[1].ways[0].prospect.rest_s == route.local_s


def damage(path: Path, _: Route) -> None:
    path.write_bytes(b"not a model")


def other_answer(_: Path, route: Route) -> None:
    route.reference = [array + 1 for array in route.reference or ()]
