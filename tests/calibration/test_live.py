"""A calibrated codec is chosen where it wins; without a trusted one no lossy codec is."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest

import hybrid
from compression.codecs import catalog
from devices import pace
from devices.shape import Direction, Shape
from devices.shaped_proxy import ShapedProxy
from hybrid.artifact.attachments import Attachment
from hybrid.artifact.digest import model_digest
from hybrid.artifact.publishers import create_key, own_key_path, read_key
from hybrid.artifact.signature import new_private_key
from hybrid.calibration.calibrate import as_attachment
from hybrid.calibration.record import Calibration, Cell
from hybrid.errors import ExitCode, Forbidden, HybridError, NotFound
from hybrid.graph.shape_key import ShapeKey
from hybrid.transport.attachment_calls import find_attachments, put_attachment
from hybrid.transport.client import GatewayClient, acquire, release
from hybrid.transport.trust import Trust
from tests import zoo
from tests.live_gateway import LiveGateway

SLOW_LINK = Shape(up=Direction(rate_bps=12_000_000.0, delay_s=0.005), down=Direction(delay_s=0.005))
"""602 kB take 0.4 s as they are, 0.2 s in 16 bits and 0.1 s in 8."""

MODEL = "efficientnet"
LOSSY = {name for name, codec in catalog.CODECS.items() if codec.lossy}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("live")


@pytest.fixture(autouse=True)
def _shared_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are cut and heads timed once for all; what counts is decided by keys, and those are each test's own."""
    monkeypatch.setenv("HYBRID_CACHE", str(cache))


@pytest.fixture
def slow_device() -> Iterator[None]:
    pace.set_factor(35.0)
    yield
    pace.set_factor(1.0)


@pytest.fixture
def client(gateway: LiveGateway) -> Iterator[GatewayClient]:
    found = acquire(gateway.url, gateway.token, trust=Trust())
    assert found.wait_settled(10) == "ready"
    yield found
    release(found)


@pytest.fixture
def placed(gateway: LiveGateway) -> Callable[..., tuple[set[str], list[hybrid.Candidate]]]:
    """Runs a session over the slow link; the codecs of its remote answers, and its candidates at the end."""

    def run(n_requests: int = 8, **options: object) -> tuple[set[str], list[hybrid.Candidate]]:
        one_thread = onnxruntime.SessionOptions()
        one_thread.intra_op_num_threads = 1
        chosen = hybrid.Options(**({"max_accuracy_drop": 0.5} | options))  # type: ignore[arg-type]
        used = set()
        with ShapedProxy(gateway.port) as link:
            link.set(SLOW_LINK)
            with hybrid.InferenceSession(
                zoo.path(MODEL),
                one_thread,
                gateway=f"http://127.0.0.1:{link.port}",
                token=gateway.token,
                options=chosen,
            ) as session:
                session.prepare(zoo.feeds(MODEL, seed=0), timeout_s=60)
                for seed in range(n_requests):
                    session.run(None, zoo.feeds(MODEL, seed=seed))
                    if session.report.placement != "local":
                        used.add(session.report.codec)
                return used, session.explain()

    return run


def word_on(digest: str, *codecs: str, drop_high: float = 0.004) -> Calibration:
    cells = tuple(
        Cell(cut="", codec=codec, n=600, drop=0.0, drop_low=0.0, drop_high=drop_high, raw_bytes=4.0, n_bytes=1.0)
        for codec in codecs
    )
    return Calibration(
        model_digest=digest,
        shape_key=ShapeKey.of(zoo.feeds(MODEL)).text,
        metric="agreement",
        n_samples=600,
        data_digest="d" * 64,
        made_s=1.0,
        cells=cells,
    )


@pytest.fixture
def digest() -> str:
    return model_digest(zoo.path(MODEL))


@pytest.mark.slow
def test_a_calibration_by_command_reaches_a_device_through_the_gateway(
    gateway, placed, slow_device, digest, hybrid_here, tmp_path, monkeypatch
):
    """Measured, signed and pushed on one machine; on another one its codec is chosen once the key is trusted."""
    drawn = [zoo.feeds(MODEL, seed=seed) for seed in range(12)]
    np.savez(tmp_path / "x.npz", **{name: np.concatenate([feeds[name] for feeds in drawn]) for name in drawn[0]})
    words = ["--data", str(tmp_path / "x.npz"), "--codecs", "fp16,q8", "--cuts", "input", "--sign", "own", "--push"]
    publisher = {
        "HYBRID_CONFIG": str(tmp_path / "publisher"),
        "HYBRID_CACHE": str(tmp_path / "publishers-cache"),
        "HYBRID_TOKEN": gateway.token,
    }
    done = hybrid_here("calibrate", str(zoo.path(MODEL)), *words, "--gateway", gateway.url, "--json", **publisher)
    assert done.returncode == ExitCode.OK, done.stderr
    told = json.loads(done.stdout)["data"]
    assert told["is_pushed"]
    monkeypatch.setenv("HYBRID_PUBLISHERS", told["calibrations"][0]["publisher"])
    used, candidates = placed(n_requests=6)
    assert used & {"q8", "q8z"}, candidates
    chosen = next(candidate for candidate in candidates if candidate.chosen)
    assert chosen.codec in {"q8", "q8z"}
    drop = next(cell["drop_high"] for cell in told["calibrations"][0]["cells"] if cell["codec"] == "q8")
    assert chosen.accuracy_drop == pytest.approx(drop)


