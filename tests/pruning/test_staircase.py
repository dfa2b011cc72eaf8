"""The step of a device's kernels from times: made-up ones with noise, and this machine's own."""

import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compression.measuring import Timing
from compression.pruning.staircase import (
    MULTIPLES,
    TOP,
    Staircase,
    conv_stack,
    measured_widths,
    stack_feeds,
    staircase,
    step,
)


def times(block: int, rng: np.random.Generator | None = None, noise: float = 0.0) -> dict[int, float]:
    """A device that rounds channels up to a block."""
    spread = rng or np.random.default_rng(0)
    return {
        width: 1e-5 * (-(-width // block) * block) ** 2 * (1 + noise * abs(spread.standard_normal()))
        for width in measured_widths()
    }


@pytest.mark.parametrize("block", MULTIPLES)
def test_the_block_is_found(block) -> None:
    assert step(times(block)) == block


@given(st.sampled_from((4, 8, 16, 32)), st.integers(0, 2**31))
def test_the_block_is_found_in_noise(block, seed) -> None:
    assert step(times(block, np.random.default_rng(seed), noise=0.005), noise_ratio=0.005) == block


def test_no_step_where_nothing_is_faster() -> None:
    assert step(dict.fromkeys(measured_widths(), 1.0)) is None
    assert step(times(1), noise_ratio=0.8) is None


def test_a_slower_odd_width_is_no_step() -> None:
    seconds = times(16)
    for width in (63, 62, 60):
        seconds[width] *= 1.3
    assert step(seconds) == 16


class Device:
    """Times models by their width as a device with blocks would, each round with noise of its own."""

    def __init__(self, block: int) -> None:
        self.block, self.rng, self.n_calls = block, np.random.default_rng(0), 0

    def __call__(self, models, feeds) -> list[Timing]:
        self.n_calls += 1
        assert feeds["x"].shape == (1, 16, 56, 56)
        known = times(self.block, self.rng, noise=0.01)
        return [
            Timing(p50_s=2 * known[int(path.stem)], p95_s=3 * known[int(path.stem)], low_s=known[int(path.stem)], n=9)
            for path in models
        ]


def test_rounds_are_measured_side_by_side() -> None:
    device = Device(8)
    found = staircase(device, rounds=4)
    assert device.n_calls == 4
    assert (found.multiple, found.clear) == (8, True)
    assert 0 < found.noise_ratio < 0.02
    assert list(found.seconds) == measured_widths()


def test_other_work_in_one_round_moves_nothing_and_in_many_makes_it_unclear() -> None:
    """A round that is disturbed shows steps of its own; the median of all does not."""

    class Disturbed(Device):
        def __init__(self, every: int) -> None:
            super().__init__(8)
            self.every = every

        def __call__(self, models, feeds) -> list[Timing]:
            quiet = super().__call__(models, feeds)
            if self.n_calls % self.every:
                return quiet
            return [
                Timing(p50_s=one.p50_s * (1.5 + 0.5 * (at % 2)), p95_s=1.0, low_s=one.low_s, n=9)
                for at, one in enumerate(quiet)
            ]

    once, often = staircase(Disturbed(5)), staircase(Disturbed(2))
    assert (once.multiple, once.clear) == (8, True)
    assert not often.clear


def test_a_device_without_steps_gets_the_widest() -> None:
    found = staircase(lambda models, feeds: [Timing(p50_s=1.0, p95_s=1.0, low_s=1.0, n=1) for _ in models], rounds=1)
    assert (found.multiple, found.clear) == (MULTIPLES[-1], False)


@pytest.mark.parametrize(
    ("multiple", "width", "expected"),
    [(16, 64, 48), (16, 61, 48), (16, 48, 32), (16, 16, None), (8, 9, 8), (1, 1, None)],
)
def test_the_next_width_that_is_faster(multiple, width, expected) -> None:
    stairs = Staircase(multiple=multiple, seconds={}, noise_ratio=0.0, clear=True)
    assert stairs.next_below(width) == expected


def interleaved(models: list[Path], feeds) -> list[Timing]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]) for path in models]
    seen = np.zeros((12, len(models)))
    for turn in seen:
        for place, session in enumerate(sessions):
            start = time.perf_counter()
            session.run(None, feeds)
            turn[place] = time.perf_counter() - start
    return [
        Timing(
            p50_s=float(np.median(column)), p95_s=float(np.quantile(column, 0.95)), low_s=column.min(), n=len(column)
        )
        for column in seen.T
    ]


def test_this_machine() -> None:
    found = staircase(interleaved, make=lambda width: conv_stack(width, size=28), feeds=stack_feeds(28), rounds=2)
    assert found.multiple in MULTIPLES
    assert found.seconds[32] < found.seconds[TOP]
    assert (found.next_below(64) or 0) <= 64 - found.multiple


def test_stacks_differ_in_nothing_but_width() -> None:
    for width in (48, 61):
        model = conv_stack(width)
        onnx.checker.check_model(model)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        (answer,) = session.run(None, stack_feeds())
        assert answer.shape == (1,)
        assert np.isfinite(answer).all()
