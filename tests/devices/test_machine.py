"""What this machine is: the same text each time, and a speed that other load does not change much."""

import os
import subprocess
import sys

import pytest

from devices import machine, pace
from devices.catalog.load import devices
from devices.cpu_quota import CpuQuota
from devices.errors import CatalogUnknown


def test_the_class_of_a_machine_is_stable_and_tells_pacing(monkeypatch):
    monkeypatch.setattr(pace, "_chosen", None)
    text = machine.machine_class()
    assert text == machine.machine_class()
    assert machine.processor() in text
    assert f"cores={machine.usable_cores():g}" in text
    assert os.uname().nodename not in text
    monkeypatch.setenv(pace.VARIABLE, "6")
    assert machine.machine_class() == f"{text} pace=6"


def test_an_emulated_machine_is_called_by_its_name_and_not_by_a_factor_that_was_measured(monkeypatch):
    monkeypatch.setattr(pace, "_chosen", None)
    monkeypatch.setenv(machine.VARIABLE, "rpi-4b")
    assert " as=" not in machine.machine_class(), "named, and nothing emulates it"
    told = set()
    for factor in ("18.71", "18.93"):
        monkeypatch.setenv(pace.VARIABLE, factor)
        told.add(machine.machine_class())
    (text,) = told
    assert text.endswith("as=rpi-4b")
    monkeypatch.setenv(machine.FACTOR_VARIABLE, "7.5")
    assert machine.machine_class() == f"{text} factor=7.5"
    monkeypatch.delenv(pace.VARIABLE)
    monkeypatch.setenv(machine.CORES_VARIABLE, "4")
    assert "cores=4 as=rpi-4b" in machine.machine_class()


@pytest.mark.root
def test_a_quota_is_seen_and_its_period_too():
    show = "from devices import machine as m; print(input(), m.quota_period_s(), m.usable_cores(), m.machine_class())"
    with CpuQuota(4.0, period_s=0.1, steady=False) as quota:
        for name, wanted in ((None, "cores=0.25"), ("rpi-4b", "as=rpi-4b")):
            env = os.environ | ({machine.VARIABLE: name} if name else {})
            command = [sys.executable, "-c", show]
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
            quota.attach(child.pid)
            told = child.communicate("x\n", timeout=60)[0].split()
            assert told[1:3] == ["0.1", "0.25"]
            assert wanted in told
    assert machine.quota_period_s() is None or machine.usable_cores() < os.cpu_count()


def test_facts_agree_with_the_system():
    import psutil

    facts = machine.facts()
    assert facts.memory_bytes == psutil.virtual_memory().total
    assert 0 < facts.usable_cores <= facts.n_processors == os.cpu_count()
    assert facts.memory_limit_bytes is None or facts.memory_limit_bytes < facts.memory_bytes


def test_one_core_is_as_fast_as_it_was_a_moment_ago():
    first, second = machine.measured_speed(0.2), machine.measured_speed(0.2)
    assert first.gflops == pytest.approx(second.gflops, rel=0.4)
    assert first.slowdown_ratio == pytest.approx(machine.REFERENCE_GFLOPS / first.gflops)
    near = {one.name: one.slowdown_ratio for one in devices()}
    assert first.alike is None or 1 / 1.6 < near[first.alike] / first.slowdown_ratio < 1.6


@pytest.mark.parametrize(
    ("texts", "name"),
    [
        (["", "Raspberry Pi 4 Model B Rev 1.4"], "rpi-4b"),
        (["ARMv8", "Raspberry Pi Zero 2 W Rev 1.0"], "rpi-zero-2w"),
        (["Intel(R) N100"], "n100-mini-pc"),
        (["Intel(R) Celeron(R) N5105 @ 2.00GHz", "Default string"], "celeron-n5105"),
        (["", "NVIDIA Jetson Orin Nano Developer Kit"], "jetson-orin-nano"),
        (["AMD EPYC", "Standard PC (Q35 + ICH9, 2009)"], None),
        ([], None),
    ],
)
def test_a_machine_is_recognised_by_what_it_calls_itself(texts, name):
    found = machine.recognised(texts)
    assert (found and found.name) == name


def test_a_variable_says_which_machine_this_is(monkeypatch, tmp_path):
    monkeypatch.setenv(machine.VARIABLE, "rpi-3b-plus")
    assert machine.this_device().name == "rpi-3b-plus"
    monkeypatch.setenv(machine.VARIABLE, "rpi-99")
    with pytest.raises(CatalogUnknown, match="rpi-99"):
        machine.this_device()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("wlan0", "wifi"), ("wlp3s0", "wifi"), ("wwan0", "lte"), ("eth0", "ethernet"), (None, "ethernet")],
)
def test_the_default_route_tells_the_radio(tmp_path, name, kind):
    (tmp_path / "net").mkdir()
    head = "Iface\tDestination\tGateway\n"
    (tmp_path / "net/route").write_text(
        head if name is None else f"{head}lo\t0000007F\t0\n{name}\t00000000\t0101A8C0\n"
    )
    assert machine.interface(tmp_path, tmp_path) == kind
