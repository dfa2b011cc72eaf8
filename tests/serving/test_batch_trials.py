"""Trials of batches: what may run together, what pays, and what an operator is told; rows of different cuts meet."""

import asyncio
from pathlib import Path

import msgspec
import numpy as np
import pytest

from hybrid.serving.engines.batch_shelf import BatchSettings, BatchShelf
from hybrid.serving.engines.batch_trial import TRIAL_VERSION, judged, read_batch_times, rows_differ, seeded, varied
from hybrid.serving.engines.loaded_models import LoadedModels
from hybrid.serving.engines.model_facts import facts_of
from hybrid.serving.engines.opening import EngineSettings, open_engine
from hybrid.serving.engines.row_batch import Join, RowBatch
from hybrid.serving.engines.statistics import StatisticsBoard
from hybrid.serving.split.service import SplitService
from hybrid.serving.split.tail_shelf import TailShelf
from hybrid.wire.message import InferRequest
from tests import small_models
from tests.serving.batch_lab import busy, centred, deep, dynamic, executor, mixing, row, served, until, wide
from tests.serving.test_split_service import Folder, Side, same, side, warm

__all__ = ["side"]
pytestmark = pytest.mark.timeout(90)


def opened(path: Path) -> object:
    return open_engine(path, EngineSettings(n_intra_threads=1), facts_of(path))


def test_rows_that_keep_their_results_are_told_from_rows_that_do_not(tmp_path: Path) -> None:
    good, bad = opened(deep(tmp_path / "deep.onnx", 20)), opened(mixing(tmp_path / "mixing.onnx"))
    assert rows_differ(good, good, row(0), 1) == ""
    assert "'y'" in rows_differ(bad, bad, row(0), 1)


def test_rows_of_zeros_are_tried_with_others_too(tmp_path: Path) -> None:
    bad = opened(centred(tmp_path / "centred.onnx"))
    assert "'y'" in rows_differ(bad, bad, {"x": np.zeros((1, 256), np.float32)}, 1)


def test_drawn_requests_keep_types_and_stay_within_the_integers_of_the_request() -> None:
    words = np.array([["a", "b"]], object)
    feeds = {"x": np.array([[3, 9, 5]], np.int32), "y": np.ones((1, 3), np.float16), "z": words}
    drawn = [seeded(feeds, seed, 30.0) for seed in range(20)]
    assert {int(value) for found in drawn for value in found["x"].flat} == set(range(3, 10))
    assert drawn[0]["x"].dtype == np.int32
    assert drawn[0]["y"].dtype == np.float16
    assert max(float(np.abs(found["y"]).max()) for found in drawn) > 10
    assert {value for found in drawn for value in found["z"].flat} == {"a", "b"}


def test_varied_requests_keep_types_and_the_values_of_integers() -> None:
    feeds = {"x": np.arange(6, dtype=np.int64).reshape(1, 6), "y": np.ones((1, 3), np.float16)}
    other = varied(feeds, 2)
    assert sorted(other["x"][0]) == sorted(feeds["x"][0])
    assert not np.array_equal(other["x"], feeds["x"])
    assert other["y"].dtype == np.float16
    assert not np.array_equal(other["y"], feeds["y"])


def test_a_batch_pays_only_where_a_row_is_clearly_cheaper() -> None:
    assert judged("m", 0.010, {1: 0.010, 2: 0.019, 4: 0.037}).outcome == "costs"
    paying = judged("m", 0.010, {1: 0.010, 2: 0.014, 4: 0.020, 8: 0.0396})
    assert (paying.outcome, paying.max_rows) == ("pays", 4)  # 8 rows are hardly cheaper a row than 4
    assert judged("m", 0.005, {1: 0.010, 2: 0.014, 8: 0.038}).outcome == "costs"  # two threads do as well alone
    assert judged("m", 0.010, {1: 0.010, 2: 0.019, 4: 0.040}, always=True).max_rows == 4


async def tried(running: object, path: Path, cache: Path, feeds: dict, **settings: object) -> BatchShelf:
    settings.setdefault("mode", "auto")
    shelf = BatchShelf(running, lambda _: None, cache, BatchSettings(**settings))  # type: ignore[arg-type]
    session = await running.open_whole(served(path))  # type: ignore[attr-defined]
    shelf._consider(session, None, feeds)
    async with asyncio.timeout(60):
        while shelf.verdicts[path.stem,].state == "trying":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return shelf


