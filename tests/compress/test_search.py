"""The search on made-up landscapes: what it tries, in which order, and what it ends with."""

from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from hybrid.compress.grading import Grade
from hybrid.compress.making.recipe import Recipe
from hybrid.compress.search.next_step import best_int8, next_step
from hybrid.compress.search.standing import Cost, Done, Space, finalists, runners_up
from hybrid.compress.search.step import Step

N = 1000
U8S8, S8S8 = Recipe(precision="int8"), Recipe(precision="int8", activations="int8")
GRAPH = (Recipe(pruned="graph"), Recipe(pruned="graph", local=True))
MODULE = (Recipe(pruned="module"),)
SPACE = Space(objective="latency", max_drop=0.01, n_judge=2000, pairs=(U8S8, S8S8))

Times = Callable[[Recipe], Cost | None]
Drops = Callable[[Recipe], float | None]


def by_ratio(recipe: Recipe) -> str:
    """Every ratio gives other widths."""
    return f"{recipe.ratio:g}"


def searched(
    space: Space, times: Times, drops: Drops, most: int = 200, widths: Callable[[Recipe], str | None] = by_ratio
) -> tuple[Done, list[Step]]:
    """Everything the search does on a landscape."""
    done, steps = Done(), []
    while (step := next_step(space, done)) is not None:
        steps.append(step)
        assert len(steps) <= most, "it does not end"
        if step.kind == "time":
            done = replace(done, costs={**done.costs, step.recipe.timed_as: times(step.recipe)})
        elif step.kind == "widths":
            done = replace(done, widths={**done.widths, step.recipe: widths(step.recipe)})
        else:
            drop = drops(step.recipe)
            done = replace(done, grades={**done.grades, step.recipe: None if drop is None else grade(drop)})
    return done, steps


def grade(drop: float) -> Grade:
    return Grade(metric="accuracy", n=N, n_lost=max(0, round(drop * N)), n_won=max(0, -round(drop * N)))


def graded(steps: list[Step]) -> list[Recipe]:
    return [step.recipe for step in steps if step.kind == "grade"]


def usual(recipe: Recipe) -> Cost:
    """Int8 takes a third in U8S8 and a half in S8S8, pruning takes time and bytes away."""
    seconds = {"float32": 1.0, "int8": 0.33 if recipe.activations == "uint8" else 0.5}.get(recipe.precision, 0.9)
    return Cost(seconds=seconds * (1 - 0.9 * recipe.ratio) + 0.01 * recipe.n_float, bytes=0.3 * (1 - recipe.ratio))


def test_the_fastest_type_pair_is_found_by_timing_before_anything_is_graded():
    _, steps = searched(SPACE, usual, lambda _recipe: 0.0)
    assert [step.recipe for step in steps[:2]] == [U8S8, S8S8]
    assert all(step.kind == "time" for step in steps[:2])
    assert {recipe.activations for recipe in graded(steps)} == {"uint8"}


def test_the_likelier_pair_is_taken_where_both_take_the_same():
    done, _ = searched(SPACE, lambda recipe: Cost(seconds=0.5 - 0.001 * (recipe == S8S8), bytes=0.3), lambda _r: 0.0)
    found = best_int8(SPACE, done)
    assert found is not None
    assert found.activations == "uint8"


def test_int8_that_is_not_faster_is_never_graded():
    _, steps = searched(SPACE, lambda _recipe: Cost(seconds=1.1, bytes=0.3), lambda _recipe: 0.0)
    assert graded(steps) == []
    assert len(steps) == 2


def test_int8_that_is_not_faster_is_graded_where_bytes_are_wanted():
    space = replace(SPACE, objective="bytes")

    def times(recipe: Recipe) -> Cost:
        return Cost(seconds=1.1, bytes=0.25 if recipe.precision == "int8" else 0.3)

    done, _ = searched(space, times, lambda _recipe: 0.0)
    assert finalists(space, done, 1)[0].precision == "int8"


@pytest.mark.parametrize("best", ["minmax", "percentile", "entropy"])
def test_ranges_are_chosen_by_what_they_lose(best):
    done, _ = searched(SPACE, usual, lambda recipe: 0.001 if recipe.ranges == best else 0.004)
    found = best_int8(SPACE, done)
    assert found is not None
    assert found.ranges == best


BIASED = msgspec.structs.replace(U8S8, bias_corrected=True)


def test_of_equals_the_plainest_is_taken():
    done, _ = searched(SPACE, usual, lambda _recipe: 0.001)
    assert finalists(SPACE, done, 3) == [U8S8]


