"""Gates: what each refuses and says, what it counts, and what it remembers over a restart."""

import re

import numpy as np
import pytest

from hybrid.errors import BadMessage
from hybrid.federated.aggregation.gates import GATES, Accepted, Gates, Limits, Offer, Rejection
from hybrid.federated.aggregation.mean import RunningMean
from hybrid.federated.layout import Layout

LAYOUT = Layout(names=("w",), shapes=((50,),))
LIMITS = Limits(max_staleness=2, updates_per_window=3, window_s=60.0)
VERSIONS = {7: 0, 6: 1, 5: 2, 4: 3}


def update(length: float = 1.0) -> np.ndarray:
    return np.full(50, length / np.sqrt(50), np.float32)


def warm(limits: Limits = LIMITS) -> Gates:
    """Five honest updates of norm 1 from five devices."""
    gates = Gates(limits)
    for number in range(5):
        assert isinstance(judge(gates, f"early-{number}"), Accepted)
    return gates


def judge(gates, device="box", task="task", base=7, vector=None, now_s=1000.0, **more):
    vector = update() if vector is None else vector
    return gates.judge(Offer(device, task, base), vector, LAYOUT, versions=VERSIONS, now_s=now_s, **more)


def one(value: float) -> np.ndarray:
    vector = update()
    vector[3] = value
    return vector


@pytest.mark.parametrize(
    ("more", "gate", "why"),
    [
        ({"vector": one(np.nan)}, "finite", "1 of 50 elements are not finite"),
        ({"vector": one(-np.inf)}, "finite", "1 of 50"),
        ({"vector": update(1000)}, "norm", r"1e\+03 \(update\) is over 4, 4 times the running median"),
        ({"vector": update(4.1)}, "norm", "is over 4"),
        ({"vector": -update(5.0)}, "norm", "is over 4"),
        ({"base": 4}, "base", "3 behind: 2 may be"),
        ({"base": 8}, "base", "is not one of this round's"),
        ({"base": -1}, "base", "is not one of this round's"),
        ({"vector": np.zeros(49, np.float32)}, "shape", r"float32 \(50,\) was wanted"),
        ({"vector": np.zeros(50, np.float64)}, "shape", "float64"),
        ({"vector": np.zeros((1, 50), np.float32)}, "shape", "was wanted"),
        ({"device": "early-0"}, "duplicate", "early-0 has already sent its update for task"),
    ],
)
def test_one_bad_update_is_refused_counted_and_changes_nothing(more, gate, why):
    gates = warm()
    before = gates.to_bytes()
    mean = RunningMean(LAYOUT)
    mean.add(update())
    rejection = judge(gates, **more)
    if isinstance(rejection, Accepted):
        mean.add(more["vector"])
    assert isinstance(rejection, Rejection)
    assert rejection.gate == gate
    assert re.search(why, rejection.reason), rejection.reason
    assert gates.n_rejected == {each: int(each == gate) for each in GATES}
    assert gates.n_accepted == 5
    np.testing.assert_array_equal(mean.mean(), update())
    gates._state.n_rejected.clear()
    gates._state.n_refused_in_a_row = 0
    assert gates.to_bytes() == before


@pytest.mark.parametrize(("base", "behind"), [(7, 0), (6, 1), (5, 2)])
def test_what_passes_says_how_stale_it_is(base, behind):
    accepted = judge(warm(), base=base, vector=update(3.9))
    assert accepted == Accepted({"update": pytest.approx(3.9)}, behind)


def test_a_device_may_send_so_often():
    gates = Gates(LIMITS)
    for number in range(3):
        assert isinstance(judge(gates, task=f"task-{number}", now_s=1000.0 + number), Accepted)
    refused = judge(gates, task="task-3", now_s=1010.0)
    assert refused == Rejection(gate="rate", reason="3 updates from box in 60 s: 3 are allowed")
    assert isinstance(judge(gates, "another", task="task-3", now_s=1010.0), Accepted)
    assert isinstance(judge(gates, task="task-3", now_s=1060.5), Accepted)
    assert isinstance(judge(gates, task="task-4", now_s=5.0), Accepted), "a clock that began anew locks nobody out"


def test_refusals_do_not_count_towards_the_rate():
    gates = Gates(LIMITS)
    for _ in range(20):
        assert isinstance(judge(gates, base=1), Rejection)
    assert isinstance(judge(gates), Accepted)


def test_until_norms_are_known_the_base_bounds_them():
    gates = Gates(LIMITS)
    assert isinstance(judge(gates, "a", vector=update(99.0), base_norm=10.0), Accepted)
    refused = judge(gates, "b", vector=update(101.0), base_norm=10.0)
    assert refused == Rejection(gate="norm", reason="the norm 101 (update) is over 100, 10 times its base's")


def test_a_head_that_begins_near_zero_takes_first_updates():
    """As a head of 650 weights with a norm of 0.06, whose first honest update has the norm 1.8."""
    for base_norm in (0.0, 0.06):
        gates = Gates(LIMITS)
        assert isinstance(judge(gates, "a", vector=update(7.0), base_norm=base_norm), Accepted)
        assert judge(gates, "b", vector=update(7.2), base_norm=base_norm).gate == "norm"


