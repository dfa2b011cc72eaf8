"""Engines, golden outputs and trials: what fails is gone, and the version before answers."""

import io
from pathlib import Path
from random import Random

import numpy as np
import pytest

from hybrid.artifact.manifest import Golden
from hybrid.errors import EngineCrashed, ModelInvalid, Overloaded
from hybrid.fleet.messages import Trial
from tests.install.box_lab import Box, Fleet, Made, Shelf, committed, failing, live, make, npy
from tests.install.settled import ended, good, install
from tests.reliability.page_cache import Image


def test_a_version_that_crashes_its_rehearsal_fails_and_the_next_one_installs(
    with_one: Image, fleet: Fleet, versions: list[Made]
) -> None:
    image, shelf = with_one.copy(), Shelf(*versions)

    def crash(box: Box) -> None:
        def rehearse(folder: Path) -> None:
            raise EngineCrashed("ended by signal SIGSEGV")

        good(box)
        box.rehearsal = rehearse

    box = install(image, shelf, fleet, versions[1], ended("failed"), prepare=crash, within_s=60.0)
    assert (box.told().phase, box.told().code) == ("failed", "engine_crashed")
    assert box.host.history == ["1"]
    assert versions[1].digest not in box.host.opened
    assert install(image, shelf, fleet, versions[2], committed("3")).host.version() == "3"


@pytest.mark.parametrize("error", [ModelInvalid("no kernel"), failing()])
def test_a_version_that_does_not_open_in_the_service_fails(
    with_one: Image, fleet: Fleet, versions: list[Made], error: Exception
) -> None:
    def refuse(box: Box) -> None:
        good(box)
        box.host.fails_open[versions[1].digest] = error

    image = with_one.copy()
    box = install(image, Shelf(*versions), fleet, versions[1], ended("failed"), prepare=refuse, within_s=60.0)
    assert (box.told().phase, box.host.history) == ("failed", ["1"])


def test_memory_that_is_short_just_now_is_waited_for(with_one: Image, fleet: Fleet, versions: list[Made]) -> None:
    def refuse(box: Box) -> None:
        good(box)
        box.host.fails_open[versions[1].digest] = Overloaded("no memory")

    def until(box: Box) -> bool:
        if box.told().phase == "deferred":
            box.host.fails_open.clear()
        return committed("2")(box)

    box = install(with_one.copy(), Shelf(*versions), fleet, versions[1], until, prepare=refuse)
    assert "deferred overloaded" in box.phases
    assert box.host.version() == "2"


GOLDEN = Golden(inputs={"x": "g/x.npy"}, outputs={"y": "g/y.npy"}, tolerance={"onnxruntime": 1e-3})


def golden_version(fleet: Fleet, number: int) -> Made:
    files = {
        "model.onnx": Random(number).randbytes(500),
        "g/x.npy": npy(np.zeros(3, np.float32)),
        "g/y.npy": npy(np.full(3, number, np.float32)),
    }
    return make(files, key=fleet.publisher, version=str(number), sequence=number, golden=GOLDEN)


def test_golden_outputs_that_differ_fail_the_version(fleet: Fleet) -> None:
    one, two = golden_version(fleet, 1), golden_version(fleet, 2)
    image, shelf = Image(), Shelf(one, two)
    install(image, shelf, fleet, one, committed("1"))

    def wrong(box: Box) -> None:
        good(box)
        box.host.wrong_outputs.add(two.digest)

    box = install(image, shelf, fleet, two, ended("failed"), prepare=wrong, within_s=60.0)
    assert (box.told().code, box.host.history) == ("golden_differs", ["1"])


def test_golden_outputs_that_change_during_the_trial_lead_back(fleet: Fleet) -> None:
    one, two = golden_version(fleet, 1), golden_version(fleet, 2)
    image, shelf = Image(), Shelf(one, two)
    install(image, shelf, fleet, one, committed("1"))

    def until(box: Box) -> bool:
        if box.told().phase == "trial":
            box.host.wrong_outputs.add(two.digest)
        return box.told().phase == "rolled_back"

    box = install(image, shelf, fleet, two, until, within_s=100.0)
    assert (box.told().phase, box.told().code) == ("rolled_back", "golden_differs")
    assert box.host.history == ["1", "2", "1"]


