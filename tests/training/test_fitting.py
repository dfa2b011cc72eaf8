"""Training learns, is repeatable, keeps the best weights, ends in time, and leaves the caller's torch alone."""

import dataclasses
import itertools
import math
import time

import numpy as np
import pytest

from compression.errors import InvalidTrainingSet, NotTrainable

torch = pytest.importorskip("torch")
from compression.training.distilling import (  # noqa: E402
    feature_distance,
    holds_probabilities,
    relative_distance,
    soft_cross_entropy,
)
from compression.training.fit_recipe import FitRecipe  # noqa: E402
from compression.training.fitting import fit  # noqa: E402
from compression.training.training_set import TrainingSet  # noqa: E402
from tests.training.making import (  # noqa: E402
    QUICK,
    a_set,
    accuracy,
    of_module,
    patterns,
    same,
    trained,
    untrained,
    weights,
)

pytestmark = pytest.mark.torch


def test_it_learns_and_leaves_the_given_module_alone() -> None:
    net = untrained(3)
    before = weights(net)
    seen: list[tuple[int, int]] = []
    found = fit(net, a_set(), recipe=QUICK, seed=1, stepped=lambda done, total: seen.append((done, total)))
    assert found.after.right > found.before.right
    assert found.after.loss < found.before.loss
    assert (found.ended, found.n_epochs) == ("whole", 2)
    assert same(weights(net), before)
    assert not any(part.training for part in found.module.modules())
    assert seen == [*((done, 30) for done in range(1, 31)), (30, 30)]  # 461 samples, the last batch has 13


def test_the_same_seed_gives_the_same_weights_and_chance_outside_is_as_before() -> None:
    recipe = dataclasses.replace(QUICK, epochs=3, learning_rate=1e-2)
    given = a_set(256, augment=lambda batch, chance: (batch[0] + 0.1 * torch.randn(batch[0].shape, generator=chance),))
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    n_threads = torch.get_num_threads()
    one, two, other = (weights(fit(untrained(), given, recipe=recipe, seed=seed).module) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == n_threads
    assert same(one, two)
    assert not same(one, other)


def test_a_teacher_alone_is_enough() -> None:
    given = a_set(labels=None)
    learner = untrained(4)
    found = fit(learner, given, recipe=dataclasses.replace(QUICK, epochs=6, learning_rate=1e-2), seed=0)
    assert found.after.loss < 0.5 * found.before.loss
    assert found.after.right == 0
    assert accuracy(of_module(found.module)) > accuracy(of_module(learner)) + 0.2


def test_features_draw_too() -> None:
    given = a_set(256)
    recipe = dataclasses.replace(QUICK, epochs=1, features=("stem", "wide"))
    found = fit(untrained(4, width=4), given, teacher=trained(), recipe=recipe, seed=0)
    plain = fit(untrained(4, width=4), given, teacher=trained(), recipe=dataclasses.replace(QUICK, epochs=1), seed=0)
    assert not same(weights(found.module), weights(plain.module))
    assert not found.module.stem._forward_hooks
    assert not trained().stem._forward_hooks
    with pytest.raises(InvalidTrainingSet, match="no submodule 'nose'"):
        fit(untrained(), given, teacher=trained(), recipe=dataclasses.replace(QUICK, features=("nose",)))


def test_a_loss_of_ones_own_and_other_outputs() -> None:
    images, _ = patterns(512)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 2))
    torch.nn.init.zeros_(net[1].weight)
    wanted = images.reshape(512, -1)[:, :2].copy()
    given = TrainingSet(
        module=net,
        inputs={"image": images},
        labels=wanted,
        loss=lambda answer, labels: (answer - labels).square().mean(),
    )
    found = fit(net, given, recipe=FitRecipe(epochs=10, batch=16, learning_rate=2e-2), seed=0)
    assert found.after.loss < 0.5 * found.before.loss


def test_weights_that_were_better_before_are_kept() -> None:
    net = trained()
    wild = FitRecipe(epochs=3, learning_rate=30.0, patience=1, rise_ratio=0.0)
    found = fit(net, a_set(), recipe=wild, seed=0)
    assert found.ended in ("early", "diverged")
    assert same(weights(found.module), weights(net))
    assert found.before == found.after


