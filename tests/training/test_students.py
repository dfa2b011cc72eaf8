"""Students: the script's own, or narrower copies with inherited or fresh weights."""

import copy

import pytest

from compression.errors import InvalidTrainingSet, NotTrainable, TrainingNeeded

torch = pytest.importorskip("torch")
from compression.training.fitting import fit  # noqa: E402
from compression.training.students import fresh, student  # noqa: E402
from tests.training.making import QUICK, Net, a_set, same, trained, untrained, weights  # noqa: E402

pytestmark = pytest.mark.torch


def narrower(module: torch.nn.Module, example: tuple[torch.Tensor, ...]) -> torch.nn.Module:
    """The first half of each layer's channels."""
    assert example[0].shape[1:] == (1, 12, 12)
    made = untrained(0, width=4)
    with torch.no_grad():
        for (name, mine), theirs in zip(made.state_dict().items(), module.state_dict().values(), strict=True):
            del name
            mine.copy_(theirs[tuple(slice(0, size) for size in mine.shape)])
    return made


def test_the_scripts_student_is_drawn_by_the_seed_and_learns() -> None:
    given = a_set(256, student=lambda: Net(4))
    one, two, other = (student(given, seed=seed) for seed in (1, 1, 2))
    assert same(weights(one), weights(two))
    assert not same(weights(one), weights(other))
    found = fit(one, given, teacher=trained(), recipe=QUICK, seed=0)
    assert found.after.loss < found.before.loss


def test_a_narrower_copy_keeps_its_weights_or_draws_them() -> None:
    given = a_set(16)
    kept = student(given, narrowed=narrower, inherit=True)
    assert torch.equal(kept.stem[0].weight, trained().stem[0].weight[:4])
    drawn = [student(given, narrowed=narrower, inherit=False, seed=seed) for seed in (1, 1, 2)]
    assert same(weights(drawn[0]), weights(drawn[1]))
    assert not same(weights(drawn[0]), weights(drawn[2]))
    assert not torch.equal(drawn[0].stem[0].weight, kept.stem[0].weight)


def test_a_pruner_makes_a_student() -> None:
    from compression.pruning.structured import prune

    made = student(
        a_set(16), narrowed=lambda module, example: prune(module, example, 0.5, 2).module, inherit=False, seed=3
    )
    assert made.stem[0].weight.shape[0] == 4
    assert made.deep.weight.shape == (4, 1, 3, 3)


def test_what_is_no_student_is_refused() -> None:
    with pytest.raises(TrainingNeeded, match="has no student"):
        student(a_set(16))
    with pytest.raises(NotTrainable, match="make a smaller one"):
        student(a_set(16, student=lambda: Net(8)))
    with pytest.raises(InvalidTrainingSet, match="the narrower copy answers with the shapes"):
        student(a_set(16), narrowed=lambda module, example: torch.nn.Flatten())


class Scaled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(2, 2)
        self.factor = torch.nn.Parameter(torch.ones(1))


def test_weights_that_nobody_can_draw_are_named() -> None:
    module = Scaled()
    before = copy.deepcopy(module)
    with pytest.raises(NotTrainable, match="the weights factor cannot be drawn anew"):
        fresh(module)
    assert torch.equal(module.inner.weight, before.inner.weight)
