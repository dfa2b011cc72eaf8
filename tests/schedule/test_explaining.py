"""What people are told of each prospect: its expected seconds, and why it is taken or not."""

from dataclasses import replace

import msgspec
import pytest

from hybrid.schedule.beliefs import GatewayBelief, Inputs
from hybrid.schedule.deciding import decide
from hybrid.schedule.explaining import MOST_ROWS, Alternative, alternatives, candidates
from hybrid.schedule.options import Options
from hybrid.schedule.prices import PRICES
from hybrid.schedule.prospect import Constraints, Prospect
from hybrid.schedule.table import Table
from hybrid.schedule.weighing import Weighing

LOCAL = Prospect(placement="local", head_s=0.200)
OFFLOAD = Prospect(placement="offload", codec="lossless", gateway="g", bytes_up=100_000, bytes_down=1_000, tail_s=0.01)
SPLIT = Prospect(
    placement="split", cut="c" * 16, gateway="g", head_s=0.05, bytes_up=20_000, bytes_down=1_000, tail_s=0.008
)
BELIEF = GatewayBelief(url="g", is_usable=True, rtt_s=0.06, uplink_bps=1e6, downlink_bps=4e6)


def rows_of(
    *remote: Prospect, chosen: int | None = None, belief: GatewayBelief = BELIEF, **constraints: object
) -> tuple[Alternative, ...]:
    table = Table((LOCAL, *remote))
    inputs = Inputs(
        table=table.id,
        now_s=1.0,
        prices=PRICES["energy"],
        constraints=Constraints(**constraints),  # type: ignore[arg-type]
        gateways=(belief,),
    )
    return alternatives(Weighing(inputs, table), decide(inputs, table).index if chosen is None else chosen)


def test_every_prospect_has_its_reason() -> None:
    rows = rows_of(replace(SPLIT, cut="d" * 16, tail_s=None), OFFLOAD, SPLIT)
    assert [row.prospect.cut[:1] for row in rows] == ["", "c", "", "d"], "the device's, the cheapest, ..."
    assert [row.chosen for row in rows] == [False, True, False, False]
    assert rows[1].reason == "the cheapest"
    assert rows[2].reason.endswith("ms more than the cheapest")
    assert rows[3].reason == "not timed yet"
    kept = rows_of(SPLIT, chosen=0)
    assert kept[0].reason.startswith("kept: ")
    assert kept[0].chosen


def test_what_cannot_be_reached_says_so() -> None:
    away = replace_belief(is_usable=False)
    assert "no connection, or left alone" in rows_of(SPLIT, belief=away)[1].reason
    unknown = replace_belief(uplink_bps=None, downlink_bps=None)
    assert rows_of(SPLIT, belief=unknown)[1].reason == "nothing is known of its link"


def replace_belief(**changes: object) -> GatewayBelief:
    return msgspec.structs.replace(BELIEF, **changes)


def test_a_candidate_says_what_the_decision_would_be() -> None:
    found = candidates(rows_of(OFFLOAD, SPLIT), [], Constraints())
    chosen = next(row for row in found if row.chosen)
    table = Table((LOCAL, OFFLOAD, SPLIT))
    decision = decide(Inputs(table=table.id, now_s=1.0, prices=PRICES["energy"], gateways=(BELIEF,)), table)
    assert (chosen.placement, chosen.predicted_s, chosen.hedge_s) == (
        table.prospects[decision.index].placement,
        decision.predicted_s,
        decision.hedge_s,
    )


def test_there_are_never_more_than_can_be_read() -> None:
    many = [replace(SPLIT, cut=f"{n:016x}", bytes_up=1000 * n) for n in range(60)]
    others = [replace(SPLIT, cut=f"{n:016x}", obstacle="differs") for n in range(100, 110)]
    found = candidates(rows_of(*many, chosen=55), others, Constraints())
    assert len(found) == MOST_ROWS
    assert found[0].placement == "local"
    assert found[1].chosen
    assert found[-1].reason.endswith("(31 more ways are not shown)")


def test_what_is_not_offered_yet_says_why() -> None:
    others = [replace(SPLIT, obstacle="differs"), replace(OFFLOAD, raw_input=True), OFFLOAD]
    local, *rows = candidates(rows_of(), others, Constraints(raw_input_may_leave=False))
    assert local.chosen
    reasons = [row.reason for row in rows]
    assert reasons == ["differs", "the model's raw input may not leave this machine", "not verified yet"]
    assert {row.predicted_s for row in rows} == {None}


@pytest.mark.parametrize(
    ("prospect", "constraints", "words"),
    [
        (replace(OFFLOAD, raw_input=True), {"raw_input_may_leave": False}, "raw input may not leave"),
        (replace(OFFLOAD, accuracy_drop=None), {}, "codec lossless is lossy and not calibrated"),
        (replace(LOCAL, variant="int8", accuracy_drop=None), {}, "variant int8 is lossy and not calibrated"),
        (replace(OFFLOAD, accuracy_drop=0.05), {}, "accuracy drop 0.050 is above 0.010"),
        (OFFLOAD, {"uplink_left_bytes": 10.0}, "uplink budget"),
        (replace(OFFLOAD, obstacle="cannot run"), {}, "cannot run"),
    ],
)
def test_constraints_refuse_and_say_why(prospect: Prospect, constraints: dict[str, object], words: str) -> None:
    row = rows_of(prospect, **constraints)[1]
    assert words in row.reason
    assert row.predicted_s is None


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
