"""Forms, gates, means and optimisers together: ten devices with unlike digits learn what none of them holds."""

import msgspec
import numpy as np
import pytest

from benchmarks.federated_parts.loop import Setting, learn
from hybrid.federated.coding import catalog
from hybrid.federated.coding.form import Encoded
from hybrid.federated.coding.sparse import Sparse
from tests.federated import digits_task as task

SHARDS = None
INT8 = {"uplink": "int8", "downlink": "int8"}
TOP = {"uplink": "top-k", "downlink": "top-k"}


@pytest.mark.parametrize(
    ("alpha", "most_rounds", "setting"),
    [
        (0.5, 14, Setting()),
        (0.5, 14, Setting(**INT8)),
        (0.5, 20, Setting(**INT8, dropout_ratio=0.3)),
        (SHARDS, 35, Setting(**INT8, algorithm="adam", rate=0.03)),
        (SHARDS, 35, Setting(algorithm="yogi", rate=0.03)),
        (SHARDS, 20, Setting(**INT8, algorithm="scaffold")),
        (SHARDS, 20, Setting(algorithm="scaffold", dropout_ratio=0.3)),
    ],
    ids=["avg", "avg-int8", "avg-int8-dropouts", "adam-int8", "yogi", "scaffold-int8", "scaffold-dropouts"],
)
def test_it_comes_to_the_target(alpha, most_rounds, setting):
    outcome = learn(setting, task.digits(alpha, seed=0), seed=0)
    assert outcome.rounds is not None
    assert outcome.rounds <= most_rounds
    assert outcome.n_rejected == 0


def test_int8_both_ways_takes_a_quarter_of_the_bytes_and_no_more_rounds():
    problem = task.digits(0.5, seed=1)
    whole, small = learn(Setting(), problem, 1), learn(Setting(**INT8), problem, 1)
    assert small.rounds <= whole.rounds + 1
    assert small.bytes_up < 0.26 * whole.bytes_up * small.rounds / whole.rounds
    first_versions = 10 * 4 * task.LAYOUT.n_elements
    assert small.bytes_down - first_versions < 0.26 * (whole.bytes_down - first_versions)


def test_one_element_in_a_hundred_needs_what_it_left_out(monkeypatch):
    """The same bytes a round, with and without error feedback."""
    problem = task.digits(0.5, seed=0)
    setting = msgspec.structs.replace(Setting(**TOP, target=2.0), max_rounds=25)
    fed_back = learn(setting, problem, 0)

    class Forgetful(Sparse):
        def encode(self, vector, layout, rng, residual=None):
            return Encoded(super().encode(vector, layout, rng).content, np.zeros_like(vector))

    monkeypatch.setattr(
        "benchmarks.federated_parts.loop.form",
        lambda name, share: Forgetful(share_ratio=share) if name == "top-k" else catalog.form(name),
    )
    forgotten = learn(setting, problem, 0)
    assert fed_back.bytes_up / 250 < 115
    assert fed_back.accuracies[-1] > forgotten.accuracies[-1] + 0.03


def test_gates_keep_out_what_a_mean_would_not_survive():
    """Two of ten send a thousand times what they learned, or NaN: all they reach is that they do not count."""
    problem = task.digits(0.5, seed=0)

    def wild(updates):
        return {device: 1000 * update if device < 2 else update for device, update in updates.items()}

    outcome = learn(Setting(max_rounds=20), problem, 0, wild)
    assert outcome.rounds is not None
    assert outcome.n_rejected >= 2 * (outcome.rounds - 1)


def test_the_head_alone_takes_a_seventh_of_the_bytes():
    problem = task.digits_head(SHARDS, seed=0)
    assert problem.layout.n_elements == 650
    start = task.accuracy(problem.layout, problem.first, problem.test)
    outcome = learn(Setting(algorithm="adam", rate=0.03, **INT8), problem, 0)
    assert 0.8 < start < 0.95
    assert outcome.rounds <= 16
    assert outcome.bytes_up < 10 * outcome.rounds * 680
