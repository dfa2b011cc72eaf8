"""A new device begins with what like machines measured, believes nothing that cannot be, and measures itself."""

import json
from collections.abc import Iterator

import msgspec
import pytest

import hybrid
from hybrid.artifact.cache import cache_dir
from hybrid.artifact.digest import model_digest
from hybrid.errors import ExitCode
from hybrid.graph.shape_key import ShapeKey
from hybrid.profile.exchange import blended, fetch_priors, fitted, priors, share
from hybrid.profile.machine import this_setting
from hybrid.profile.record import Profile
from hybrid.profile.store import ProfileStore
from hybrid.transport.client import GatewayClient, acquire, release
from hybrid.transport.trust import Trust
from tests import zoo
from tests.live_gateway import LiveGateway

CUTS = [f"{number:016x}" for number in range(4)]
SHAPES = ShapeKey.of(zoo.feeds("ppocr_cls")).text


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HYBRID_CONFIG", str(tmp_path / "config"))


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    with LiveGateway(tmp_path_factory.mktemp("sharing") / "data", "--no-announce") as running:
        running.push(zoo.path("ppocr_cls"), "cls")
        yield running


@pytest.fixture
def client(gateway: LiveGateway) -> Iterator[GatewayClient]:
    found = acquire(gateway.url, gateway.token, trust=Trust())
    assert found.wait_settled(10) == "ready"
    yield found
    release(found)


@pytest.fixture
def digest() -> str:
    return model_digest(zoo.path("ppocr_cls"))


@pytest.fixture
def known(setting, timing, digest):
    """A profile whose parts take these seconds."""

    def make(whole: float, *heads: float) -> Profile:
        parts = {cut: timing(seconds) for cut, seconds in zip(CUTS, heads, strict=False)}
        return Profile(model_digest=digest, shape_key=SHAPES, setting=setting, whole=timing(whole), heads=parts)

    return make


def test_of_several_words_the_middle_one_counts(known):
    found = blended([known(0.1, 0.01), known(0.12, 0.012), known(3000.0, 0.000001)])
    assert found.whole.low_s == 0.12
    assert found.heads[CUTS[0]].low_s == 0.01
    assert all(timing.is_prior for timing in (found.whole, *found.heads.values()))


def test_a_part_that_takes_longer_than_the_whole_is_left_out(known):
    found = blended([known(0.1, 0.05, 0.4)])
    assert set(found.heads) == {CUTS[0]}


def test_a_prior_is_fitted_to_what_this_machine_takes(known):
    prior = blended([known(0.1, 0.01)])
    found = fitted(prior, known(0.2))
    assert found.heads[CUTS[0]].low_s == pytest.approx(0.02)
    assert fitted(prior, Profile(model_digest="a" * 64, shape_key=SHAPES, setting=prior.setting)) == prior


@pytest.mark.parametrize("whole", [0.01, 1.0])
def test_a_machine_that_is_not_alike_is_not_believed(known, whole):
    assert fitted(blended([known(0.1, 0.01)]), known(whole)) is None


def test_what_one_device_shares_another_begins_with(client, known, digest, setting, tmp_path):
    assert share(client, known(0.1, 0.01, 0.02))
    store = ProfileStore(tmp_path / "other")
    assert fetch_priors(client, store, digest, SHAPES, setting)
    found = store.find(digest, SHAPES, setting)
    assert {cut: timing.low_s for cut, timing in found.heads.items()} == {CUTS[0]: 0.01, CUTS[1]: 0.02}
    assert found.heads[CUTS[0]].is_prior
    assert store.own(digest, SHAPES, setting).is_empty


def test_hearsay_is_not_passed_on(client, known, digest, setting, timing, tmp_path):
    elsewhere = msgspec.structs.replace(setting, machine="a machine of its own")
    heard = msgspec.structs.replace(known(0.1), setting=elsewhere, whole=timing(0.1, is_prior=True))
    assert not share(client, heard)
    assert priors(client, digest, SHAPES, elsewhere) is None


