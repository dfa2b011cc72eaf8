"""The planner's choice: it is the cheapest allowed prospect, keeps what is nearly as good, and is a pure function."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.cost.link import LinkView
from hybrid.schedule.options import Options
from hybrid.schedule.planner import Beliefs, Constraints, GatewayView, Prospect, choose, explained, predicted_s

LOCAL = Prospect(placement="local", head_s=0.200)
OFFLOAD = Prospect(placement="offload", codec="lossless", gateway="g", bytes_up=100_000, bytes_down=1_000, tail_s=0.01)
SPLIT = Prospect(
    placement="split", cut="c" * 16, gateway="g", head_s=0.05, bytes_up=20_000, bytes_down=1_000, tail_s=0.008
)
GOOD = LinkView(rtt_s=0.01, uplink_bps=50e6, downlink_bps=50e6)
POOR = LinkView(rtt_s=0.06, uplink_bps=1e6, downlink_bps=4e6)


def beliefs(link: LinkView | None = GOOD, **changes: object) -> Beliefs:
    gateways = {"g": GatewayView(link=link)} if link is not None else {}
    known = Beliefs(device_speed_ratio=1.0, gateways=gateways, constraints=Constraints())
    return replace(known, **changes)  # type: ignore[arg-type]


def test_sum_of_parts() -> None:
    view = GatewayView(link=POOR, speed_ratio=2.0, queue_s=0.003)
    expected = 3 * 0.05 + 0.06 + 20_000 * 8 / 1e6 + 1_000 * 8 / 4e6 + 0.003 + 2 * 0.008
    assert predicted_s(SPLIT, 3.0, view) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("link", "speed_ratio", "placement"),
    [(GOOD, 1.0, "offload"), (POOR, 1.0, "local"), (POOR, 3.0, "split"), (None, 9.0, "local")],
)
def test_link_and_device_decide(link: LinkView | None, speed_ratio: float, placement: str) -> None:
    decision = choose([LOCAL, OFFLOAD, SPLIT], beliefs(link, device_speed_ratio=speed_ratio))
    assert decision.chosen.placement == placement


def test_a_plan_is_left_only_for_a_clear_gain() -> None:
    slightly_better = replace(OFFLOAD, cut="", codec="none", tail_s=0.0095)
    prospects = [LOCAL, OFFLOAD, slightly_better]
    assert choose(prospects, beliefs()).chosen is slightly_better
    assert choose(prospects, beliefs(), OFFLOAD.key).chosen is OFFLOAD
    much_better = replace(slightly_better, tail_s=0.0001)
    assert choose([LOCAL, OFFLOAD, much_better], beliefs(), OFFLOAD.key).chosen is much_better


@pytest.mark.parametrize(
    ("prospect", "constraints", "words"),
    [
        (replace(OFFLOAD, raw_input=True), Constraints(raw_input_may_leave=False), "raw input may not leave"),
        (replace(OFFLOAD, accuracy_drop=None), Constraints(), "not calibrated"),
        (replace(OFFLOAD, accuracy_drop=0.05), Constraints(), "accuracy drop 0.050 is above 0.010"),
        (OFFLOAD, Constraints(uplink_left_bytes=10.0), "uplink budget"),
        (replace(OFFLOAD, obstacle="cannot run"), Constraints(), "cannot run"),
    ],
)
def test_constraints_refuse_and_say_why(prospect: Prospect, constraints: Constraints, words: str) -> None:
    known = beliefs(constraints=constraints)
    decision = choose([LOCAL, prospect], known)
    assert decision.chosen is LOCAL
    assert words in explained([LOCAL, prospect], decision, known)[1].reason


def test_what_is_not_measured_is_never_chosen() -> None:
    assert choose([LOCAL, replace(SPLIT, head_s=None)], beliefs()).chosen is LOCAL
    assert choose([LOCAL, OFFLOAD], beliefs(LinkView(rtt_s=0.01))).chosen is LOCAL


def test_objective_bytes_keeps_everything_here() -> None:
    assert choose([LOCAL, OFFLOAD, SPLIT], beliefs(objective="bytes")).chosen is LOCAL


seconds = st.floats(1e-4, 1.0)
prospects = st.builds(
    Prospect,
    placement=st.just("split"),
    cut=st.text("abcdef", min_size=16, max_size=16),
    gateway=st.just("g"),
    head_s=seconds,
    encode_s=st.floats(0, 0.01),
    bytes_up=st.integers(0, 10**6),
    tail_s=seconds,
)


@given(st.lists(prospects, max_size=12), st.floats(0.5, 5), st.floats(1e5, 1e9), seconds)
def test_chosen_is_never_beaten_by_more_than_the_switching_gain(
    others: list[Prospect], speed_ratio: float, uplink_bps: float, rtt_s: float
) -> None:
    link = LinkView(rtt_s=rtt_s, uplink_bps=uplink_bps)
    known = beliefs(link, device_speed_ratio=speed_ratio)
    everything = [LOCAL, *others]
    current = everything[-1].key
    decision = choose(everything, known, current)
    best = min(predicted_s(p, speed_ratio, known.gateways.get(p.gateway)) or 0.0 for p in everything)
    assert decision.predicted_s is not None
    assert decision.predicted_s <= max(best / 0.9, best + 0.0005) + 1e-9
    assert choose(everything, known, current) == decision


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"objective": "speed"}, "choose one of latency"),
        ({"placement": "cloud"}, "choose auto, local, offload"),
        ({"placement": "split:xyz"}, "16 hex digits"),
        ({"deadline_s": 0.0}, "above 0"),
        ({"max_accuracy_drop": 2.0}, "ratio from 0 to 1"),
    ],
)
def test_options_say_what_they_want(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Options(**arguments)  # type: ignore[arg-type]
