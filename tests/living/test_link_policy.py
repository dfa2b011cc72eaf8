"""What may travel: NetworkManager asked over a real bus, the battery, hours of the day, and rules that change."""

import asyncio
import calendar
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.living import link_policy
from edge_agent.living.link_policy import LinkPolicy, LinkRules, windows
from edge_agent.living.system_bus import BusUnavailable, property_number

NM = "org.freedesktop.NetworkManager"


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[str]:
    """A D-Bus of this test alone."""
    if shutil.which("dbus-daemon") is None:
        pytest.skip("needs dbus-daemon")
    address = f"/tmp/hybrid-bus-{os.getpid()}"
    daemon = subprocess.Popen(
        ["dbus-daemon", "--session", "--nofork", "--print-address=1", f"--address=unix:path={address}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert daemon.stdout is not None
    assert daemon.stdout.readline().startswith("unix:")
    yield address
    daemon.kill()
    daemon.communicate()
    Path(address).unlink(missing_ok=True)


@pytest.mark.parametrize(("said", "metered"), [(0, False), (1, True), (2, False), (3, True), (4, False)])
def test_network_manager_is_asked_over_a_real_bus(bus: str, said: int, metered: bool, monkeypatch, root):
    with pytest.raises(BusUnavailable):
        property_number(NM, "/org/freedesktop/NetworkManager", f"{NM}.Metered", bus=bus)
    service = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "bus_service.py"), bus, str(said)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    try:
        assert service.stdout is not None
        assert service.stdout.readline() == "ready\n"
        assert property_number(NM, "/org/freedesktop/NetworkManager", f"{NM}.Metered", bus=bus) == said
        monkeypatch.setattr(link_policy, "property_number", lambda *words: property_number(*words, bus=bus))
        assert link_policy.network_manager_metered() is metered
    finally:
        service.kill()
        service.communicate()


def test_no_bus_is_no_answer_and_no_error(tmp_path: Path):
    with pytest.raises(BusUnavailable):
        property_number(NM, "/x", f"{NM}.Metered", bus=str(tmp_path / "none"))


def at(text: str) -> float:
    """Seconds since 1970 of a local time in 2026."""
    return time.mktime(time.strptime(f"2026-05-04 {text}", "%Y-%m-%d %H:%M"))


async def policy(
    rules: LinkRules, *, metered: bool | None = None, battery: bool = False, now: str = "12:00"
) -> LinkPolicy:
    made = LinkPolicy(rules, wall_s=lambda: at(now), metered=lambda: metered, on_battery=lambda: battery)
    await made.look()
    return made


async def test_a_metered_link_carries_reports_and_results_only():
    free = await policy(LinkRules(), metered=False)
    assert (free.may_download(), free.least_important()) == ("", 4)
    unknown = await policy(LinkRules(), metered=None)
    assert unknown.may_download() == ""
    costly = await policy(LinkRules(), metered=True)
    assert "metered" in costly.may_download()
    assert costly.least_important() == 2
    assert costly.status().held == costly.may_download()
    assert costly.problems() == ()
    assert (await policy(LinkRules(metered="no"), metered=True)).may_download() == ""
    assert "metered" in (await policy(LinkRules(metered="yes"), metered=False)).may_download()


async def test_a_battery_holds_models_back_unless_told_otherwise():
    assert "battery" in (await policy(LinkRules(), battery=True)).may_download()
    assert (await policy(LinkRules(on_battery="go"), battery=True)).may_download() == ""


@pytest.mark.parametrize(
    ("hours", "now", "held"),
    [
        ("22:00-06:00", "23:59", False), ("22:00-06:00", "05:59", False), ("22:00-06:00", "06:00", True),
        ("01:00-02:30,12:00-13:00", "12:30", False), ("01:00-02:30, 12:00-13:00", "02:30", True), ("", "04:00", False),
    ],
)  # fmt: skip
async def test_models_travel_in_their_hours(hours: str, now: str, held: bool):
    assert bool((await policy(LinkRules(transfer_hours=hours), now=now)).may_download()) is held


async def test_a_clock_that_was_never_set_does_not_stop_models():
    made = LinkPolicy(LinkRules(transfer_hours="00:00-00:01"), wall_s=lambda: 3600.0 * 12, metered=lambda: False)
    assert made.may_download() == ""
    assert calendar.timegm((2026, 1, 1, 0, 0, 0)) > link_policy._KNOWN_SINCE_S


async def test_new_rules_count_at_once_and_the_link_is_looked_at_again():
    looks = 0

    def metered() -> bool:
        nonlocal looks
        looks += 1
        return True

    made = LinkPolicy(LinkRules(metered="no"), metered=metered, on_battery=lambda: False, look_s=60)
    running = asyncio.create_task(made.run())
    await asyncio.sleep(0.05)
    assert (made.may_download(), looks) == ("", 0)
    made.set_rules(LinkRules(metered="yes"))
    assert made.may_download()
    made.set_rules(LinkRules(metered="auto"))
    async with asyncio.timeout(2):
        while not looks:  # noqa: ASYNC110 (a counter in a thread)
            await asyncio.sleep(0.01)
    made.set_rules(LinkRules(metered="no"))
    assert made.may_download() == ""
    running.cancel()


@pytest.mark.parametrize("text", ["22-6", "25:00-06:00", "22:00", "22:00-06:60", "22:00-06:00;"])
def test_hours_of_another_form_are_refused(text: str):
    with pytest.raises(ValueError, match="not of the form"):
        windows(text)
    with pytest.raises(ValueError, match="use hold, go"):
        LinkRules(on_battery="maybe").check()


async def test_what_waited_is_told_when_it_may_travel():
    costly, told = True, []
    made = LinkPolicy(LinkRules(), metered=lambda: costly, on_battery=lambda: False)
    made.freed = lambda: told.append(made.may_download())
    await made.look()
    assert told == []
    costly = False
    await made.look()
    await made.look()
    assert told == [""]
