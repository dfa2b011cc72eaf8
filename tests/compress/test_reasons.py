"""The report's words on each candidate: who beat it is named, in figures of one kind."""

from types import SimpleNamespace

import msgspec

from hybrid.calibration.intervals import paired_drop
from hybrid.compress.grading import Grade, held_together
from hybrid.compress.making.recipe import Recipe
from hybrid.compress.report.reasons import Reasons
from hybrid.compress.report.telling import headless
from hybrid.compress.search.standing import Cost, Done, Space


def grade(n_lost: int, n_won: int = 0, n: int = 2000) -> Grade:
    return Grade(metric="accuracy", n=n, n_lost=n_lost, n_won=n_won)


def test_one_alone_holds_together_exactly_where_its_interval_does():
    for n_lost in range(0, 40, 3):
        for n_won in (0, 5):
            high = paired_drop(n_lost, n_won, 2000)[1]
            assert held_together([grade(n_lost, n_won)], 0.01) == [high <= 0.01]


def test_of_several_the_surest_come_first_and_the_edge_no_longer_holds():
    """11 of 2000 lost hold 1 % alone, not as one of six."""
    edge = grade(11)
    assert held_together([edge], 0.01) == [True]
    assert held_together([grade(0), edge, *[grade(30)] * 4], 0.01) == [True, False, False, False, False, False]
    assert held_together([edge, grade(0)], 0.01) == [True, True], "the last of Holm's steps asks no more than alone"
    assert held_together([], 0.01) == []


def test_nothing_lost_by_the_fewest_samples_would_not_hold_as_one_of_six():
    """Why the correction is told and not asked for: 381 samples are what a floor of 1 % takes."""
    assert held_together([grade(0, n=381)], 0.01) == [True]
    assert held_together([grade(0, n=381)] * 6, 0.01) == [False] * 6
    assert held_together([grade(0, n=690)] * 6, 0.01) == [True] * 6


def test_what_was_not_shipped_names_the_one_that_is_better(whole):
    report = whole.report
    by_id = {each.id: each for each in report.candidates}
    beaten = [each for each in report.candidates if each.status == "kept off"]
    assert beaten
    for each in beaten:
        named = [other for other in by_id if each.reason.startswith((f"{other} ", f"timed only: {other} "))]
        assert named, each.reason
        assert each.id not in named
    for each in report.candidates:
        if each.on_front:
            mine = each.chosen_by
            assert not any(
                (other.chosen_by.drop, other.tried_ratio, other.bytes_ratio)
                <= (mine.drop, each.tried_ratio, each.bytes_ratio)
                for other in report.candidates
                if other.id != each.id and other.chosen_by and other.chosen_by.drop < mine.drop
            )


def only_timed(costs: dict[Recipe, float], grades: dict[Recipe, Grade]) -> str:
    """What is said of the last of some recipes that were timed."""
    done = Done(costs={recipe: Cost(seconds=share, bytes=share) for recipe, share in costs.items()}, grades=grades)
    bench = SimpleNamespace(done=done)
    reasons = Reasons(
        SimpleNamespace(objective="latency"),
        bench,
        SimpleNamespace(finalists=[], shipped={}),
        Space(objective="latency", max_drop=0.01, n_judge=2000),
        {},
    )
    return reasons._only_timed([*costs][-1])


def test_what_was_only_timed_says_why_it_went_no_further():
    """It said that the search had ended before, also where nothing had ended it."""
    half, most = (Recipe(pruned="graph", ratio=ratio) for ratio in (0.5, 0.75))
    small = [msgspec.structs.replace(each, precision="int8") for each in (half, most)]
    beyond, costs = {small[0]: grade(300)}, {small[0]: 0.3, half: 0.39}
    assert only_timed(costs, beyond).startswith("timed only: pruned-50-int8 U8S8 minmax is as good or better: 30.0%")
    narrow = only_timed({small[0]: 0.3, small[1]: 0.26}, beyond)
    assert narrow == "timed only: pruned-50-int8 U8S8 minmax is beyond the floor, and has more channels left"
    assert "holds the floor" in only_timed(costs, {small[0]: grade(0)})
    assert only_timed({half: 0.39}, {}) == "timed only: the search ended before it was made in full"


def test_what_is_shipped_without_the_head_that_was_asked_for_is_named():
    shipped = {name: SimpleNamespace(feature_tensor=tensor) for name, tensor in (("int8", "pooled"), ("pruned", ""))}
    assert headless("pooled", shipped).startswith("pruned has no head in a file that can learn")
    assert headless("", shipped) == ""
    assert headless("pooled", {"int8": shipped["int8"]}) == ""
