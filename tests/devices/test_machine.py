"""What this machine is: the same text each time, and a speed that other load does not change much."""

import os

import pytest

from devices import machine, pace
from devices.catalog.load import devices


def test_the_class_of_a_machine_is_stable_and_tells_pacing(monkeypatch):
    monkeypatch.setattr(pace, "_chosen", None)
    text = machine.machine_class()
    assert text == machine.machine_class()
    assert machine.processor() in text
    assert f"cores={machine.usable_cores():g}" in text
    assert os.uname().nodename not in text
    monkeypatch.setenv(pace.VARIABLE, "6")
    assert machine.machine_class() == f"{text} pace=6"


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
