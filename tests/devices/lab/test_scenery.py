"""Link classes and traces as shapes and steps."""

from pathlib import Path

import pytest

from devices.errors import EmulationError
from devices.lab.scenery import link_of, shape_of, steps_from, steps_of
from devices.link_class import LinkClass, Rates
from devices.shape import MIN_QUEUE_BYTES, Direction, Shape, Step, sound_steps
from devices.trace import Trace

LINK = LinkClass(
    name="there",
    title="There",
    up=Rates.steady(8e6),
    down=Rates.steady(40e6),
    rtt_s=0.05,
    jitter_s=0.004,
    loss_ratio=0.01,
)


def test_a_link_class_is_a_shape() -> None:
    shape = shape_of(LINK)
    assert (shape.up.rate_bps, shape.down.rate_bps) == (8e6, 40e6)
    assert shape.rtt_s == pytest.approx(0.05)
    assert shape.up.loss_ratio == shape.down.loss_ratio == 0.01
    assert shape.up.jitter_s == pytest.approx(0.006)


def test_what_a_link_may_be_given_as() -> None:
    assert link_of(LINK) == (shape_of(LINK), "there")
    assert link_of(Shape()) == (Shape(), "as given")
    assert link_of(None) == (Shape(), "no limits")


def test_a_trace_is_steps_and_an_outage_a_blackhole(tmp_path: Path) -> None:
    trace = Trace.of_rows([(0.0, 8e6, 4e7, 0.05, 0.0), (2.0, 0.0, 0.0, 0.05, 0.0), (3.0, 1e6, 2e6, 0.1, 0.02)], 5.0)
    steps = steps_of(trace, jitter_s=0.002)
    assert [step.at_s for step in steps] == [0.0, 2.0, 3.0]
    assert [step.shape.up.open for step in steps] == [True, False, True]
    assert steps[2].shape.rtt_s == pytest.approx(0.1)
    assert steps[2].shape.down.loss_ratio == 0.02
    assert steps[0].shape.up.jitter_s == pytest.approx(0.003)
    trace.write(tmp_path / "trace.csv")
    assert steps_from(tmp_path / "trace.csv") == steps_of(trace)


def test_the_queue_is_a_bandwidth_delay_product_unless_it_is_given() -> None:
    fast = Shape.even(rate_bps=100e6, rtt_s=0.08)
    assert fast.queue_bytes(fast.up) == 1_000_000
    slow = Shape.even(rate_bps=1e6, rtt_s=0.08)
    assert slow.queue_bytes(slow.up) == MIN_QUEUE_BYTES
    assert slow.queue_bytes(Direction(queue_bytes=3000)) == 3000


@pytest.mark.parametrize(
    ("times_s", "loop_s"), [((), 0.0), ((0.0, 0.0), 0.0), ((-1.0,), 0.0), ((0.0, 2.0), 2.0), ((0.0, float("inf")), 0.0)]
)
def test_steps_that_are_none_are_refused(times_s: tuple[float, ...], loop_s: float) -> None:
    with pytest.raises(EmulationError, match="trace"):
        sound_steps([Step(at_s=at_s, shape=Shape()) for at_s in times_s], loop_s)


@pytest.mark.parametrize(
    "bad",
    [
        {"jitter_s": -1.0},
        {"loss_ratio": 1.1},
        {"reorder_ratio": -0.1},
        {"loss_burst_packets": 0.5},
        {"queue_bytes": -1},
    ],
)
def test_impossible_directions_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(EmulationError):
        Direction(**bad)