@pytest.mark.slow
def test_a_local_calibration_by_ones_own_key_permits(placed, slow_device, digest):
    from hybrid.artifact.attachments import attach
    from hybrid.calibration.permits import own_folder

    create_key(own_key_path())
    attach(own_folder(digest), as_attachment(word_on(digest, "q8"), read_key(own_key_path())))
    used, candidates = placed(n_requests=6)
    assert used & {"q8", "q8z"}, candidates


@pytest.mark.slow
def test_a_drop_above_the_limit_is_never_chosen_and_said(placed, slow_device, digest):
    from hybrid.artifact.attachments import attach
    from hybrid.calibration.permits import own_folder

    create_key(own_key_path())
    attach(own_folder(digest), as_attachment(word_on(digest, "q8", drop_high=0.02), read_key(own_key_path())))
    used, candidates = placed(n_requests=4, max_accuracy_drop=0.01)
    assert not used & LOSSY
    reasons = {candidate.reason for candidate in candidates if candidate.codec == "q8" and not candidate.cut}
    assert reasons == {"accuracy drop 0.020 is above 0.010"}


@pytest.mark.slow
def test_what_nobody_trusted_signed_is_never_chosen(placed, slow_device, client, digest):
    """The gateway hands out an unsigned one, a stranger's, and a trusted one about other shapes."""
    create_key(own_key_path())
    word = word_on(digest, "q8", "q4", "jpeg")
    elsewhere = msgspec.structs.replace(word, shape_key='{"x":[1,3,225,225]}')
    for attachment in (
        as_attachment(word, None),
        as_attachment(word, new_private_key()),
        as_attachment(elsewhere, read_key(own_key_path())),
    ):
        put_attachment(client, attachment)
    used, candidates = placed(n_requests=3)
    assert not used & LOSSY
    assert candidates
    assert not {candidate.codec for candidate in candidates} & LOSSY


# -- the calls themselves


def test_a_calibration_comes_back_byte_for_byte_with_its_signature(client, digest):
    key = new_private_key()
    sent = as_attachment(word_on(digest, "fp16"), key)
    assert len(put_attachment(client, sent)) == 64
    subject = ShapeKey.of(zoo.feeds(MODEL)).id
    found = find_attachments(client, digest, "calibration", subject=subject)
    assert sent in found
    assert put_attachment(client, sent)
    assert find_attachments(client, digest, "calibration", subject=subject).count(sent) == 1
    assert find_attachments(client, digest, "calibration", subject="0" * 16) == ()
    assert find_attachments(client, digest, "report") == ()


def test_a_model_that_is_not_there_has_no_attachments(client):
    with pytest.raises(NotFound):
        put_attachment(client, as_attachment(word_on("a" * 64, "fp16"), None))
    assert find_attachments(client, "a" * 64, "calibration") == ()


def test_a_devices_token_brings_profiles_and_no_calibrations(gateway, client, digest, hybrid_here, setting_profile):
    made = hybrid_here("gateway", "token", "create", "--name", "box", "--data", str(gateway.data), "--json")
    token = json.loads(made.stdout)["data"]["token"]
    time.sleep(1.0)  # the gateway looks twice a second for new tokens
    device = acquire(gateway.url, token, trust=Trust())
    try:
        assert device.wait_settled(10) == "ready"
        with pytest.raises(Forbidden, match="publish"):
            put_attachment(device, as_attachment(word_on(digest, "fp16"), new_private_key()))
        assert put_attachment(device, setting_profile(digest))
        assert find_attachments(device, digest, "calibration") is not None
    finally:
        release(device)


@pytest.fixture
def setting_profile() -> Callable[[str], Attachment]:
    from hybrid.artifact.attachments import attachment_of
    from hybrid.profile.record import Profile, Setting, Timing

    setting = Setting(engine="onnxruntime 1.0", provider="CPUExecutionProvider", n_threads=1, machine="some machine")

    def make(digest: str) -> Attachment:
        timing = Timing(median_s=0.02, low_s=0.01)
        profile = Profile(model_digest=digest, shape_key='{"x":[1,3]}', setting=setting, whole=timing)
        return attachment_of(profile.content)

    return make


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"content": "{}"}', b'{"content": "", "signature": "x"}', b'{"content": 5}', b"\xff\xfe"],
)
def test_broken_bodies_are_refused(gateway, body):
    import urllib.error
    import urllib.request

    request = urllib.request.Request(
        f"{gateway.url}/v2/hybrid/attachments", body, {"Authorization": f"Bearer {gateway.token}"}, method="POST"
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    told = json.loads(refused.value.read())
    refused.value.close()
    assert (refused.value.code, told["code"]) == (400, "bad_message")


def test_without_a_token_nothing_is_told(gateway, digest):
    stranger = acquire(gateway.url, None, trust=Trust())
    try:
        with pytest.raises(HybridError) as refused:
            find_attachments(stranger, digest, "calibration")
        assert refused.value.code == "unauthenticated"
    finally:
        release(stranger)


def test_the_data_folder_keeps_them_across_a_restart(tmp_path: Path, digest):
    with LiveGateway(tmp_path / "data", "--no-announce") as running:
        running.push(zoo.path("ppocr_cls"), "cls")
        held = model_digest(zoo.path("ppocr_cls"))
        sent = as_attachment(word_on(held, "fp16"), new_private_key())
        found = acquire(running.url, running.token, trust=Trust())
        put_attachment(found, sent)
        release(found)
        running.kill()
        running.start()
        again = acquire(running.url, running.token, trust=Trust())
        assert again.wait_settled(20) == "ready"
        assert find_attachments(again, held, "calibration") == (sent,)
        release(again)
