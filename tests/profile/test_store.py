"""Profiles on a disk: paid once, dropped when anything changes, and never damaged by others."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from hybrid.profile.record import Profile
from hybrid.profile.store import ProfileStore

DIGEST, SHAPES = "b" * 64, '{"x":[1,8]}'
CUTS = [f"{number:016x}" for number in range(40)]


@pytest.fixture
def store(tmp_path):
    return ProfileStore(tmp_path / "profiles")


def test_what_was_put_is_found_by_another_store(store, setting, timing, tmp_path):
    store.put(DIGEST, SHAPES, setting, whole=timing(0.1))
    store.put(DIGEST, SHAPES, setting, heads={CUTS[0]: timing(0.02)})
    found = ProfileStore(tmp_path / "profiles").find(DIGEST, SHAPES, setting)
    assert (found.whole, found.heads) == (timing(0.1), {CUTS[0]: timing(0.02)})
    assert found.made_s > 0


def test_nothing_is_known_of_another_digest_shape_or_setting(store, setting, timing):
    store.put(DIGEST, SHAPES, setting, whole=timing(0.1))
    newer = msgspec.structs.replace(setting, engine="onnxruntime 1.1")
    for other in (("c" * 64, SHAPES, setting), (DIGEST, '{"x":[2,8]}', setting), (DIGEST, SHAPES, newer)):
        assert store.find(*other).is_empty


def test_a_folder_that_is_another_digests_is_not_believed(store, setting, timing):
    """Folders carry sixteen digits of the digest: the file itself says the rest."""
    store.put(DIGEST, SHAPES, setting, whole=timing(0.1))
    assert store.find(DIGEST[:16] + "c" * 48, SHAPES, setting).is_empty


@pytest.mark.parametrize("damage", [b"", b"{", b"\x00" * 300, b'{"kind":"profile"}'])
def test_a_damaged_file_is_no_profile_and_is_measured_anew(store, setting, timing, damage):
    store.put(DIGEST, SHAPES, setting, whole=timing(0.1))
    store.path(DIGEST, SHAPES, setting).write_bytes(damage)
    assert store.find(DIGEST, SHAPES, setting).is_empty
    store.put(DIGEST, SHAPES, setting, whole=timing(0.2))
    assert store.find(DIGEST, SHAPES, setting).whole == timing(0.2)


def test_hearsay_stays_apart_from_measurements(store, setting, timing):
    prior = Profile(
        model_digest=DIGEST,
        shape_key=SHAPES,
        setting=setting,
        whole=timing(0.4, is_prior=True),
        heads={CUTS[0]: timing(0.3, is_prior=True), CUTS[1]: timing(0.2, is_prior=True)},
    )
    store.put(DIGEST, SHAPES, setting, heads={CUTS[0]: timing(0.1)})
    store.put_prior(prior)
    found = store.find(DIGEST, SHAPES, setting)
    assert found.heads[CUTS[0]] == timing(0.1)
    assert found.heads[CUTS[1]].is_prior
    assert found.whole is not None
    assert found.whole.is_prior
    own = store.own(DIGEST, SHAPES, setting)
    assert (own.whole, set(own.heads)) == (None, {CUTS[0]})
    store.put(DIGEST, SHAPES, setting, heads={CUTS[2]: timing(0.1, is_prior=True)})
    assert CUTS[2] not in store.find(DIGEST, SHAPES, setting).heads


def test_unsound_timings_are_left_out(store, setting, timing):
    store.put(DIGEST, SHAPES, setting, whole=timing(-1.0), heads={CUTS[0]: timing(1e9), CUTS[1]: timing(0.1)})
    found = store.find(DIGEST, SHAPES, setting)
    assert (found.whole, set(found.heads)) == (None, {CUTS[1]})


def test_threads_that_add_at_once_lose_nothing(store, setting, timing):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda cut: store.put(DIGEST, SHAPES, setting, heads={cut: timing(0.1)}), CUTS))
    assert set(store.find(DIGEST, SHAPES, setting).heads) == set(CUTS)


ADD = """
import sys
from pathlib import Path
from hybrid.profile.record import Setting, Timing
from hybrid.profile.store import ProfileStore
setting = Setting(engine="onnxruntime 1.0", provider="CPUExecutionProvider", n_threads=0, machine="x86_64 some cpu")
for cut in sys.argv[2:]:
    timing = Timing(median_s=0.11, low_s=0.1, n_runs=9)
    ProfileStore(Path(sys.argv[1])).put("b" * 64, '{"x":[1,8]}', setting, heads={cut: timing})
"""


def test_processes_that_add_at_once_lose_nothing(store, setting, tmp_path):
    folder = str(tmp_path / "profiles")
    running = [subprocess.Popen([sys.executable, "-c", ADD, folder, *CUTS[at::3]]) for at in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert set(store.find(DIGEST, SHAPES, setting).heads) == set(CUTS)


def test_a_disk_that_refuses_costs_the_profile_only(setting, timing, tmp_path):
    (tmp_path / "profiles").write_text("a file where the folder should be")
    store = ProfileStore(tmp_path / "profiles")
    store.put(DIGEST, SHAPES, setting, whole=timing(0.1))
    assert store.find(DIGEST, SHAPES, setting).is_empty


def test_the_oldest_ones_leave(store, setting, timing, monkeypatch):
    monkeypatch.setattr("hybrid.profile.store._MAX_FILES", 5)
    for number in range(9):
        store.put(DIGEST, f'{{"x":[{number}]}}', setting, whole=timing(0.1))
    kept = [number for number in range(9) if not store.find(DIGEST, f'{{"x":[{number}]}}', setting).is_empty]
    assert len(kept) == 5
    assert 8 in kept
