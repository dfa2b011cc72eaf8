"""What a profile may say, and what is refused as nonsense."""

import json

import msgspec
import pytest

from devices.machine import machine_class
from hybrid.errors import BadMessage, HybridError, TooLarge
from hybrid.profile.machine import this_setting
from hybrid.profile.record import MAX_PROFILE_BYTES, Profile, Timing, parse_profile

CUT = "0123456789abcdef"


@pytest.fixture
def profile(setting, timing):
    return Profile(
        model_digest="a" * 64, shape_key='{"x":[1,3]}', setting=setting, whole=timing(0.1), heads={CUT: timing(0.02)}
    )


def test_a_profile_comes_back_as_it_was(profile):
    assert parse_profile(profile.content) == profile


def test_the_lower_quartile_stands_apart_from_what_else_the_machine_did():
    timing = Timing.of([0.010, 0.010, 0.011, 0.011, 0.012, 0.2, 0.9])
    assert timing.low_s == pytest.approx(0.010)
    assert timing.median_s == pytest.approx(0.011)
    assert timing.spread_ratio > 1
    assert timing.n_runs == 7


FREE, STOP = 0.001, 0.021
"""A run in what is left of a share of processor time, and one in which it is used up."""


@pytest.mark.parametrize(
    ("seconds", "wanted_s"),
    [
        ([FREE, FREE, FREE, STOP] * 5, 0.006),
        ([FREE, STOP, STOP, STOP, FREE, STOP], 0.016),
        ([FREE, STOP, STOP], 0.021),  # few runs, most of them held up: the first one was a burst
    ],
)
def test_where_runs_are_held_up_again_and_again_what_they_take_on_average_counts(seconds, wanted_s):
    timing = Timing.of(seconds, has_quota=True)
    assert timing.is_held
    assert not Timing.of(seconds).is_held, "others load the machine"
    assert timing.low_s == pytest.approx(wanted_s)
    assert timing.median_s >= timing.low_s
    assert timing.is_sound


@pytest.mark.parametrize(
    "seconds",
    [
        [STOP, FREE, FREE],  # a warm-up
        [FREE] * 6 + [STOP] * 3 + [FREE] * 6,  # something else for a while
        [FREE] * 12 + [STOP] * 2,
        [FREE, 1.5 * FREE] * 6,
    ],
)
def test_a_disturbance_now_and_then_is_not_what_runs_take(seconds):
    timing = Timing.of(seconds, has_quota=True)
    assert not timing.is_held
    assert timing.low_s == FREE


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("heads", CUT, "low_s"), -1.0),
        (("heads", CUT, "low_s"), 0.0),
        (("heads", CUT, "median_s"), 1e9),
        (("heads", CUT, "median_s"), 0.001),  # below its own lower quartile
        (("whole", "spread_ratio"), -0.1),
        (("whole", "n_runs"), 0),
        (("heads",), {"no cut": {"median_s": 1.0, "low_s": 1.0}}),
        (("heads",), {f"{i:016x}": {"median_s": 1.0, "low_s": 1.0} for i in range(600)}),
        (("shape_key",), '{ "x": [1,3] }'),
        (("shape_key",), "[]"),
        (("model_digest",), "../../etc"),
        (("variant",), "../x"),
        (("schema",), 2),
        (("kind",), "calibration"),
        (("setting", "machine"), ""),
        (("setting", "machine"), "x" * 4000),
        (("setting", "n_threads"), -1),
    ],
    ids=str,
)
def test_nonsense_is_refused(profile, path, value):
    said = json.loads(profile.content)
    at = said
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = value
    with pytest.raises(HybridError):
        parse_profile(msgspec.json.encode(said))


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[" * 100_000, b'{"whole": NaN}'])
def test_what_is_no_profile_is_refused(content):
    with pytest.raises((BadMessage, TooLarge)):
        parse_profile(content)


def test_a_large_one_is_refused_unread():
    with pytest.raises(TooLarge):
        parse_profile(b" " * (MAX_PROFILE_BYTES + 1))


def test_own_measurements_replace_priors_and_priors_replace_none(profile, timing):
    prior = timing(0.5, is_prior=True)
    assert profile.with_timings(heads={CUT: prior}).heads[CUT] == timing(0.02)
    begun = profile.with_timings(tails={CUT: prior})
    assert begun.tails[CUT].is_prior
    assert begun.with_timings(tails={CUT: timing(0.3)}).tails[CUT] == timing(0.3)


def test_every_part_of_a_setting_makes_another_profile(setting):
    ids = {setting.id}
    for name, value in {"engine": "onnxruntime 2", "provider": "CUDA", "n_threads": 4, "machine": "arm"}.items():
        ids.add(msgspec.structs.replace(setting, **{name: value}).id)
    assert len(ids) == 5


def test_this_machine_is_described_without_its_name(monkeypatch):
    import platform

    import onnxruntime

    plain = this_setting(["CPUExecutionProvider"])
    assert platform.node() not in machine_class().split()
    assert "cores=" in plain.machine
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert this_setting(["CPUExecutionProvider"], options).id != plain.id
    monkeypatch.setattr("devices.pace._chosen", None)  # what an earlier test chose goes before the environment
    monkeypatch.setenv("HYBRID_PACE", "6")
    assert this_setting(["CPUExecutionProvider"]).machine == f"{plain.machine} pace=6"