@pytest.mark.parametrize("make", [mixing, dynamic, centred])
@pytest.mark.parametrize("scale", [0.0, 1.0])
async def test_what_mixes_rows_is_never_batched(tmp_path: Path, make: object, scale: float) -> None:
    path = make(tmp_path / "m.onnx")  # type: ignore[operator]
    feeds = {"x": np.float32(scale) * row(0)["x"]}  # with rows of zeros no trial could tell
    async with executor() as running:
        shelf = await tried(running, path, tmp_path / "cache", feeds, mode="always")
        (verdict,) = shelf.of_model("m")
        assert verdict.state == "mixes"
        assert verdict.reason
        assert running.sessions.peek(("m",)).batch is None


async def test_a_trial_says_what_it_found_and_is_kept_for_the_next_start(tmp_path: Path) -> None:
    path = deep(tmp_path / "m.onnx", 20)
    async with executor() as running:
        (verdict,) = (await tried(running, path, tmp_path / "cache", row(0))).of_model("m")
        assert verdict.state in ("pays", "costs")
        assert "ms alone" in verdict.reason
        assert verdict.row_ms[0] > 0
        assert verdict.row_ms[1] > 0
        session = running.sessions.peek(("m",))
        assert (session.batch is not None) == (verdict.state == "pays")
    kept = list((tmp_path / "cache" / "batches").glob("*.json"))
    assert len(kept) == 1
    stored = msgspec.json.decode(kept[0].read_bytes())
    stored["outcome"], stored["reason"], stored["max_rows"] = "costs", "as it was found before", 1
    kept[0].write_bytes(msgspec.json.encode(stored))
    async with executor() as running:
        (verdict,) = (await tried(running, path, tmp_path / "cache", row(0))).of_model("m")
        assert (verdict.state, verdict.reason) == ("costs", "as it was found before")


async def test_a_verdict_of_another_proof_is_not_believed(tmp_path: Path) -> None:
    path = deep(tmp_path / "m.onnx", 20)
    async with executor() as running:
        await tried(running, path, tmp_path / "cache", row(0))
    (kept,) = (tmp_path / "cache" / "batches").glob("*.json")
    stored = msgspec.json.decode(kept.read_bytes())
    assert stored["version"] == TRIAL_VERSION
    for fields in ({"version": "0.0"}, {"seconds": {}, "outcome": "pays"}, {"max_rows": 99, "outcome": "pays"}):
        kept.write_bytes(msgspec.json.encode(stored | fields))
        assert read_batch_times(kept, stored["machine"]) is None
    kept.write_bytes(msgspec.json.encode(stored | {"outcome": "costs", "reason": "old", "version": "0.0"}))
    async with executor() as running:
        (verdict,) = (await tried(running, path, tmp_path / "cache", row(0))).of_model("m")
        assert verdict.reason != "old"


async def test_only_requests_of_the_shapes_that_were_proved_share_a_run(tmp_path: Path) -> None:
    path = wide(tmp_path / "m.onnx")
    async with executor() as running:
        await tried(running, path, tmp_path / "cache", {"x": np.ones((1, 3, 4), np.float32)}, mode="always")
        batch = running.sessions.peek(("m",)).batch
        assert batch.lane_of({"x": np.ones((1, 3, 4), np.float32)}, None) is not None
        assert batch.lane_of({"x": np.ones((1, 5, 4), np.float32)}, None) is None
        assert batch.lane_of({"x": np.ones((2, 3, 4), np.float32)}, None) is None  # the graph was bound to one row


async def test_requests_that_wait_for_one_another_start_a_trial_and_then_share_runs(tmp_path: Path) -> None:
    path = deep(tmp_path / "m.onnx", 200)
    async with executor() as running:
        shelf = BatchShelf(running, lambda _: None, tmp_path / "cache", BatchSettings(mode="always"))
        session = await running.open_whole(served(path))

        async def client(seed: int) -> None:
            while session.batch is None or not running.pool.rows.get(4):
                found = await running.compute(session, row(seed), None)
                np.testing.assert_allclose(found.outputs[0], np.roll(row(seed)["x"], 200, axis=1), atol=1e-4)

        async with asyncio.timeout(60):
            await asyncio.gather(*(client(seed) for seed in range(4)))
        assert shelf.of_model("m")[0].max_rows > 1