def test_what_loses_no_answer_needs_no_repair():
    """Nothing can lose less: one grade, and the budget is pruning's."""
    done, steps = searched(SPACE, usual, lambda _recipe: 0.0)
    assert graded(steps) == finalists(SPACE, done, 3) == [BIASED]


def test_pruning_comes_before_repairs_of_what_holds_the_floor_and_is_not_begun_anew_by_them():
    space = replace(SPACE, prunings=GRAPH)

    def drops(recipe: Recipe) -> float:
        if recipe.ratio:
            return 0.001 if recipe.ratio <= 0.5 else 0.3
        return 0.002 if recipe.ranges == "minmax" and not recipe.equalized else 0.001

    done, steps = searched(space, usual, drops)
    kinds = [("pruned" if recipe.pruned else "whole") for recipe in graded(steps)]
    assert kinds[0] == "whole"
    assert kinds[1] == "pruned"
    assert kinds.count("whole") > 4, "other ranges and repairs are tried in the end"
    assert kinds == sorted(kinds[:1]) + sorted(kinds[1:])
    assert {recipe.ranges for recipe in graded(steps) if recipe.pruned} == {"minmax"}
    assert finalists(space, done, 1)[0].ratio == 0.5


def test_ratios_that_give_the_same_widths_are_one_candidate_and_nothing_gone_is_none():
    """To a staircase of coarse steps: below a quarter nothing goes, then all ratios of a quarter give one model."""
    space = replace(SPACE, prunings=GRAPH)

    def widths(recipe: Recipe) -> str:
        return str(int(recipe.ratio * 4) or "")

    done, steps = searched(space, usual, lambda recipe: 0.0 if recipe.ratio < 0.5 else 0.3, widths=widths)
    tried = [step.recipe for step in steps if step.recipe.pruned and step.kind != "widths"]
    assert all(recipe.ratio >= 0.25 for recipe in tried)
    for local in (True, False):
        made = [recipe for recipe in graded(steps) if recipe.pruned and recipe.local == local]
        assert len({widths(recipe) for recipe in made}) == len(made)
    assert widths(finalists(space, done, 1)[0]) == "1"


def test_operators_fall_back_to_float_until_the_floor_holds_and_no_further():
    done, steps = searched(SPACE, usual, lambda recipe: 0.0 if recipe.n_float >= 4 else 0.3)
    assert [recipe.n_float for recipe in graded(steps) if recipe.n_float] == [1, 2, 4]
    assert finalists(SPACE, done, 3)[0].n_float == 4


def test_operators_do_not_fall_back_where_that_costs_the_gain():
    def times(recipe: Recipe) -> Cost:
        return Cost(seconds=0.97 + 0.02 * recipe.n_float, bytes=0.3)

    done, steps = searched(SPACE, times, lambda recipe: 0.0 if recipe.n_float >= 4 else 0.3)
    assert not [recipe for recipe in graded(steps) if recipe.n_float]
    assert finalists(SPACE, done, 3) == []


@pytest.mark.parametrize("edge", [0.2, 0.5, 0.7, 0.9])
def test_bisection_finds_the_largest_ratio_under_the_floor(edge):
    space = replace(SPACE, prunings=GRAPH)
    done, steps = searched(space, usual, lambda recipe: 0.0 if recipe.ratio <= edge else 0.3)
    best = finalists(space, done, 1)[0]
    assert best.ratio == int(edge * 16) / 16
    assert best.precision == "int8"
    for local in (True, False):
        assert len([recipe for recipe in graded(steps) if recipe.ratio and recipe.local == local]) <= 4


def test_the_staircase_is_measured_before_anything_is_pruned():
    step, done = None, Done()
    space = replace(SPACE, prunings=GRAPH, multiple=None)
    while (step := next_step(space, done)) is not None and step.kind != "staircase":
        assert not step.recipe.pruned
        if step.kind == "time":
            done = replace(done, costs={**done.costs, step.recipe.timed_as: usual(step.recipe)})
        else:
            done = replace(done, grades={**done.grades, step.recipe: grade(0.0)})
    assert step is not None
    _, steps = searched(replace(space, multiple=16, float_multiple=4), usual, lambda _recipe: 0.0)
    assert {each.recipe.multiple for each in steps if each.recipe.precision == "int8" and each.recipe.pruned} == {16}
    assert {each.recipe.multiple for each in steps if each.kind == "time" and each.recipe.precision == "float32"} == {4}


def few_channels_are_faster_in_float(recipe: Recipe) -> Cost:
    """Int8 gains for the whole model and has a floor of its own, as small layers have; float32 goes on falling."""
    seconds = 1 - 0.9 * recipe.ratio
    return Cost(seconds=max(0.35, 0.6 * seconds) if recipe.precision == "int8" else seconds, bytes=1 - recipe.ratio)


