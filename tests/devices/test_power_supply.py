"""Whether this machine runs on its battery, read from a folder like the kernel's."""

from pathlib import Path

import pytest

from devices.power_supply import is_on_battery

MAINS_ON, MAINS_OFF = {"type": "Mains", "online": "1"}, {"type": "Mains", "online": "0"}
EMPTYING, FILLING = {"type": "Battery", "status": "Discharging"}, {"type": "Battery", "status": "Charging"}
MOUSE = {"type": "Battery", "scope": "Device", "status": "Discharging"}


@pytest.mark.parametrize(
    ("supplies", "expected"),
    [
        ([], False),
        ([MAINS_ON], False),
        ([MAINS_OFF], False),
        ([MAINS_OFF, EMPTYING], True),
        ([EMPTYING], True),
        ([MAINS_ON, EMPTYING], False),
        ([EMPTYING, {"type": "USB", "online": "1"}], False),
        ([FILLING], False),
        ([{"type": "Battery", "status": "Unknown"}], False),
        ([MOUSE], False),
        ([MAINS_ON, MOUSE], False),
        ([{}], False),
    ],
)
def test_what_the_kernel_says(tmp_path: Path, supplies: list[dict[str, str]], expected: bool) -> None:
    for at, supply in enumerate(supplies):
        (tmp_path / str(at)).mkdir()
        for name, text in supply.items():
            (tmp_path / str(at) / name).write_text(f"{text}\n")
    assert is_on_battery(tmp_path) is expected


def test_a_machine_that_says_nothing_is_on_mains(tmp_path: Path) -> None:
    assert not is_on_battery(tmp_path / "missing")
