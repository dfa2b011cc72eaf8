"""Who beats whom, who is judged, and which cuts are tried at all."""

from types import SimpleNamespace

import pytest

from devices.link_class import LinkClass, Rates
from hybrid.calibration.intervals import wilson
from hybrid.calibration.record import Cell
from hybrid.compress.splits.contest import MOST_JUDGED, MOST_SHIPPED, Alone, Contest
from hybrid.compress.splits.front import Weighed, beaten
from hybrid.compress.splits.heads import MeasuredCut
from hybrid.compress.splits.places import FLOAT_HOPE, hopeful
from hybrid.compress.splits.prices import Prices
from hybrid.compress.splits.ways import Tried, Way
from hybrid.cost.energy import Power
from hybrid.partition.cut import Cut

LINK = LinkClass(name="line", title="a line", up=Rates.steady(8e6), down=Rates.steady(8e6), rtt_s=0.01)
POWER = Power(idle_w=1.0, compute_w=5.0, transmit_w=3.0, receive_w=2.0)
PRICES = Prices(link=LINK, power=POWER, objective="latency", local_s=1.0, gateway_s=0.1, pace=2.0)
FLOOR = 0.02


def cut(name: str, ratio: float, n_bytes: int, *, sized: bool = True) -> Cut:
    return Cut(
        id=name,
        kind="interior",
        tensors=(),
        n_bytes=n_bytes,
        sized=sized,
        head_work_ratio=ratio,
        head_outputs=(),
        tail_outputs=("y",),
        reply_bytes=0,
    )


PLACE = cut("c" * 16, 0.2, 100_000)


def contest(ways: dict[str, tuple[float, float]], judged: dict[str, float] | None = None) -> Contest:
    """Ways by codec: bytes, and the drop on the choosing part; and the upper end that judging would find."""
    asked: list[str] = []

    def judge(some: list[Way]) -> list[Tried]:
        asked.extend(way.codec for way in some)
        return [
            Tried(way=way, cell=cell(way.codec, ways[way.codec][0], high=(judged or {}).get(way.codec, 0.01)),
                  is_judged=True)
            for way in some
        ]  # fmt: skip

    tries = SimpleNamespace(judged=judge, asked=asked)
    material = SimpleNamespace(metric="agreement", parts=SimpleNamespace(judge=range(1000)))
    made = Contest(prices=PRICES, max_drop=FLOOR, material=material, tries=tries)  # type: ignore[arg-type]
    made.cuts[PLACE.id] = MeasuredCut(cut=PLACE, own_s=0.2, tail_s=0.08)
    made.alone.append(Alone(id="local", spent=PRICES.local(1.0)))
    for codec, (n_bytes, drop) in ways.items():
        way = Way(cut=PLACE, head="float", codec=codec)
        made.add([Tried(way=way, cell=cell(codec, n_bytes, drop=drop))])
    return made


def cell(codec: str, n_bytes: float, *, drop: float = 0.0, high: float = 1.0) -> Cell:
    is_lossy = codec != "lossless"
    return Cell(
        cut=PLACE.id,
        codec=codec,
        is_lossy=is_lossy,
        n=1000,
        drop=drop,
        drop_low=0.0,
        drop_high=max(drop, high) if is_lossy else 0.0,
        raw_bytes=1e5,
        n_bytes=n_bytes,
    )


def test_of_equals_in_drop_the_cheapest_is_left_and_a_small_gain_is_none() -> None:
    every = [
        Weighed(id="local", cost=1.0, high=0.0, is_free=True),
        Weighed(id="exact", cost=0.9, high=0.0, is_free=True),
        Weighed(id="hardly", cost=0.88, high=0.001),
        Weighed(id="well", cost=0.8, high=0.002),
        Weighed(id="dear", cost=0.81, high=0.003),
        Weighed(id="cheap", cost=0.5, high=0.01),
    ]
    assert {name: by.id for name, by in beaten(every).items()} == {"local": "exact", "hardly": "exact", "dear": "well"}