def test_pruned_models_are_tried_in_both_precisions_where_int8_gains_for_the_whole():
    space = replace(SPACE, prunings=MODULE, rungs=(2, 8), multiple=16, float_multiple=8)
    drops: Drops = lambda recipe: 0.0 if recipe.ratio <= 0.8 else 0.3  # noqa: E731
    done, steps = searched(space, few_channels_are_faster_in_float, drops)
    best = finalists(space, done, 1)[0]
    assert (best.precision, best.ratio, best.multiple) == ("float32", 0.75, 8)
    for recipe in graded(steps):
        if recipe.precision == "float32":
            assert few_channels_are_faster_in_float(recipe).seconds < 0.35, "only where it beats int8 is it trained"


def test_the_precision_that_is_faster_at_half_the_channels_goes_first():
    space = replace(SPACE, prunings=MODULE, rungs=(2, 8))
    drops: Drops = lambda recipe: 0.0 if recipe.ratio <= 0.8 else 0.3  # noqa: E731

    def float_wins(recipe: Recipe) -> Cost:
        return Cost(seconds=(0.9 if recipe.precision == "int8" else 1.0 - 1.5 * recipe.ratio / 2), bytes=0.3)

    for times, first in ((usual, "int8"), (float_wins, "float32")):
        _, steps = searched(space, times, drops)
        assert next(recipe.precision for recipe in graded(steps) if recipe.pruned) == first


def test_bytes_are_never_won_by_a_pruned_model_in_float():
    space = replace(SPACE, objective="bytes", prunings=GRAPH)

    def small(recipe: Recipe) -> Cost:
        return Cost(seconds=1.0, bytes=(0.3 if recipe.precision == "int8" else 1.0) * (1 - recipe.ratio))

    _, steps = searched(space, small, lambda recipe: 0.0 if recipe.ratio <= 0.5 else 0.3)
    assert {recipe.precision for recipe in graded(steps) if recipe.pruned} == {"int8"}


def test_what_a_graph_gives_without_training_is_not_trained_for():
    """The module's way begins where it would beat what the cheap ways have found."""
    space = replace(SPACE, prunings=(*GRAPH, *MODULE), rungs=(2, 8))
    _, steps = searched(space, usual, lambda recipe: 0.0 if recipe.ratio <= 0.5 else 0.3)
    assert min(recipe.ratio for recipe in graded(steps) if recipe.pruned == "module") > 0.5


def test_what_would_not_be_faster_is_not_trained():
    """Steps of kernels: up to a half of the channels nothing is won, so nothing below is trained."""
    space = replace(SPACE, prunings=MODULE, rungs=(2, 8))

    def times(recipe: Recipe) -> Cost:
        return Cost(seconds=0.33 if recipe.ratio <= 0.5 else 0.2, bytes=0.3)

    _, steps = searched(space, times, lambda recipe: 0.0)
    assert min(recipe.ratio for recipe in graded(steps) if recipe.ratio) > 0.5


def test_each_pruned_model_is_timed_untrained_first():
    space = replace(SPACE, prunings=MODULE, rungs=(2, 8))
    _, steps = searched(space, usual, lambda recipe: 0.0 if recipe.ratio <= 0.4 else 0.3)
    for recipe in (recipe for recipe in graded(steps) if recipe.ratio):
        timed = next(at for at, step in enumerate(steps) if step.kind == "time" and step.recipe.ratio == recipe.ratio)
        assert timed < next(at for at, step in enumerate(steps) if step.recipe == recipe)


def test_epochs_are_spent_only_where_a_short_training_leaves_hope():
    space = replace(SPACE, prunings=MODULE, rungs=(2, 8))

    def drops(recipe: Recipe) -> float:
        if recipe.ratio > 0.5:
            return 0.4
        return 0.03 if recipe.epochs == 2 and recipe.ratio else 0.0

    _, steps = searched(space, usual, drops)
    long = {recipe.ratio for recipe in graded(steps) if recipe.epochs == 8}
    assert long
    assert max(long) <= 0.5


def test_the_rounding_is_trained_where_int8_alone_does_not_hold():
    space = replace(SPACE, rungs=(2, 8), trained_int8=("qat", "adaround"))
    done, steps = searched(space, usual, lambda recipe: 0.0 if recipe.trained_int8 == "qat" else 0.05)
    assert finalists(space, done, 1)[0].trained_int8 == "qat"
    assert not [recipe for recipe in graded(steps) if recipe.trained_int8 == "adaround"]


