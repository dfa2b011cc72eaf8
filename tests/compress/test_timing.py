"""Timing: side by side, on this machine, scaled, and through what fails."""

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compression.errors import NotMeasurable
from devices.catalog.load import device
from hybrid.compress.making.recipe import Recipe
from hybrid.compress.timing.choice import timer_for
from tests.compress import nets

FEEDS = {"x": nets.samples(1, 1)[0]}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A net and one of a tenth of its work."""
    folder = tmp_path_factory.mktemp("pair")
    return [nets.graph(folder / "wide.onnx", channels=(64, 64)), nets.graph(folder / "narrow.onnx", channels=(8, 8))]


@pytest.mark.slow
def test_the_larger_of_two_models_takes_longer_and_more_memory(job, pair):
    with timer_for(replace(job, threads=1)) as timer:
        wide, narrow = timer(pair, FEEDS)
        assert wide.p50_s > 2 * narrow.p50_s > 0
        assert wide.low_s <= wide.p50_s <= wide.p95_s
        assert wide.n == narrow.n >= 7
        assert timer.memory_bytes(pair[0], FEEDS) > 0
        assert timer.told.kind == "this machine"


@pytest.mark.slow
def test_an_emulated_machine_is_scaled_and_says_that_its_kernels_are_this_machines(job, pair):
    with (
        timer_for(replace(job, device="rpi-4b", emulation="scaled"), factor=7.0) as slow,
        timer_for(replace(job, threads=1)) as here,
    ):
        [there], [mine] = slow(pair[:1], FEEDS), here(pair[:1], FEEDS)
        assert 2 < there.low_s / mine.low_s < 25
        assert slow.told.kind == "scaled"
        assert any("kernels are this machine's" in remark for remark in slow.told.remarks)
        assert slow.power.compute_w == pytest.approx(device("rpi-4b").idle_w + device("rpi-4b").core_w, rel=0.3)


def test_a_model_that_does_not_run_is_said_so(job, pair, tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    with timer_for(replace(job, threads=1)) as timer, pytest.raises(NotMeasurable, match="could not be timed"):
        timer([pair[1], tmp_path / "broken.onnx"], FEEDS)


@pytest.mark.parametrize("threads", [1, 4])
def test_under_a_quota_each_thread_computes_for_longer_than_its_share(job, pair, monkeypatch, threads):
    """Processor seconds are of all threads: 5 ms of four were 1.25 ms of each, and ran unslowed now and then."""
    asked: list[dict] = []

    def worked(task: dict, *_: object) -> dict:
        asked.append(task)
        return {"seconds": [[1.0]]}

    monkeypatch.setattr("hybrid.compress.timing.timer._worked", worked)
    with timer_for(replace(job, threads=threads)) as timer:
        replace(timer, slowdown=Rested())(pair[:1], FEEDS)
    assert asked[0]["block_s"] == pytest.approx(0.005 * threads)


class Rested:
    """A slowdown of nothing."""

    groups = ()
    environment: ClassVar[dict[str, str]] = {}

    def close(self) -> None: ...


def test_text_goes_in_as_text(job, tmp_path):
    ends = [helper.make_tensor_value_info(name, TensorProto.STRING, [2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "s.onnx")
    with timer_for(replace(job, threads=1)) as timer:
        timer = replace(timer, budget_s=0.1)
        assert timer([tmp_path / "s.onnx"], {"x": np.array(["a", "b"], object)})[0].n >= 7


def test_the_workers_own_speed_is_no_part_of_the_ratio(job, pair):
    """The same model twice: neither gains."""
    with timer_for(replace(job, threads=1)) as timer:
        one, other = timer([pair[0], pair[0]], FEEDS)
    assert one.low_s / other.low_s == pytest.approx(1, abs=0.5)


def test_the_staircase_is_measured_in_one_thread_and_in_int8_where_that_is_shipped(job):
    from hybrid.compress.search.staircase import _in_one_thread, _int8_stack

    with timer_for(replace(job, threads=4)) as timer:
        alone = _in_one_thread(timer)
    assert (timer.told.threads, alone.told.threads) == (4, 1)
    assert alone.told.name == timer.told.name
    slowed = _in_one_thread(replace(timer, told=msgspec.structs.replace(timer.told, factor=9.0), slowdown=Rested()))
    assert (slowed.slowdown, slowed.scale) == (None, 9.0), "the kernels are this machine's: steps are not slowed down"
    stack = _int8_stack(Recipe(precision="int8", activations="int8"))(48)
    assert "QuantizeLinear" in {node.op_type for node in stack.graph.node}
    assert [value.name for value in stack.graph.input] == ["x"]
