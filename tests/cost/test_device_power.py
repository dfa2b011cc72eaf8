"""Powers from a machine's description: which state draws what, and that a model is called one."""

import pytest

from devices.catalog.load import device
from hybrid.cost.device_power import power_of, this_power
from hybrid.cost.energy import GENERIC_POWER


def test_each_state_draws_what_the_description_says():
    board = device("rpi-4b")
    power = power_of(board, "wifi-good")
    radio = board.radio("wifi-good")
    assert power.idle_w == board.idle_w + radio.idle_w
    assert power.compute_w - power.idle_w == pytest.approx((board.active_w - board.idle_w) / 4)
    assert power.transmit_w - power.idle_w == pytest.approx(radio.transmit_w)
    assert "modelled" in power.source
    assert "rpi-4b" in power.source


def test_sending_by_a_mobile_modem_costs_more_than_by_wifi():
    phone = device("snapdragon-855")
    by_lte, by_wifi = (power_of(phone, link) for link in ("lte", "wifi"))
    assert by_lte.energy_j(total_s=1, compute_s=0, transmit_s=1) > by_wifi.energy_j(
        total_s=1, compute_s=0, transmit_s=1
    )


def test_this_machine_is_the_one_that_the_variable_names(monkeypatch, caplog):
    this_power.cache_clear()
    monkeypatch.setenv("HYBRID_DEVICE", "jetson-nano")
    assert "jetson-nano" in this_power().source
    this_power.cache_clear()
    monkeypatch.setenv("HYBRID_DEVICE", "rpi-99")
    with caplog.at_level("WARNING", logger="hybrid"):
        assert this_power() is GENERIC_POWER
    assert "rpi-99" in caplog.text
    this_power.cache_clear()
    monkeypatch.delenv("HYBRID_DEVICE")
    monkeypatch.setattr("devices.machine.this_device", lambda: None)
    assert this_power() is GENERIC_POWER
    this_power.cache_clear()
