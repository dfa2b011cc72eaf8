"""Two sides, one answer: races against a real gateway behind a link that the test bends."""

import asyncio
import faulthandler
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import hybrid
from devices import pace
from devices.power_supply import is_on_battery
from devices.shape import Direction, Shape
from devices.shaped_proxy import ShapedProxy
from hybrid.route.allowance import Allowance
from hybrid.schedule.prices import BATTERY_S_PER_J
from tests import zoo
from tests.live_gateway import LiveGateway
from tests.session.test_placements import assert_same, whole

FEEDS = {"x": np.random.default_rng(0).standard_normal((8, 3, 48, 192), np.float32)}
"""880 kB raw: on a slow link the upload takes seconds, here it takes next to nothing."""

SESSIONS_THREADS = ("hybrid-courier", "hybrid-preparation", "hybrid-close")

FAST = Shape()
SLOW = Shape(up=Direction(rate_bps=2e6), down=Direction())
BLACKHOLE = Shape(up=Direction(open=False), down=Direction(open=False))


@pytest.fixture
def slow_device() -> Iterator[None]:
    """A device ten times slower than this machine: a gateway is worth it."""
    pace.set_factor(10.0)
    yield
    pace.set_factor(1.0)


def open_session(gateway: LiveGateway, port: int, **options: object) -> hybrid.InferenceSession:
    settings = hybrid.SessionOptions()
    settings.intra_op_num_threads = 1
    return hybrid.InferenceSession(
        zoo.path("ppocr_cls"),
        settings,
        gateway=f"http://127.0.0.1:{port}",
        token=gateway.token,
        options=hybrid.Options(**options),  # type: ignore[arg-type]
    )


def settle(session: hybrid.InferenceSession, limit_s: float = 30.0) -> hybrid.RunReport:
    """Runs until a gateway has answered three times in a row, by whatever cut."""
    until_s, n_rows = time.monotonic() + limit_s, 0
    while n_rows < 3:
        assert time.monotonic() < until_s, session.explain()
        session.run(None, FEEDS)
        n_rows = n_rows + 1 if report_of(session).placement != "local" else 0
    return report_of(session)


def report_of(session: hybrid.InferenceSession) -> hybrid.RunReport:
    assert session.report is not None
    return session.report


def test_the_device_answers_when_the_link_dies_in_a_race(gateway: LiveGateway, slow_device: None) -> None:
    wanted = whole("ppocr_cls", FEEDS)
    with ShapedProxy(gateway.port) as link, open_session(gateway, link.port) as session:
        assert session.prepare(FEEDS)
        report = settle(session)
        assert report.fallback is None
        local_s = min(c.predicted_s for c in session.explain() if c.placement == "local" and c.predicted_s)
        link.set(BLACKHOLE)
        took_s = []
        for _ in range(6):
            began_s = time.perf_counter()
            assert_same(session.run(None, FEEDS), wanted)
            took_s.append(time.perf_counter() - began_s)
            assert report_of(session).placement == "local"
        assert max(took_s) < 2 * local_s + 0.2, (took_s, local_s)
        assert report_of(session).wasted_bytes == report_of(session).bytes_up
        link.set(FAST)
        settle(session)


def test_a_hedged_report_counts_both_sides_once(gateway: LiveGateway, slow_device: None) -> None:
    with ShapedProxy(gateway.port) as link, open_session(gateway, link.port) as session:
        assert session.prepare(FEEDS)
        settle(session)
        link.set(SLOW)
        seen_hedged = False
        for _ in range(10):
            session.run(None, FEEDS)
            report = report_of(session)
            if report.placement == "local" and report.hedge_s is not None:
                seen_hedged = True
                assert report.attempts == 2
                assert 0 < report.bytes_up == report.wasted_bytes < FEEDS["x"].nbytes + 4096
                assert report.tail_s == report.network_s == 0.0
                assert report.total_s >= report.head_s > 0
                break
        assert seen_hedged


