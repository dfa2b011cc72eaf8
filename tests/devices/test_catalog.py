"""The catalog: real classes of machines and links, every figure with its source, and files of the user's own."""

from dataclasses import fields
from pathlib import Path

import pytest

from devices.catalog import load
from devices.device import Device, Radio
from devices.errors import CatalogInvalid, CatalogUnknown
from devices.link_class import LinkClass, LinkState, Rates

UNSOURCED = {"name", "title", "kind", "recognised_by", "sources"}
"""What is no figure: names that we chose."""


def figures_of(described: Device | LinkClass) -> set[str]:
    """Every figure that the description gives, as a source names it."""
    given = {field.name for field in fields(described) if getattr(described, field.name) not in (None, ())}
    if isinstance(described, Device):
        given = (given - {"radios"}) | {f"radios.{interface}" for interface, _ in described.radios}
    return given - UNSOURCED


@pytest.mark.parametrize("described", [*load.devices(), *load.link_classes()], ids=lambda one: one.name)
def test_every_figure_has_a_source(described):
    sourced = {figure for source in described.sources for figure in source.figures}
    assert figures_of(described) <= sourced
    for source in described.sources:
        assert source.is_estimate or source.url.startswith("https://"), "published figures say where"
        assert source.is_estimate != bool(source.url)
        assert len(source.note) > 5


def test_there_are_real_classes_of_every_kind():
    found = load.devices()
    assert len(found) >= 8
    assert {"single-board computer", "accelerator board", "phone", "gateway", "industrial computer", "mini PC"} <= {
        one.kind for one in found
    }
    assert {"ethernet", "wifi-good", "wifi-poor", "5g", "lte", "3g", "satellite"} <= {
        link.name for link in load.link_classes()
    }
    published = [one for one in found if not all(s.is_estimate for s in one.sources if "slowdown_ratio" in s.figures)]
    assert len(published) == len(found), "no machine's speed is a guess"


def test_machines_are_ordered_as_people_know_them():
    speed = {one.name: one.slowdown_ratio for one in load.devices()}
    assert speed["rpi-zero-2w"] > speed["rpi-3b-plus"] > speed["rpi-4b"] > speed["rpi-5"] > 1
    names = set(load.names("links"))
    for one in load.devices():
        assert one.links, one.name
        assert set(one.links) <= names, one.name
        assert "cpu" in one.engines
        assert one.core_w > 0


def test_a_radio_is_found_by_the_link():
    phone = load.device("snapdragon-855")
    assert phone.radio("5g") == phone.radio("lte") == dict(phone.radios)["lte"]
    assert phone.radio("wifi-poor").transmit_w < phone.radio("lte").transmit_w
    assert phone.radio("ethernet") == Radio()


def test_emulating_is_a_ratio_of_two_machines():
    assert load.device("rpi-4b").factor_on(load.device("rpi-5").slowdown_ratio) == pytest.approx(7.1 / 2.8)


OWN = """
title = "Our camera"
kind = "gateway"
cpu = "Cortex-A55"
n_cores = 2
memory_bytes = 1073741824
slowdown_ratio = 9
idle_w = 1
active_w = 3.5
links = ["lte"]
[radios.lte]
transmit_w = 2
[[sources]]
figures = ["idle_w"]
title = "our meter"
is_estimate = true
"""


def test_a_file_of_ones_own(tmp_path: Path):
    path = tmp_path / "camera.toml"
    path.write_text(OWN)
    own = load.device(str(path))
    assert (own.name, own.slowdown_ratio, own.engines) == ("camera", 9, ("cpu",))
    assert own.radio("5g").transmit_w == 2
    with pytest.raises(CatalogInvalid, match="wanted a table with p5_bps"):
        load.link_class(str(path))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("n_cores = 2", "n_cores = 0", "no cores"),
        ("n_cores = 2", 'n_cores = "two"', "n_cores = 'two' is no"),
        ("n_cores = 2", "n_cores = true", "n_cores = True is no"),
        ("n_cores = 2", "n_core = 2", "unknown field n_core"),
        ("n_cores = 2\n", "", "n_cores"),
        ("idle_w = 1\n", "idle_w = 4\n", "idle <= active"),
        ("slowdown_ratio = 9", "slowdown_ratio = 0", "slowdown"),
        ('kind = "gateway"', 'kind = "toaster"', "toaster"),
        ("[radios.lte]", "[radios.zigbee]", "zigbee"),
        ("transmit_w = 2", "transmits_w = 2", "unknown field transmits_w"),
        ('figures = ["idle_w"]', "", "names no figures"),
        ("title", "title =", "no TOML"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(tmp_path: Path, old: str, new: str, said: str):
    assert old in OWN
    path = tmp_path / "camera.toml"
    path.write_text(OWN.replace(old, new, 1))
    with pytest.raises(CatalogInvalid, match=said):
        load.device(str(path))


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(CatalogUnknown, match="rpi-4b"):
        load.device("rpi-99")
    with pytest.raises(CatalogUnknown, match="satellite"):
        load.link_class("carrier-pigeon")


def test_links_that_are_none():
    good = {"name": "x", "title": "x", "up": Rates.steady(1e6), "down": Rates.steady(1e6), "rtt_s": 0.1}
    assert LinkClass(**good).up_bps == 1e6
    for wrong in (
        {"rtt_s": -1},
        {"loss_ratio": 1.0},
        {"persistence_ratio": 1.0},
        {"states": (LinkState(name="good", share_ratio=0.5, mean_s=1),)},
        {"states": (LinkState(name="good", share_ratio=0.5, mean_s=1),) * 2},
    ):
        with pytest.raises(CatalogInvalid):
            LinkClass(**good | wrong)
    for p5_bps, median_bps in ((2.0, 1.0), (0.0, 0.0), (-1.0, 1.0)):
        with pytest.raises(CatalogInvalid):
            Rates(p5_bps=p5_bps, p25_bps=1, median_bps=median_bps, p75_bps=1, p95_bps=1)
    with pytest.raises(CatalogInvalid):
        LinkState(name="sunny", share_ratio=0.1, mean_s=1)