def test_first_updates_that_are_all_too_large_are_taken_in_the_end():
    """And judged beside one another when their round closes."""
    gates = Gates(LIMITS)
    refused = [judge(gates, f"box-{number}", vector=update(50.0)) for number in range(10)]
    assert {each.gate for each in refused} == {"norm"}
    gates = Gates.from_bytes(gates.to_bytes(), LIMITS)
    lengths = (50.0, 60.0, 5000.0, 40.0)
    norms = [judge(gates, f"late-{number}", vector=update(length)).norms for number, length in enumerate(lengths)]
    assert gates.outliers(norms) == (2,)


def test_a_closing_round_looks_again_at_what_came_before_norms_were_known():
    gates = Gates(LIMITS)
    accepted = [
        judge(gates, f"box-{number}", vector=update(length), base_norm=1e3)
        for number, length in enumerate((1, 1000, 1.5, 2))
    ]
    assert gates.outliers([each.norms for each in accepted]) == (1,)
    assert gates.outliers([each.norms for each in accepted][:2]) == ()
    gates.refuse("norm", "too large beside the others")
    assert gates.n_rejected["norm"] == 1


def test_beside_updates_that_say_nothing_an_honest_one_is_no_outlier():
    """Most boxes have nothing to teach: the median norm is zero, and no bound."""
    gates = Gates(LIMITS)
    accepted = [judge(gates, f"idle-{number}", vector=np.zeros(50, np.float32)) for number in range(6)]
    accepted.append(judge(gates, "box"))
    assert all(isinstance(each, Accepted) for each in accepted)
    assert gates.outliers([each.norms for each in accepted]) == ()
    assert judge(gates, "bad", vector=update(1000)).gate == "norm", "bounded by the base, as at first"


def test_an_attackers_norm_that_came_early_is_forgotten_when_its_round_closes():
    """Three of the first five: the round's other seven tell them, and the next round's bar is the honest one."""
    gates = Gates(LIMITS)
    norms = [judge(gates, f"bad-{number}", vector=update(1000), base_norm=1e3).norms for number in range(3)]
    norms += [judge(gates, f"box-{number}").norms for number in range(7)]
    assert gates.outliers(norms) == (0, 1, 2)
    assert judge(gates, "bad-3", vector=update(1000), base_norm=1e3).gate == "norm"
    assert isinstance(judge(gates, "box-8"), Accepted)


def test_a_fleet_that_has_changed_is_not_locked_out():
    gates = warm()
    refused = [judge(gates, f"box-{number}", vector=update(50), base_norm=10.0) for number in range(10)]
    assert {each.gate for each in refused} == {"norm"}
    assert isinstance(judge(gates, "box-10", vector=update(50), base_norm=10.0), Accepted)
    assert judge(gates, "box-11", vector=update(1000), base_norm=10.0).gate == "norm", (
        "bounded by the base, as at first"
    )
    gates = warm()
    for number in range(40):
        assert judge(gates, f"bad-{number}", vector=update(50)).gate == "norm"
        assert isinstance(judge(gates, f"box-{number}"), Accepted), "one accepted between: the median stands"


def test_the_median_follows_training_and_a_minority_does_not_move_it():
    gates = warm()
    for number in range(200):
        judge(gates, f"box-{number}", vector=update(1.0 - 0.004 * number))
    assert isinstance(judge(gates, "late", vector=update(1.6)), Rejection)
    gates = warm()
    for number in range(100):
        judge(gates, f"box-{number}", vector=update(3.9 if number % 5 == 0 else 1.0))
    assert isinstance(judge(gates, "late", vector=update(4.5)), Rejection)


def test_parts_have_norms_of_their_own():
    parts = {"weights": slice(0, 25), "control": slice(25, 50)}
    gates = Gates(LIMITS)
    vector = np.concatenate([np.full(25, 1.0, np.float32), np.full(25, 0.001, np.float32)])
    for number in range(5):
        accepted = judge(gates, f"box-{number}", vector=vector, parts=parts)
        assert accepted.norms == {"weights": pytest.approx(5.0), "control": pytest.approx(0.005)}
    vector[25:] = 1.0
    refused = judge(gates, "bad", vector=vector, parts=parts)
    assert refused.gate == "norm"
    assert "(control)" in refused.reason


def test_gates_remember_over_a_restart():
    gates = warm()
    judge(gates, "early-1")
    judge(gates, "early-1", task="two")
    again = Gates.from_bytes(gates.to_bytes(), LIMITS)
    assert again.to_bytes() == gates.to_bytes()
    assert (again.n_accepted, again.n_rejected["duplicate"]) == (6, 1)
    assert judge(again, "early-1").gate == "duplicate"
    assert judge(again, "x", vector=update(5)).gate == "norm"
    judge(again, "early-1", task="three")
    assert judge(again, "early-1", task="four").gate == "rate"


def test_a_state_that_is_none():
    data = warm().to_bytes()
    for wrong in (b"", data[:-1], data + b"\0", b"\x81\xa5wrong\x01"):
        with pytest.raises(BadMessage, match="no state of gates"):
            Gates.from_bytes(wrong, LIMITS)


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr("hybrid.federated.aggregation.gates._MAX_SEEN", 20)
    monkeypatch.setattr("hybrid.federated.aggregation.gates._MAX_DEVICES", 20)
    gates = Gates(LIMITS)
    for number in range(100):
        judge(gates, f"box-{number}")
    size = len(gates.to_bytes())
    for number in range(100, 200):
        judge(gates, f"box-{number}")
    assert len(gates.to_bytes()) <= size + 100
    assert judge(gates, "box-199").gate == "duplicate"
