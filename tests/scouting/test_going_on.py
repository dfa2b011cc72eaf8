"""A hedged split: when the gateway is late, the device goes on from the activation that it holds."""

import time
from dataclasses import replace

import numpy as np

import hybrid
from devices import pace
from devices.shape import Direction, Shape
from devices.shaped_proxy import ShapedProxy
from hybrid.route.route import Route
from tests import zoo
from tests.halves import run_model
from tests.live_gateway import LiveGateway

FEEDS = {"x": np.random.default_rng(0).standard_normal((8, 3, 48, 192), np.float32)}
SOME = Shape(up=Direction(rate_bps=30e6), down=Direction())
"""880 kB of raw input take 0.24 s, what crosses at a cut a fifth of that."""

BLACKHOLE = Shape(up=Direction(open=False), down=Direction(open=False))
LIMIT_S = 40.0


def test_a_late_gateway_costs_the_rest_of_the_model_not_the_whole(own_gateway: LiveGateway) -> None:
    pace.set_factor(15.0)
    try:
        with ShapedProxy(own_gateway.port) as link:
            link.set(SOME)
            with open_session(own_gateway, link.port) as session:
                assert session.prepare(FEEDS)
                route = split_until_hedged(session)
                ran = counting(route)
                link.set(BLACKHOLE)
                report = goes_on(session, route, ran)
        assert report.placement == "local"
        assert report.hedge_s is not None
        assert report.variant == ""
        assert report.cut == ran[-1], "who reads the report sees that this is no answer in one piece"
        assert report.wasted_s < report.head_s  # the head led to the answer
    finally:
        pace.set_factor(1.0)


def open_session(gateway: LiveGateway, port: int) -> hybrid.InferenceSession:
    settings = hybrid.SessionOptions()
    settings.intra_op_num_threads = 1
    url = f"http://127.0.0.1:{port}"
    return hybrid.InferenceSession(zoo.path("ppocr_cls"), settings, gateway=url, token=gateway.token)


def split_until_hedged(session: hybrid.InferenceSession) -> Route:
    """Runs until a split is what the planner takes, and its rest is open."""
    until_s = time.monotonic() + LIMIT_S
    while time.monotonic() < until_s:
        session.run(None, FEEDS)
        route = next(iter(session._connection.remote._routes.values()))
        planned = session.report.placement == "split"
        if planned and any(crossing.rest is not None for crossing in route.crossings):
            return route
    raise AssertionError((session.report, session.explain()))


def counting(route: Route) -> list[str]:
    """Has the open rests note that they ran."""
    ran: list[str] = []
    for crossing in route.crossings:
        if crossing.rest is not None and crossing.cut is not None:
            run, cut_id = crossing.rest.run, crossing.cut.id

            def noted(*args, run=run, cut_id=cut_id):
                ran.append(cut_id)
                return run(*args)

            crossing.rest = replace(crossing.rest, run=noted)
    return ran


def goes_on(session: hybrid.InferenceSession, route: Route, ran: list[str]) -> hybrid.RunReport:
    """Runs until a rest has answered; every answer is right."""
    wanted = list(run_model(zoo.path("ppocr_cls"), FEEDS).values())
    until_s = time.monotonic() + LIMIT_S
    while time.monotonic() < until_s:
        found = session.run(None, FEEDS)
        np.testing.assert_allclose(found[0], wanted[0], rtol=0, atol=1e-4)
        if ran and session.report.placement == "local":
            return session.report
        assert not ran or session.report.placement != "local"
    raise AssertionError(session.explain())