def test_other_machines_and_shapes_have_their_own(client, known, digest, setting):
    assert share(client, known(0.1, 0.01))
    for other in (
        (digest, SHAPES, msgspec.structs.replace(setting, n_threads=7)),
        (digest, '{"x":[4,3,48,192]}', setting),
        ("f" * 64, SHAPES, setting),
    ):
        assert priors(client, *other) is None


def test_a_gateway_that_is_gone_costs_nothing_but_the_prior(known, digest, setting, tmp_path):
    gone = acquire("http://127.0.0.1:9", "", trust=Trust())
    try:
        assert not share(gone, known(0.1))
        assert not fetch_priors(gone, ProfileStore(tmp_path), digest, SHAPES, setting)
    finally:
        release(gone)


@pytest.mark.slow
def test_a_profile_by_command_is_paid_once_and_warms_the_next_device(gateway, hybrid_here, tmp_path, monkeypatch):
    """Paced, so that the second device's budget ends early on any machine."""
    monkeypatch.setattr("devices.pace._chosen", None)  # what an earlier test chose goes before the environment
    monkeypatch.setenv("HYBRID_PACE", "40")
    model = ["profile", str(zoo.path("ppocr_cls")), "--shape", "1x3x48x192", "--threads", "1"]
    words = [*model, "--gateway", gateway.url, "--json"]

    def told(home: str, *more: str) -> dict:
        settings = {"HYBRID_CACHE": str(tmp_path / home), "HYBRID_TOKEN": gateway.token}
        done = hybrid_here(*words, *more, **settings)
        assert done.returncode == ExitCode.OK, done.stderr
        return json.loads(done.stdout)["data"]

    first = told("one", "--budget", "20")
    assert (first["n_left"], first["is_shared"]) == (0, True)
    assert {cut["head"]["from"] for cut in first["cuts"]} == {"measured"}
    assert all(cut["gateway_tail_s"] is None or cut["gateway_tail_s"] > 0 for cut in first["cuts"])
    again = told("one")
    assert {cut["head"]["from"] for cut in again["cuts"]} == {"kept"}
    assert again["whole"]["timing"] == first["whole"]["timing"]
    other = told("two", "--budget", "0.1")
    assert other["n_left"] > 0
    most_s = (
        1.5 * first["whole"]["timing"]["median_s"] + 0.005
    )  # a busy moment's head that takes longer is nobody's prior
    believed = {cut["cut"] for cut in first["cuts"] if cut["head"]["timing"]["low_s"] <= most_s}
    assert {cut["head"]["from"] for cut in other["cuts"] if cut["cut"] in believed} <= {"shared", "measured"}
    assert "shared" in {cut["head"]["from"] for cut in other["cuts"]}
    renewed = told("one", "--again", "--budget", "20")
    assert {cut["head"]["from"] for cut in renewed["cuts"]} == {"measured"}


@pytest.mark.slow
def test_a_session_fills_the_store_and_the_next_one_times_nothing_again(gateway, digest):
    feeds = zoo.feeds("ppocr_cls")

    def prepared() -> hybrid.InferenceSession:
        options = hybrid.Options(placement="split", fallback=False, deadline_s=60)
        session = hybrid.InferenceSession(
            zoo.path("ppocr_cls"), gateway=gateway.url, token=gateway.token, options=options
        )
        session.run(None, feeds)
        return session

    store, setting = ProfileStore(cache_dir() / "profiles"), this_setting(["CPUExecutionProvider"])
    with prepared():
        first = store.own(digest, SHAPES, setting)
    assert first.heads
    assert first.whole is not None
    with prepared():
        second = store.own(digest, SHAPES, setting)
    assert {cut: second.heads[cut] for cut in first.heads} == dict(first.heads)
    assert second.whole == first.whole
