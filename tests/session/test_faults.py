"""Whatever fails remotely, the answer comes, it is right, and the report says why the device gave it."""

import asyncio
import faulthandler
import json
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import hybrid
from devices import pace
from devices.shape import Direction, Shape
from devices.shaped_proxy import ShapedProxy
from hybrid.errors import PlacementUnavailable
from hybrid.scouting import preparation
from tests import zoo
from tests.live_gateway import HYBRID, LiveGateway
from tests.session.test_placements import assert_same, whole

SLOW_UPLINK = Shape(up=Direction(rate_bps=1_500_000.0), down=Direction())
"""110 kB take about 0.6 s: time enough to do harm in mid-request."""


def prepared_session(url: str, token: str, **options: object) -> hybrid.InferenceSession:
    chosen = hybrid.Options(placement="offload", codec="none", **options)  # type: ignore[arg-type]
    session = hybrid.InferenceSession(zoo.path("ppocr_cls"), gateway=url, token=token, options=chosen)
    assert session.prepare(zoo.feeds("ppocr_cls")), session.explain()
    return session


def assert_answered_here(session: hybrid.InferenceSession, outputs: list[np.ndarray], feeds: zoo.Feeds) -> str:
    assert_same(outputs, whole("ppocr_cls", feeds))
    report = session.report
    assert report is not None
    assert report.placement == "local"
    assert report.fallback is not None
    return report.fallback.partition(":")[0]


@pytest.mark.parametrize("harm", [signal.SIGKILL, signal.SIGSTOP])
def test_gateway_killed_or_frozen_in_mid_request(own_gateway: LiveGateway, harm: signal.Signals) -> None:
    feeds = zoo.feeds("ppocr_cls", 1)
    with ShapedProxy(own_gateway.port) as link:
        session = prepared_session(f"http://127.0.0.1:{link.port}", own_gateway.token)
        session.run(None, feeds)
        assert session.report is not None
        assert session.report.placement == "offload"
        link.set(SLOW_UPLINK)
        before = link.traffic().up_bytes
        outputs: list[np.ndarray] = []
        runner = threading.Thread(target=lambda: outputs.extend(_report_kept(session, feeds)))
        runner.start()
        while link.traffic().up_bytes < before + 20_000:
            time.sleep(0.005)  # until the upload is under way
        own_gateway.signal(harm)
        began_s = time.perf_counter()
        runner.join(timeout=20)
        took_s = time.perf_counter() - began_s
        assert_same(outputs, whole("ppocr_cls", feeds))
        placement, fallback = _kept
        assert placement == "local"
        assert fallback.partition(":")[0] in {"connection_lost", "gateway_stalled", "gateway_unreachable"}
        assert took_s < 6.0
        session.close()


_kept: list[str] = []


def _report_kept(session: hybrid.InferenceSession, feeds: zoo.Feeds) -> list[np.ndarray]:
    """Runs in a thread of its own and keeps that thread's report."""
    outputs = session.run(None, feeds)
    assert session.report is not None
    _kept[:] = [session.report.placement, str(session.report.fallback)]
    return outputs


def test_link_blackholed_and_back(own_gateway: LiveGateway) -> None:
    feeds = zoo.feeds("ppocr_cls", 2)
    with ShapedProxy(own_gateway.port) as link:
        session = prepared_session(f"http://127.0.0.1:{link.port}", own_gateway.token)
        session.run(None, feeds)
        link.set(Shape(up=Direction(open=False), down=Direction(open=False)))
        outputs = session.run(None, feeds)
        assert assert_answered_here(session, outputs, feeds) == "gateway_stalled"
        link.set(Shape())
        deadline_s = time.monotonic() + 20
        while time.monotonic() < deadline_s:
            session.run(None, feeds)
            assert session.report is not None
            if session.report.placement == "offload":
                break
        assert session.report.placement == "offload"
        session.close()