def test_seconds_and_joules_of_a_request() -> None:
    spent = PRICES.divided(head_s=0.2, encode_s=0.01, up_bytes=50_000, decode_s=0.003, tail_s=0.08, down_bytes=1000)
    assert spent.encode_s == pytest.approx(0.02)
    assert spent.network_s == pytest.approx(0.01 + 0.05 + 0.001)
    assert spent.total_s == pytest.approx(0.2 + 0.02 + 0.061 + 0.083)
    assert spent.energy_j == pytest.approx(spent.total_s + 4 * 0.22 + 2 * 0.05 + 1 * 0.001)
    assert PRICES.cost(spent) == spent.total_s


def test_where_the_cheapest_fails_when_judged_the_next_one_is_judged() -> None:
    found = contest({"lossless": (90e3, 0.0), "q8": (30e3, 0.0), "q4": (15e3, 0.0)}, judged={"q4": 0.03, "q8": 0.005})
    found.judge()
    assert found.tries.asked == ["q4", "q8"]  # type: ignore[attr-defined]
    assert [one.way.codec for one in found.shipped()] == ["q8"]
    rows = {row.codec: row for row in found.told()}
    assert rows["q4"].status == "kept off"
    assert "beyond the floor" in rows["q4"].reason
    assert "at most 3.00%" in rows["q4"].reason
    assert "takes no file" in rows["q8"].reason
    assert rows["lossless"].status == "always there"
    assert "beaten" not in rows["lossless"].reason
    assert rows[""].reason.endswith("38% of its cost, and it loses no more")


def test_what_promises_too_large_a_drop_is_never_judged() -> None:
    found = contest({"q8": (30e3, 0.0), "q4": (15e3, 0.05)})
    found.judge()
    assert found.tries.asked == ["q8"]  # type: ignore[attr-defined]
    assert "choosing part" in {row.codec: row.reason for row in found.told()}["q4"]


def test_what_the_device_does_sooner_is_beaten_by_it() -> None:
    found = contest({"q8": (900e3, 0.0)})
    found.judge()
    assert found.tries.asked == []  # type: ignore[attr-defined]
    assert not found.shipped()
    assert "beaten by local" in {row.codec: row.reason for row in found.told()}["q8"]


def test_no_more_are_judged_and_shipped_than_chance_and_boxes_bear() -> None:
    """A ladder of ways, each cheaper and worse than the one before."""
    steps = {f"q{step}": (800e3 * 0.7**step, 0.001 * step) for step in range(9)}
    found = contest(steps, judged={name: wilson(step, 1000)[1] for step, name in enumerate(steps)})
    found.judge()
    assert len(found.tries.asked) == MOST_JUDGED  # type: ignore[attr-defined]
    assert [one.way.codec for one in found.shipped()] == ["q8", "q7", "q6", "q5"]
    assert len(found.shipped()) == MOST_SHIPPED
    reasons = {row.codec: row.reason for row in found.told()}
    assert reasons["q3"] == f"{MOST_SHIPPED} cheaper ones are shipped"
    assert reasons["q1"].startswith("not judged")


def test_cuts_that_cannot_win_are_not_tried() -> None:
    early, beside, late = cut("a" * 16, 0.1, 400_000), cut("b" * 16, 0.12, 400_000), cut("d" * 16, 0.5, 4_000)
    never, unsized = cut("e" * 16, 0.3, 20_000_000), cut("f" * 16, 0.1, 0, sized=False)
    every = [early, beside, late, never, unsized]
    assert hopeful(every, PRICES, FLOAT_HOPE, 1.0) == [early, late]
    assert hopeful(every, PRICES, FLOAT_HOPE, 0.3) == [early]
    assert hopeful(every, PRICES, FLOAT_HOPE, 0.1) == []
    assert hopeful(every, PRICES, FLOAT_HOPE, 1.0, most=1) == [early]