def test_a_budget_ends_it_in_time_and_lets_the_rate_fall() -> None:
    start_s = time.perf_counter()
    found = fit(untrained(), a_set(), recipe=FitRecipe(epochs=10_000), seed=0, budget_s=0.5)
    assert time.perf_counter() - start_s < 2.5
    assert found.ended == "budget"
    assert found.n_epochs < 10_000


class Enough(Exception):
    """The caller has seen enough."""


def test_it_can_be_interrupted_between_two_steps() -> None:
    net = untrained()
    before = weights(net)

    def stepped(done: int, _total: int) -> None:
        if done == 3:
            raise Enough

    with pytest.raises(Enough):
        fit(net, a_set(64), recipe=QUICK, stepped=stepped)
    assert same(weights(net), before)


def test_a_loss_that_is_no_number_ends_it() -> None:
    images, labels = patterns(64)
    broken = TrainingSet(
        module=trained(),
        inputs={"image": images},
        labels=labels,
        loss=lambda answer, _labels: answer.sum() * torch.nan,
    )
    found = fit(trained(), broken, recipe=QUICK)
    assert found.ended == "diverged"
    assert math.isinf(found.after.loss)
    assert same(weights(found.module), weights(trained()))


def test_nothing_to_train_is_refused() -> None:
    frozen = untrained().requires_grad_(False)
    with pytest.raises(NotTrainable, match="no parameter to train"):
        fit(frozen, a_set(16))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch", 1),
        ("learning_rate", 0.0),
        ("learning_rate", math.inf),
        ("temperature", -1.0),
        ("weight_decay", -0.1),
        ("kd_share", 1.5),
        ("label_smoothing", 1.0),
        ("held_out_ratio", 0.0),
        ("patience", 0),
        ("clip_norm", 0.0),
    ],
)
def test_a_recipe_out_of_range_is_refused(field: str, value: float) -> None:
    with pytest.raises(InvalidTrainingSet, match=f"the recipe's {field} is"):
        FitRecipe(**{field: value})


def test_the_rate_rises_and_falls() -> None:
    recipe = FitRecipe(learning_rate=1.0, rise_ratio=0.25)
    rates = [recipe.rate(at / 100) for at in range(101)]
    assert rates[0] == pytest.approx(1 / 25)
    assert max(rates) == rates[25] == 1.0
    assert rates[100] < 1e-3
    assert all(low < high for low, high in itertools.pairwise(rates[:26]))
    assert all(high > low for high, low in itertools.pairwise(rates[25:99]))


def test_distances_are_what_they_say() -> None:
    chance = torch.Generator().manual_seed(0)
    mine, wanted = torch.randn((6, 5), generator=chance), torch.randn((6, 5), generator=chance)
    soft = (wanted / 2).softmax(1)
    kl = (soft * (soft.log() - (mine / 2).log_softmax(1))).sum() / 6 * 4
    assert float(soft_cross_entropy(mine, wanted, 2.0)) == pytest.approx(float(kl), rel=1e-5)
    assert float(soft_cross_entropy(wanted, wanted, 3.0)) == pytest.approx(0, abs=1e-6)
    assert float(relative_distance(mine, wanted)) == pytest.approx(
        float(((mine - wanted) ** 2).mean() / wanted.var(unbiased=False)), rel=1e-5
    )
    maps = torch.randn((2, 3, 4, 4), generator=chance)
    assert float(feature_distance(torch.cat([maps, maps], 1), maps)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(InvalidTrainingSet, match="only channels may differ"):
        feature_distance(maps[:, :, :2], maps)
    assert holds_probabilities(soft)
    assert not holds_probabilities(mine)


def test_probabilities_are_taught_as_scores_are() -> None:
    """A net that ends in a softmax gets the same first loss as the one without it."""
    images, labels = patterns(64)
    scores, shares = trained(), torch.nn.Sequential(trained(), torch.nn.Softmax(1))
    before = [
        fit(net, TrainingSet(module=net, inputs={"image": images}, labels=labels), recipe=QUICK, seed=0).before.loss
        for net in (scores, shares)
    ]
    assert before[0] == pytest.approx(before[1], rel=1e-3)
    assert np.isfinite(before[0])