async def test_without_batching_nobody_looks(tmp_path: Path) -> None:
    async with executor() as running:
        shelf = BatchShelf(running, lambda _: None, tmp_path, BatchSettings(mode="off"))
        assert running.pool.on_crowd is None
        assert shelf.verdicts == {}


async def test_a_model_bound_to_one_row_runs_in_batches_and_each_row_is_its_own(side: Side, tmp_path: Path) -> None:
    async with executor() as running:
        path = side.model.path
        shelf = await tried(running, path, tmp_path / "cache", side.feeds, mode="always")
        assert shelf.verdicts["conv",].state == "pays"
        session = running.sessions.peek(("conv",))
        rows_key = ("conv", "rows", side.prepared.shape_key.id)
        many = running.sessions.peek(rows_key)
        assert session.batch.session is many
        (tmp_path / "loop").mkdir()
        feeds = [varied(side.feeds, number) for number in range(3)]
        async with busy(running, small_models.loop(tmp_path / "loop" / "loop.onnx")):
            tasks = [asyncio.ensure_future(running.compute(session, each, None)) for each in feeds]
            await until(lambda: running.pool.n_waiting == 3)
        for each, computed in zip(feeds, await asyncio.gather(*tasks), strict=True):
            wanted = session.run(each)[0]
            np.testing.assert_allclose(computed.outputs[0], wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
            assert computed.n_together == 3
        assert many.n_runs == 1
        running.sessions.drop_key(rows_key)  # as if its memory was needed
        assert session.batch is None
        assert session.crowd == 0


async def test_rows_at_a_shallow_cut_catch_up_with_those_at_a_deeper_one(side: Side, tmp_path: Path) -> None:
    digest, table = side.model.model_digest, side.prepared.table
    shallow_id, deeper_id = [cut.id for cut in table.interior if cut.id in table.pareto][:2]
    async with executor(n_threads=2) as running:
        source = Folder([side.model])
        models, tails = LoadedModels(source, running), TailShelf(running, tmp_path)
        await models.load_wanted()
        split = SplitService(running, models, tails, StatisticsBoard())
        shelf = BatchShelf(running, tails.prepared_of, tmp_path, BatchSettings(mode="always", max_hold_s=0.0))
        requests = {
            cut_id: InferRequest(inputs=side.crossing(cut_id), model_digest=digest, shape_key=side.key, cut=cut_id)
            for cut_id in (shallow_id, deeper_id)
        }
        for request in requests.values():
            same(await warm(split, request), side)

        async def client(cut_id: str) -> None:
            while not running.pool.n_joined:
                same(await warm(split, requests[cut_id]), side)

        async with asyncio.timeout(80):
            await asyncio.gather(*(client(cut_id) for cut_id in (shallow_id, deeper_id) * 4))
        verdict = shelf.verdicts[digest, side.prepared.shape_key.id, shallow_id]
        assert deeper_id in verdict.joins


def test_a_join_is_taken_only_where_it_saves_time() -> None:
    class Session:
        def __init__(self, seconds: dict[int, float]) -> None:
            self.batch = RowBatch(self, seconds, alone_s=0.0, max_rows=8, max_hold_s=0.0)  # type: ignore[arg-type]

    # The rest of the way costs 10 ms however many rows there are; the segment 1 ms a row.
    shallow, deeper = Session({1: 0.011, 8: 0.018}), Session({1: 0.010, 8: 0.010})
    cheap = RowBatch(object(), {1: 0.001, 8: 0.008}, alone_s=0.0, max_rows=8, max_hold_s=0.0)  # type: ignore[arg-type]
    assert Join(shallow, deeper, cheap).gain_s(2, 3) == pytest.approx(0.010)  # type: ignore[arg-type]
    assert Join(shallow, deeper, cheap).gain_s(2, 0) == 0.0  # type: ignore[arg-type]
    assert Join(shallow, deeper, cheap).gain_s(8, 5) == 0.0  # type: ignore[arg-type]  # no room for one more
    assert Join(shallow, deeper, cheap).gain_s(5, 5) == pytest.approx(0.010)  # type: ignore[arg-type]  # three of five
    dear = RowBatch(object(), {1: 0.020, 8: 0.080}, alone_s=0.0, max_rows=8, max_hold_s=0.0)  # type: ignore[arg-type]
    assert Join(shallow, deeper, dear).gain_s(2, 3) < 0  # type: ignore[arg-type]