def test_a_student_is_trained_only_where_it_is_faster():
    space = replace(SPACE, rungs=(2, 8), has_student=True)
    for seconds, wanted in ((0.1, True), (1.2, False)):

        def times(recipe: Recipe, seconds: float = seconds) -> Cost:
            return Cost(seconds=seconds, bytes=0.1) if recipe.source == "student" else usual(recipe)

        _, steps = searched(space, times, lambda _recipe: 0.0)
        assert any(recipe.source == "student" for recipe in graded(steps)) == wanted


def test_another_engine_gets_the_whole_model_and_the_best_pruned_one():
    space = replace(SPACE, prunings=MODULE, rungs=(2, 8), engines=("tflite",))
    done, steps = searched(space, usual, lambda recipe: 0.0 if recipe.ratio <= 0.5 else 0.3)
    lite = [recipe for recipe in graded(steps) if recipe.engine == "tflite"]
    assert {recipe.ratio for recipe in lite} == {0.0, 0.5}
    assert {recipe.engine for recipe in finalists(space, done, 6)} == {"onnxruntime", "tflite"}


def test_what_fails_is_not_tried_again_and_nothing_stops():
    space = replace(SPACE, prunings=MODULE, rungs=(2, 8), trained_int8=("qat",), has_student=True, has_products=True)
    for times, drops in ((lambda _r: None, lambda _r: 0.0), (usual, lambda _r: None)):
        done, steps = searched(space, times, drops)
        assert finalists(space, done, 3) == []
        assert len({(step.kind, step.recipe) for step in steps}) == len(steps)


def test_weights_only_and_smoothing_are_for_products():
    for has_products in (True, False):
        _, steps = searched(replace(SPACE, has_products=has_products), usual, lambda _recipe: 0.0)
        tried = {step.recipe.precision for step in steps}
        assert ("weights-8" in tried) == has_products
        assert any(step.recipe.smoothed is not None for step in steps) == has_products


def test_an_interrupted_search_goes_on_as_if_it_had_not_been():
    """The next step depends on what is known alone, not on the order in which it became known."""
    space = replace(SPACE, prunings=GRAPH, has_products=True)
    done, steps = searched(space, usual, lambda recipe: 0.4 * recipe.ratio**2)
    for at, step in enumerate(steps):
        known = steps[:at]
        part = Done(
            costs={
                each.recipe.timed_as: done.costs[each.recipe.timed_as]
                for each in reversed(known)
                if each.kind == "time"
            },
            grades={each.recipe: done.grades[each.recipe] for each in reversed(known) if each.kind == "grade"},
            widths={each.recipe: done.widths[each.recipe] for each in reversed(known) if each.kind == "widths"},
        )
        assert next_step(space, part) == step


def test_finalists_hold_the_floor_on_the_judging_part_not_on_the_small_one():
    """5 lost of 1000 promise at most 1.0 % on 2000 others; 8 promise more."""
    done = Done(
        costs={U8S8: Cost(seconds=0.3, bytes=0.3), S8S8: Cost(seconds=0.2, bytes=0.3)},
        grades={U8S8: grade(0.004), S8S8: grade(0.009)},
    )
    assert finalists(SPACE, done, 3) == [U8S8]


def test_finalists_are_the_front_of_value_and_drop():
    fast, mild, bad = U8S8, S8S8, msgspec.structs.replace(U8S8, ratio=0.1, pruned="graph")
    done = Done(
        costs={
            fast: Cost(seconds=0.2, bytes=0.3),
            mild: Cost(seconds=0.5, bytes=0.3),
            bad.timed_as: Cost(seconds=0.6, bytes=0.3),
        },
        grades={fast: grade(0.003), mild: grade(0.0), bad: grade(0.002)},
    )
    assert finalists(SPACE, done, 3) == [fast, mild]


def test_each_engine_has_runners_up_of_its_own():
    """An engine whose front fails the last judgement gets its next best, whatever passed for another engine."""
    space = replace(SPACE, prunings=MODULE, rungs=(2, 8), engines=("tflite",))
    done, _ = searched(space, usual, lambda recipe: 0.0 if recipe.ratio <= 0.5 else 0.3)
    front = finalists(space, done, 6)
    further = runners_up(space, done, front, 6)
    assert not set(front) & set(further)
    for engine in ("onnxruntime", "tflite"):
        n_front = sum(recipe.engine == engine for recipe in front)
        n_further = sum(recipe.engine == engine for recipe in further)
        assert n_further > 0
        assert n_front + n_further <= 6
    only = runners_up(space, done, front, 2)
    assert all(sum(recipe.engine == engine for recipe in [*front, *only]) <= 2 for engine in ("onnxruntime", "tflite"))