def test_an_engine_error_on_trial_leads_back_in_the_running_service(
    with_one: Image, fleet: Fleet, versions: list[Made]
) -> None:
    image, shelf = with_one.copy(), Shelf(*versions)

    def fail(box: Box) -> None:
        box.host.fails_runs.add(versions[1].digest)

    box = install(image, shelf, fleet, versions[1], ended("rolled_back"), prepare=fail, within_s=60.0)
    assert (box.told().phase, box.told().code) == ("rolled_back", "engine_failed")
    assert box.host.history == ["1", "2", "1"]
    assert box.told().artifact_digest == versions[0].digest
    assert box.told().wanted_digest == versions[1].digest
    again = install(image, shelf, fleet, versions[1], lambda box: False, within_s=3000.0)
    assert again.host.history == ["1"], "a version that failed here was tried again"
    assert install(image, shelf, fleet, versions[2], committed("3")).host.version() == "3"


def test_what_failed_is_tried_again_after_a_day(with_one: Image, fleet: Fleet, versions: list[Made]) -> None:
    image, shelf = with_one.copy(), Shelf(*versions)
    install(
        image, shelf, fleet, versions[1], ended("rolled_back"),
        prepare=lambda box: box.host.fails_runs.add(versions[1].digest), within_s=60.0,
    )  # fmt: skip

    def tomorrow(box: Box) -> None:
        good(box)
        box.clock_s += 86_500.0

    assert install(image, shelf, fleet, versions[1], committed("2"), prepare=tomorrow).host.version() == "2"


def test_a_trial_without_requests_ends_after_its_time(with_one: Image, fleet: Fleet, versions: list[Made]) -> None:
    box = install(with_one.copy(), Shelf(*versions), fleet, versions[1], committed("2"), prepare=lambda box: None)
    assert box.host.version() == "2"


def test_a_crash_loop_on_trial_ends_with_the_version_before(
    with_one: Image, fleet: Fleet, versions: list[Made]
) -> None:
    """The service dies on trial, twice: the third start answers with the version before, without a network."""
    image, shelf = with_one.copy(), Shelf(*versions)
    install(image, shelf, fleet, versions[1], ended("trial"), prepare=lambda box: None, stops=False)
    seen = []
    for _ in range(3):
        box = install(image, shelf, fleet, versions[1], lambda box: True, prepare=lambda box: None, stops=False)
        seen.append(box.host.version())
    assert seen == ["2", "1", "1"]
    assert box.told().code == "engine_crashed"


def test_power_cuts_during_a_trial_are_not_the_versions_fault(
    with_one: Image, fleet: Fleet, versions: list[Made]
) -> None:
    image, shelf = with_one.copy(), Shelf(*versions)
    install(image, shelf, fleet, versions[1], ended("trial"), prepare=lambda box: None, stops=False)
    for number in range(4):
        image.cut_power(Random(number))

        def booted(box: Box, number: int = number) -> None:
            box.boot = f"boot {number}"

        box = install(image, shelf, fleet, versions[1], lambda box: True, prepare=booted, stops=False)
        assert box.host.version() == "2"


def test_an_orderly_stop_is_no_crash_and_keeps_the_counts(with_one: Image, fleet: Fleet, versions: list[Made]) -> None:
    image, shelf = with_one.copy(), Shelf(*versions)
    long = versions[1].assigned(trial=Trial(n_good=1000, most_s=1e6))
    for number in range(4):
        box = live(image, shelf, fleet.trust(), long, until=lambda box: False, prepare=good, within_s=10.0, seed=number)
        assert box.told().phase == "trial"
        assert box.told().n_crashes == 0
    assert box.told().n_good > 30


def test_golden_arrays_are_never_unpickled() -> None:
    from edge_agent.install.golden import golden_arrays

    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for data in (buffer.getvalue(), b"", b"\x93NUMPY", b"PK\x03\x04", npy(np.zeros(10))[:-4]):
        with pytest.raises(ModelInvalid):
            golden_arrays(lambda path, data=data: data, Path("/x"), {"x": "x.npy"})