def test_gateway_restarted_serves_again(own_gateway: LiveGateway) -> None:
    feeds = zoo.feeds("ppocr_cls", 3)
    session = prepared_session(own_gateway.url, own_gateway.token)
    own_gateway.kill()
    assert_answered_here(session, session.run(None, feeds), feeds)
    own_gateway.start()
    deadline_s = time.monotonic() + 30
    placements = set()
    while time.monotonic() < deadline_s and "offload" not in placements:
        assert_same(session.run(None, feeds), whole("ppocr_cls", feeds))
        assert session.report is not None
        placements.add(session.report.placement)
    assert "offload" in placements
    session.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions that soon stop hoping for a gateway: what they say then is shown here, not how long they hoped."""
    monkeypatch.setattr(preparation, "UNREACHABLE_S", 1.0)


def test_nobody_there(impatient: None) -> None:
    session = hybrid.InferenceSession(
        zoo.path("ppocr_cls"), gateway="http://127.0.0.1:9", options=hybrid.Options(placement="offload")
    )
    feeds = zoo.feeds("ppocr_cls")
    assert not session.prepare(feeds, timeout_s=20)
    assert assert_answered_here(session, session.run(None, feeds), feeds) == "not_available"
    assert session.report is not None
    assert "127.0.0.1:9" in str(session.report.fallback)
    session.close()


def test_nobody_there_and_no_fallback(impatient: None) -> None:
    session = hybrid.InferenceSession(
        zoo.path("ppocr_cls"),
        gateway="http://127.0.0.1:9",
        options=hybrid.Options(placement="offload", fallback=False),
    )
    with pytest.raises(PlacementUnavailable, match=r"127\.0\.0\.1:9"):
        session.run(None, zoo.feeds("ppocr_cls"))
    session.close()


def test_gateway_without_the_model(own_gateway: LiveGateway) -> None:
    session = hybrid.InferenceSession(
        zoo.path("silero"),
        gateway=own_gateway.url,
        token=own_gateway.token,
        options=hybrid.Options(placement="offload"),
    )
    feeds = zoo.feeds("silero")
    assert not session.prepare(feeds, timeout_s=20)
    assert_same(session.run(None, feeds), whole("silero", feeds))
    assert session.report is not None
    assert "does not hold this model" in str(session.report.fallback)
    session.close()


def test_model_is_pushed_when_asked_to(own_gateway: LiveGateway) -> None:
    options = hybrid.Options(placement="offload", push_model=True)
    session = hybrid.InferenceSession(
        zoo.path("silero"), gateway=own_gateway.url, token=own_gateway.token, options=options
    )
    feeds = zoo.feeds("silero")
    session.prepare(feeds, timeout_s=1)
    deadline_s = time.monotonic() + 40
    while not session.prepare(feeds, timeout_s=5) and time.monotonic() < deadline_s:
        pass
    assert_same(session.run(None, feeds), whole("silero", feeds))
    assert session.report is not None
    assert session.report.placement == "offload"
    session.close()


@pytest.mark.parametrize("token", ["hyb_aaaaaaaa_" + "a" * 32, None], ids=["unknown", "none"])
def test_gateway_that_does_not_know_us(own_gateway: LiveGateway, token: str | None, impatient: None) -> None:
    session = hybrid.InferenceSession(
        zoo.path("ppocr_cls"), gateway=own_gateway.url, token=token, options=hybrid.Options(placement="offload")
    )
    feeds = zoo.feeds("ppocr_cls")
    assert not session.prepare(feeds, timeout_s=20)
    assert assert_answered_here(session, session.run(None, feeds), feeds) == "not_available"
    assert session.report is not None
    assert "unauthenticated" in str(session.report.fallback)
    session.close()


def test_token_revoked_while_in_use(own_gateway: LiveGateway) -> None:
    command = [str(HYBRID), "gateway", "token"]
    where = ["--data", str(own_gateway.data)]
    made = subprocess.run(
        [*command, "create", "--role", "device", "--name", "box", "--json", *where],
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    token = json.loads(made.stdout)["data"]["token"]
    feeds = zoo.feeds("ppocr_cls", 4)
    session = prepared_session(own_gateway.url, token)
    session.run(None, feeds)
    assert session.report is not None
    assert session.report.placement == "offload"
    subprocess.run([*command, "revoke", token.split("_")[1], *where], check=True, timeout=30, capture_output=True)
    deadline_s = time.monotonic() + 10
    while session.report.placement == "offload" and time.monotonic() < deadline_s:
        assert_same(session.run(None, feeds), whole("ppocr_cls", feeds))
    assert session.report.placement == "local"
    session.close()


def test_other_file_of_the_same_name_is_never_composed(own_gateway: LiveGateway, tmp_path: Path) -> None:
    """The same graph with one changed weight has another digest: it stays local."""
    import onnx

    model = onnx.load(zoo.path("ppocr_cls"))
    model.producer_name = "changed"
    onnx.save(model, tmp_path / zoo.path("ppocr_cls").name)
    session = hybrid.InferenceSession(
        tmp_path / zoo.path("ppocr_cls").name,
        gateway=own_gateway.url,
        token=own_gateway.token,
        options=hybrid.Options(placement="offload"),
    )
    assert not session.prepare(zoo.feeds("ppocr_cls"), timeout_s=20)
    session.run(None, zoo.feeds("ppocr_cls"))
    assert session.report is not None
    assert "does not hold this model" in str(session.report.fallback)
    session.close()


def test_a_shape_never_seen_runs_here_at_once(own_gateway: LiveGateway) -> None:
    session = prepared_session(own_gateway.url, own_gateway.token)
    feeds = {"x": np.ones((7, 3, 48, 192), np.float32)}
    outputs = session.run(None, feeds)
    assert_same(outputs, whole("ppocr_cls", feeds))
    assert session.report is not None
    assert session.report.placement == "local"
    assert session.prepare(feeds)
    session.run(None, feeds)
    assert session.report.placement == "offload"
    session.close()


def test_deadline_leaves_time_for_the_device(own_gateway: LiveGateway) -> None:
    feeds = zoo.feeds("ppocr_cls", 5)
    with ShapedProxy(own_gateway.port) as link:
        session = prepared_session(f"http://127.0.0.1:{link.port}", own_gateway.token, deadline_s=0.4)
        session.run(None, feeds)
        link.set(Shape(up=Direction(open=False), down=Direction(open=False)))
        began_s = time.perf_counter()
        outputs = session.run(None, feeds)
        took_s = time.perf_counter() - began_s
        assert_same(outputs, whole("ppocr_cls", feeds))
        assert took_s < 0.45 + (time.perf_counter() - began_s - took_s), "beside what the device alone takes"
        session.close()


def _child_runs(session: hybrid.InferenceSession, answers: "multiprocessing.SimpleQueue[object]") -> None:
    faulthandler.dump_traceback_later(50, exit=True)  # a child that hangs says where
    feeds = zoo.feeds("ppocr_cls", 6)
    outputs = session.run(None, feeds)
    assert session.report is not None
    answers.put((outputs[0].tobytes(), session.report.placement))
    deadline_s = time.monotonic() + 20
    while session.report.placement == "local" and time.monotonic() < deadline_s:
        session.run(None, feeds)
    answers.put((outputs[0].tobytes(), session.report.placement))
    os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_child_computes_and_connects_anew(own_gateway: LiveGateway) -> None:
    options = hybrid.SessionOptions()
    options.intra_op_num_threads = 1  # an engine's own threads do not survive a fork
    session = hybrid.InferenceSession(
        zoo.path("ppocr_cls"),
        options,
        gateway=own_gateway.url,
        token=own_gateway.token,
        options=hybrid.Options(placement="offload"),
    )
    assert session.prepare(zoo.feeds("ppocr_cls"))
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=_child_runs, args=(session, answers))
    child.start()
    child.join(timeout=60)
    assert child.exitcode == 0
    (first, _), (_, later) = answers.get(), answers.get()
    wanted = whole("ppocr_cls", zoo.feeds("ppocr_cls", 6))[0]
    assert np.abs(np.frombuffer(first, np.float32).reshape(wanted.shape) - wanted).max() <= 1e-4
    assert later == "offload"
    session.run(None, zoo.feeds("ppocr_cls"))
    assert session.report is not None
    assert session.report.placement == "offload"
    session.close()


def test_two_gateways_fail_over(own_gateway: LiveGateway, tmp_path: Path) -> None:
    with LiveGateway(tmp_path / "second", "--no-announce", "--no-auth") as second:
        second.push(zoo.path("ppocr_cls"), "cls")
        session = hybrid.InferenceSession(
            zoo.path("ppocr_cls"),
            gateway=[own_gateway.url, second.url],
            token=own_gateway.token,
            options=hybrid.Options(placement="offload"),
        )
        feeds = zoo.feeds("ppocr_cls", 7)
        seen: set[str] = set()
        deadline_s = time.monotonic() + 30
        while len({c.gateway for c in session.explain() if c.predicted_s and c.gateway}) < 2:
            session.run(None, feeds)
            assert time.monotonic() < deadline_s
        session.run(None, feeds)
        assert session.report is not None
        (own_gateway if session.report.gateway == own_gateway.url else second).kill()
        left = second.url if session.report.gateway == own_gateway.url else own_gateway.url
        while left not in seen and time.monotonic() < deadline_s + 10:
            assert_same(session.run(None, feeds), whole("ppocr_cls", feeds))
            seen.add(session.report.gateway)
        assert left in seen
        session.close()


def test_auto_follows_the_link(own_gateway: LiveGateway) -> None:
    """A device ten times slower than this machine: offload while the link is good, here while it is not."""
    pace.set_factor(10.0)
    options = hybrid.SessionOptions()
    options.intra_op_num_threads = 1
    feeds = {"x": np.random.default_rng(0).standard_normal((8, 3, 48, 192), np.float32)}
    try:
        with ShapedProxy(own_gateway.port) as link:
            session = hybrid.InferenceSession(
                zoo.path("ppocr_cls"), options, gateway=f"http://127.0.0.1:{link.port}", token=own_gateway.token
            )
            assert session.prepare(feeds)
            assert _settles_on(session, feeds, remote=True)
            link.set(Shape(up=Direction(rate_bps=20_000.0, delay_s=0.3), down=Direction(delay_s=0.3)))
            assert _settles_on(session, feeds, remote=False)
            link.set(Shape())
            assert _settles_on(session, feeds, remote=True)
            session.close()
    finally:
        pace.set_factor(1.0)


def _settles_on(session: hybrid.InferenceSession, feeds: zoo.Feeds, *, remote: bool) -> bool:
    """Whether five runs in a row are computed there within 40 seconds."""
    deadline_s, in_a_row = time.monotonic() + 40, 0
    while in_a_row < 5 and time.monotonic() < deadline_s:
        outputs = session.run(None, feeds)
        assert_same(outputs, whole("ppocr_cls", feeds))
        assert session.report is not None
        in_a_row = in_a_row + 1 if (session.report.placement != "local") == remote else 0
    return in_a_row >= 5


def test_closing_while_requests_are_in_flight(own_gateway: LiveGateway) -> None:
    feeds = zoo.feeds("ppocr_cls", 8)
    session = prepared_session(own_gateway.url, own_gateway.token)

    async def run_and_close() -> list[list[np.ndarray]]:
        runs = [asyncio.ensure_future(session.run_awaitable(None, feeds)) for _ in range(8)]
        await asyncio.sleep(0)
        await asyncio.to_thread(session.close)
        return await asyncio.gather(*runs)

    for outputs in asyncio.run(run_and_close()):
        assert_same(outputs, whole("ppocr_cls", feeds))
    assert_same(session.run(None, feeds), whole("ppocr_cls", feeds))
    assert onnxruntime.__version__


def test_a_deadline_that_the_device_could_not_keep_does_not_keep_a_forced_offload_from_running(
    own_gateway: LiveGateway,
) -> None:
    pace.set_factor(100.0)
    try:
        options = hybrid.SessionOptions()
        options.intra_op_num_threads = 1
        session = hybrid.InferenceSession(
            zoo.path("ppocr_cls"),
            options,
            gateway=own_gateway.url,
            token=own_gateway.token,
            options=hybrid.Options(placement="offload", fallback=False, deadline_s=2.0),
        )
        feeds = {"x": np.ones((16, 3, 48, 192), np.float32)}
        assert session.prepare(feeds)
        session.run(None, feeds)
        assert session.report is not None
        assert session.report.placement == "offload"
        session.close()
    finally:
        pace.set_factor(1.0)