def test_many_threads_race_and_every_answer_is_right(gateway: LiveGateway, slow_device: None) -> None:
    wanted = whole("ppocr_cls", FEEDS)
    with ShapedProxy(gateway.port) as link, open_session(gateway, link.port) as session:
        assert session.prepare(FEEDS)
        wrong: list[object] = []

        def work(seed: int) -> None:
            rng = np.random.default_rng(seed)
            for _ in range(6):
                found = session.run(None, FEEDS)
                if np.abs(found[0] - wanted[0]).max() > 1e-4:
                    wrong.append(found)
                time.sleep(float(rng.uniform(0, 0.02)))

        workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for worker in workers:
            worker.start()
        for shape in (SLOW, FAST, BLACKHOLE, FAST):
            time.sleep(0.3)
            link.set(shape)
        for worker in workers:
            worker.join(60)
        assert not any(worker.is_alive() for worker in workers)
        assert not wrong
        assert session._device.n_runs == session._device.n_requests == 0


def test_what_a_lost_race_sent_is_paid_once(
    gateway: LiveGateway, slow_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    paid: list[int] = []
    spend = Allowance.spend

    def noted(allowance: Allowance, n_bytes: int) -> None:
        if threading.current_thread().name != "hybrid-preparation":
            paid.append(n_bytes)
        spend(allowance, n_bytes)

    monkeypatch.setattr(Allowance, "spend", noted)
    with ShapedProxy(gateway.port) as link, open_session(gateway, link.port, max_uplink_bytes_per_s=1e9) as session:
        assert session.prepare(FEEDS)
        settle(session)
        link.set(SLOW)
        n_lost = 0
        for _ in range(10):
            paid.clear()
            session.run(None, FEEDS)
            report = report_of(session)
            assert sum(paid) == report.bytes_up
            n_lost += report.placement == "local" and report.hedge_s is not None
        assert n_lost


def test_closing_in_mid_race_answers_everybody_and_leaves_no_thread(gateway: LiveGateway, slow_device: None) -> None:
    wanted = whole("ppocr_cls", FEEDS)
    before = set(threading.enumerate())
    with ShapedProxy(gateway.port) as link:
        session = open_session(gateway, link.port)
        assert session.prepare(FEEDS)
        settle(session)
        link.set(SLOW)
        wrong: list[object] = []

        def work() -> None:
            for _ in range(8):
                found = session.run(None, FEEDS)
                if np.abs(found[0] - wanted[0]).max() > 1e-4:
                    wrong.append(found)

        workers = [threading.Thread(target=work) for _ in range(2)]
        for worker in workers:
            worker.start()
        time.sleep(0.2)
        session.close()
        for worker in workers:
            worker.join(60)
        assert not any(worker.is_alive() for worker in workers)
        assert not wrong
        until_s = time.monotonic() + 10
        while left := {t.name for t in set(threading.enumerate()) - before if t.name in SESSIONS_THREADS}:
            assert time.monotonic() < until_s, left
            time.sleep(0.02)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_forked_in_mid_race_answers_too(gateway: LiveGateway, slow_device: None) -> None:
    wanted = whole("ppocr_cls", FEEDS)
    with ShapedProxy(gateway.port) as link, open_session(gateway, link.port) as session:
        assert session.prepare(FEEDS)
        settle(session)
        racing = threading.Thread(target=lambda: [session.run(None, FEEDS) for _ in range(6)])
        racing.start()
        time.sleep(0.05)
        child = os.fork()
        if not child:
            faulthandler.dump_traceback_later(20, exit=True)
            found = [session.run(None, FEEDS) for _ in range(3)]
            os._exit(0 if all(np.abs(one[0] - wanted[0]).max() < 1e-4 for one in found) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        racing.join(60)
        assert not racing.is_alive()
        assert_same(session.run(None, FEEDS), wanted)


@pytest.mark.parametrize("n_cores", [1, 4])
def test_one_core_encodes_first_and_several_beside_the_run(
    gateway: LiveGateway, slow_device: None, monkeypatch: pytest.MonkeyPatch, n_cores: int
) -> None:
    monkeypatch.setenv("HYBRID_CORES", str(n_cores))
    wanted = whole("ppocr_cls", FEEDS)
    with ShapedProxy(gateway.port) as link, open_session(gateway, link.port) as session:
        assert session.prepare(FEEDS)
        settle(session)
        link.set(SLOW)
        n_raced = 0
        for _ in range(6):
            assert_same(session.run(None, FEEDS), wanted)
            n_raced += report_of(session).hedge_s is not None
        assert n_raced
        remote = session._connection.remote  # type: ignore[union-attr]
        assert (remote._courier._thread is not None) == (n_cores > 1)
        [route] = remote._routes.values()
        assert route.scheduler.n_cores == n_cores


def test_on_battery_the_device_waits_before_it_computes_beside(
    gateway: LiveGateway, slow_device: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supply = tmp_path / "BAT0"
    supply.mkdir()
    (supply / "type").write_text("Battery\n")
    (supply / "status").write_text("Full\n")
    monkeypatch.setattr("hybrid.route.route.is_on_battery", lambda: is_on_battery(tmp_path))
    with ShapedProxy(gateway.port) as link, open_session(gateway, link.port) as session:
        assert session.prepare(FEEDS)
        settle(session)
        decision, _ = session.decisions[-1]
        assert decision.hedge_s == 0.0, "on mains it is a race"
        (supply / "status").write_text("Discharging\n")
        until_s = time.monotonic() + 10
        while (decision := session.decisions[-1][0]).hedge_s in (0.0, None):
            assert time.monotonic() < until_s, decision
            session.run(None, FEEDS)
            time.sleep(0.05)
        assert decision.inputs is not None
        assert decision.inputs.prices.s_per_j == BATTERY_S_PER_J


def test_awaited_runs_race_too_and_cancelling_stops_both_sides(gateway: LiveGateway, slow_device: None) -> None:
    wanted = whole("ppocr_cls", FEEDS)

    async def scenario(session: hybrid.InferenceSession, link: ShapedProxy) -> None:
        assert_same(await session.run_awaitable(None, FEEDS), wanted)
        link.set(BLACKHOLE)
        for _ in range(3):
            assert_same(await session.run_awaitable(None, FEEDS), wanted)
            assert report_of(session).placement == "local"
        running = asyncio.ensure_future(session.run_awaitable(None, FEEDS))
        async with asyncio.timeout(20.0):
            while not session._device.n_runs:  # noqa: ASYNC110 (the device tells nobody)
                await asyncio.sleep(0.001)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        for _ in range(400):
            await asyncio.sleep(0.005)
            if not session._device.n_runs:
                break
        assert session._device.n_runs == session._device.n_requests == 0

    with ShapedProxy(gateway.port) as link, open_session(gateway, link.port) as session:
        assert session.prepare(FEEDS)
        settle(session)
        asyncio.run(scenario(session, link))


def test_a_deadline_is_kept_by_starting_the_device_in_time(gateway: LiveGateway, slow_device: None) -> None:
    wanted = whole("ppocr_cls", FEEDS)
    with ShapedProxy(gateway.port) as link, open_session(gateway, link.port, objective="energy") as session:
        assert session.prepare(FEEDS)
        local_s = max(c.predicted_s for c in session.explain() if c.placement == "local" and c.predicted_s)
    deadline_s = 3 * local_s + 0.3
    with (
        ShapedProxy(gateway.port) as link,
        open_session(gateway, link.port, objective="energy", deadline_s=deadline_s) as session,
    ):
        assert session.prepare(FEEDS)
        settle(session)
        link.set(BLACKHOLE)
        began_s = time.perf_counter()
        assert_same(session.run(None, FEEDS), wanted)
        assert time.perf_counter() - began_s < deadline_s + 0.05
