"""Parts are timed as requests would run them, the promising ones first, and within the budget."""

import time

import numpy as np
import pytest

from hybrid.artifact.digest import model_digest
from hybrid.graph.shape_key import ShapeKey
from hybrid.partition.prepared import prepare
from hybrid.profile.parts import Rig, parts_of, time_parts, time_runs, unknown_parts
from hybrid.profile.record import Profile
from tests import zoo


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    path, feeds = zoo.path("ppocr_cls"), zoo.feeds("ppocr_cls")
    prepared = prepare(path, model_digest(path), ShapeKey.of(feeds), tmp_path_factory.mktemp("graphs"))
    return Rig(model_path=path, prepared=prepared, feeds=feeds, providers=["CPUExecutionProvider"])


def test_heads_and_tails_are_timed_each(rig):
    parts = parts_of(rig.prepared, tails=True)
    interior = [cut for cut in rig.prepared.table.interior if cut.id in rig.prepared.table.pareto]
    assert [part.kind for part in parts].count("head") == len(interior)
    assert [part.kind for part in parts].count("tail") == len(interior)
    begun = []
    outcomes = time_parts(rig, parts, 20.0, begun=begun.append)
    assert begun == parts
    assert all(outcome.timing is not None and outcome.timing.is_sound for outcome in outcomes)
    seconds = {(o.part.kind, o.part.cut and o.part.cut.id): o.timing.low_s for o in outcomes}
    deep = max(interior, key=lambda cut: cut.head_work_ratio)
    assert seconds["head", deep.id] > seconds["tail", deep.id]


def test_the_most_promising_cuts_come_first(rig):
    table = rig.prepared.table
    order = [part.cut for part in parts_of(rig.prepared, tails=False)[1:]]
    promise = [cut.n_bytes / table.cuts[0].n_bytes + cut.head_work_ratio for cut in order]
    assert promise == sorted(promise)


def test_the_budget_is_kept(rig):
    parts = parts_of(rig.prepared, tails=True)
    started_s = time.monotonic()
    outcomes = time_parts(rig, parts, 1e-9)
    assert outcomes == []
    outcomes = time_parts(rig, parts, 0.05)
    assert 1 <= len(outcomes) < len(parts)
    assert outcomes[0].part.kind == "whole"
    assert time.monotonic() - started_s < 5


def test_a_part_that_does_not_run_is_said_and_the_others_go_on(rig):
    broken = Rig(model_path=rig.model_path, prepared=rig.prepared, feeds={"x": np.zeros((1, 3, 7, 7), np.float32)})
    outcomes = time_parts(broken, parts_of(rig.prepared, tails=False), 5.0)
    heads = [outcome for outcome in outcomes if outcome.part.kind == "head"]
    assert heads
    assert all(outcome.timing is None and "Got invalid dimensions" in outcome.reason for outcome in heads)


def test_warm_ups_are_left_out():
    calls = []

    def run():
        calls.append(1)
        time.sleep(0.05 if len(calls) == 1 else 0.002)

    timing = time_runs(run, 0.1)
    assert timing.median_s < 0.03
    assert timing.n_runs < len(calls)


def test_only_what_is_unknown_or_hearsay_is_measured(rig, setting, timing):
    parts = parts_of(rig.prepared, tails=False)
    known = Profile(model_digest="a" * 64, shape_key="{}", setting=setting, whole=timing(0.1))
    known = known.with_timings(heads={parts[1].cut.id: timing(0.01), parts[2].cut.id: timing(0.01, is_prior=True)})
    assert unknown_parts(parts, known) == parts[2:]
