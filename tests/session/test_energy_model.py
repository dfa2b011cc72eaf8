"""Joules are modelled from the description of the machine that a session runs on; decisions say from which."""

import hybrid
from hybrid.cost.device_power import power_of, this_power
from tests import zoo
from tests.live_gateway import LiveGateway


def test_decisions_count_with_the_powers_of_this_machine(own_gateway: LiveGateway, monkeypatch) -> None:
    from devices.catalog.load import device
    from devices.machine import interface

    this_power.cache_clear()
    monkeypatch.setenv("HYBRID_DEVICE", "jetson-nano")
    feeds = zoo.feeds("ppocr_cls")
    options = hybrid.Options(objective="energy")
    try:
        with hybrid.InferenceSession(
            zoo.path("ppocr_cls"), gateway=own_gateway.url, token=own_gateway.token, options=options
        ) as session:
            wanted = power_of(device("jetson-nano"), interface())
            assert session.run(None, feeds)
            assert session._connection.remote.prepare(feeds, 60)
            [route] = session._connection.remote._routes.values()
            assert route.scheduler.power == wanted
            assert "jetson-nano" in wanted.source
    finally:
        this_power.cache_clear()
