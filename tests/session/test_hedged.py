"""Two sides, one answer: races against a real gateway behind a link that the test bends."""

import asyncio
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

import hybrid
from devices import pace
from devices.shape import Direction, Shape
from devices.shaped_proxy import ShapedProxy
from tests import zoo
from tests.live_gateway import LiveGateway
from tests.session.test_placements import assert_same, whole

FEEDS = {"x": np.random.default_rng(0).standard_normal((8, 3, 48, 192), np.float32)}
"""880 kB raw: on a slow link the upload takes seconds, here it takes next to nothing."""

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


def test_the_device_answers_when_the_link_dies_in_a_race(own_gateway: LiveGateway, slow_device: None) -> None:
    wanted = whole("ppocr_cls", FEEDS)
    with ShapedProxy(own_gateway.port) as link, open_session(own_gateway, link.port) as session:
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


def test_a_hedged_report_counts_both_sides_once(own_gateway: LiveGateway, slow_device: None) -> None:
    with ShapedProxy(own_gateway.port) as link, open_session(own_gateway, link.port) as session:
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


def test_many_threads_race_and_every_answer_is_right(own_gateway: LiveGateway, slow_device: None) -> None:
    wanted = whole("ppocr_cls", FEEDS)
    with ShapedProxy(own_gateway.port) as link, open_session(own_gateway, link.port) as session:
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


def test_awaited_runs_race_too_and_cancelling_stops_both_sides(own_gateway: LiveGateway, slow_device: None) -> None:
    wanted = whole("ppocr_cls", FEEDS)

    async def scenario(session: hybrid.InferenceSession, link: ShapedProxy) -> None:
        assert_same(await session.run_awaitable(None, FEEDS), wanted)
        link.set(BLACKHOLE)
        for _ in range(3):
            assert_same(await session.run_awaitable(None, FEEDS), wanted)
            assert report_of(session).placement == "local"
        running = asyncio.ensure_future(session.run_awaitable(None, FEEDS))
        await asyncio.sleep(0.05)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        for _ in range(400):
            await asyncio.sleep(0.005)
            if not session._device.n_runs:
                break
        assert session._device.n_runs == session._device.n_requests == 0

    with ShapedProxy(own_gateway.port) as link, open_session(own_gateway, link.port) as session:
        assert session.prepare(FEEDS)
        settle(session)
        asyncio.run(scenario(session, link))


def test_a_deadline_is_kept_by_starting_the_device_in_time(own_gateway: LiveGateway, slow_device: None) -> None:
    wanted = whole("ppocr_cls", FEEDS)
    with ShapedProxy(own_gateway.port) as link, open_session(own_gateway, link.port, objective="energy") as session:
        assert session.prepare(FEEDS)
        local_s = max(c.predicted_s for c in session.explain() if c.placement == "local" and c.predicted_s)
    deadline_s = 3 * local_s + 0.3
    with (
        ShapedProxy(own_gateway.port) as link,
        open_session(own_gateway, link.port, objective="energy", deadline_s=deadline_s) as session,
    ):
        assert session.prepare(FEEDS)
        settle(session)
        link.set(BLACKHOLE)
        began_s = time.perf_counter()
        assert_same(session.run(None, FEEDS), wanted)
        assert time.perf_counter() - began_s < deadline_s + 0.05
