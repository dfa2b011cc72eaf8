"""Trained models and light graphs: for cuts spread over the depth, head then tail equals the whole model."""

import shutil

import numpy as np
import pytest

from tests import zoo
from tests.halves import distance, prepare_here, run_model, run_split

N_CUTS = 8
TOLERANCE = 1e-4

N_INTERIOR_AT_LEAST = {"silero_if": 1}
"""Models with fewer than eight cuts: the whole net lies in one If, which stays whole, so all that there are is one."""


def spread(cuts, count):
    """Cuts whose depths lie as evenly as may be, with the lightest one among them; all where there are no more."""
    if len(cuts) <= count:
        return list(cuts)
    depths = np.array([cut.head_work_ratio for cut in cuts])
    chosen = {min(range(len(cuts)), key=lambda at: cuts[at].n_bytes)}
    for target in np.linspace(0, 1, count):
        free = [at for at in range(len(cuts)) if at not in chosen]
        chosen.add(min(free, key=lambda at: abs(depths[at] - target)))
    return [cuts[at] for at in sorted(chosen)]


def check(name, tmp_path, variant, count):
    feeds = zoo.feeds(name, variant=variant)
    whole = run_model(zoo.path(name), feeds)
    prepared = prepare_here(zoo.path(name), feeds, tmp_path)
    cuts = spread(prepared.table.interior, count)
    assert len(cuts) >= N_INTERIOR_AT_LEAST.get(name, count)
    for cut in (prepared.table.cuts[0], *cuts, prepared.table.cuts[-1]):
        assert distance(run_split(prepared, cut, feeds), whole) <= TOLERANCE, cut
    shutil.rmtree(prepared.folder)  # up to 500 MB of weights


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variant"), [(name, variant) for name in zoo.TRAINED for variant in range(zoo.n_variants(name))]
)
def test_head_then_tail_equals_a_trained_model(name, variant, tmp_path):
    check(name, tmp_path, variant, N_CUTS)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", zoo.LIGHT)
def test_head_then_tail_equals_a_light_graph(name, tmp_path):
    check(name, tmp_path, 0, N_CUTS)


@pytest.mark.parametrize("name", [*zoo.TRAINED, *zoo.LIGHT])
def test_the_outputs_depend_on_the_inputs(name):
    """Or any head and tail of the right shapes would agree."""
    answers = [run_model(zoo.path(name), zoo.feeds(name, seed=seed)) for seed in (0, 1)]
    assert distance(answers[0], answers[1]) >= 10 * TOLERANCE


@pytest.mark.parametrize("name", zoo.TRAINED)
def test_shape_keys_differ_in_their_cuts(name, tmp_path):
    ids = []
    for variant in range(zoo.n_variants(name)):
        table = prepare_here(zoo.path(name), zoo.feeds(name, variant=variant), tmp_path / str(variant)).table
        ids.append({cut.id for cut in table.cuts if cut.kind != "output"})
    for at, one in enumerate(ids):
        for other in ids[at + 1 :]:
            assert len(one & other) <= len(one) // 10


def test_every_tensor_of_the_trained_models_has_a_size(tmp_path):
    for name in zoo.TRAINED:
        if name != "silero_if":
            table = prepare_here(zoo.path(name), zoo.feeds(name), tmp_path / name).table
            assert all(cut.sized for cut in table.cuts), name


def test_a_model_that_must_not_be_split_says_so(tmp_path):
    table = prepare_here(zoo.path("minilm"), zoo.feeds("minilm"), tmp_path).table
    assert table.pareto == (table.cuts[0].id, table.cuts[-1].id)
    assert table.note is not None
    assert "No interior cut is worth anything" in table.note
