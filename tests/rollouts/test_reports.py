"""What boxes told: once each, the newest counts, and never more of it than the contract allows."""

from cloud_gateway.fleet.rollouts.rollout import Tally
from cloud_gateway.fleet.steering.reports import BoxState
from hybrid.fleet.messages import Health, StateCall
from tests.rollouts.fleet_making import NEW, OLD, told


def call(*installed, **fields):
    return StateCall(known="g", epoch="e", run="r", installed=installed, **fields)


def test_the_same_report_counts_once():
    state = BoxState()
    assert state.note_report(told(), 5, 100.0) is not None
    assert state.note_report(told(), 5, 100.0) is None
    assert state.note_report(told(NEW), 4, 99.0) is None
    assert state.models["detector"].installed.artifact_digest == OLD
    assert state.note_report(told(NEW), 1, 200.0) is not None, "another database of reports numbers them anew"


def test_reports_count_in_their_order_however_slow_a_call_was():
    """Found with real agents: `warming` came by a slow call, `trial` by a quick one, and seemed to be older."""
    state = BoxState()
    assert state.note_report(told(phase="warming"), 1, 100.08) is not None
    assert state.note_report(told(phase="trial"), 2, 100.02) is not None
    assert state.models["detector"].installed.phase == "trial"


def test_an_old_report_does_not_undo_what_a_call_said():
    state = BoxState()
    state.note_call(call(told(NEW)), 1000.0)
    assert state.note_report(told(), 1, 900.0) is None
    assert state.models["detector"].installed.artifact_digest == NEW
    assert state.note_report(told(), 2, 1100.0) is not None
    assert state.models["detector"].installed.artifact_digest == OLD


def test_a_call_speaks_of_all_models():
    state = BoxState()
    state.note_call(call(told()), 1.0)
    state.note_call(call(), 2.0)
    assert state.models == {}


def test_words_of_a_box_are_bounded():
    state = BoxState()
    state.note_call(call(told(detail="x" * 9999), health=Health(ready=True, problems=("p",) * 1000)), 1.0)
    assert len(state.models["detector"].installed.detail) == 500
    assert len(state.health.problems) == 64


def test_counts_that_fall_began_anew():
    mark = Tally(digest=OLD, n_good=100, n_errors=5, n_crashes=1)
    assert Tally(digest=OLD, n_good=150, n_errors=6, n_crashes=1).since(mark) == Tally(
        digest=OLD, n_good=50, n_errors=1
    )
    assert Tally(digest=OLD, n_good=10).since(mark) == Tally(digest=OLD, n_good=10)
    assert Tally(digest=NEW, n_good=200, n_errors=9).since(mark) == Tally(digest=NEW, n_good=200, n_errors=9)
