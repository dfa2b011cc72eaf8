import re
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise

import msgspec
import pytest

from hybrid.compress.making.recipe import Recipe
from hybrid.compress.report.chart import BOTTOM, HEIGHT, ticks
from hybrid.compress.report.page import page
from hybrid.compress.report.report import (
    Baseline,
    Candidate,
    Data,
    Drop,
    Refused,
    Report,
    Seconds,
    Shown,
    Wanted,
    with_front,
)
from hybrid.compress.timing.timer import DeviceTold

EMPTY = ("br", "meta", "line", "circle", "polyline")


class Balanced(HTMLParser):
    """Counts what is open, and gathers the text."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(report):
    text = page(report)
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    return text, " ".join(parser.text)


def candidate(name, ratio, drop, status, reason="because"):
    return Candidate(
        id=name,
        text=f"{name} <recipe>",
        recipe=Recipe(precision="int8"),
        status=status,
        reason=reason,
        n_bytes=500_000,
        bytes_ratio=0.25,
        seconds=Seconds(p50_s=0.01 * ratio, p95_s=0.02 * ratio, low_s=0.009 * ratio, n=50),
        seconds_ratio=ratio,
        tried_ratio=ratio,
        chosen_by=Drop(n=600, n_lost=3, n_won=1, drop=drop, low=drop - 0.006, high=drop + 0.006, p_value=0.6),
        judged=Drop(n=1000, n_lost=5, n_won=2, drop=drop, low=drop - 0.004, high=drop + 0.004, p_value=0.0004),
    )


def report(*candidates, **changes):
    found = Report(
        model_digest="a" * 64,
        model="cats & <dogs>",
        wanted=Wanted(objective="latency", max_drop=0.01, budget_s=600, seed=3, link="", train_script=""),
        data=Data(digest="b" * 64, metric="accuracy", n_calibrate=10, n_choose=20, n_judge=30),
        device=DeviceTold(name="rpi-4b", kind="scaled", factor=6.0, threads=1, remarks=("only ratios count",)),
        baseline=Baseline(n_bytes=2_000_000, seconds=None, memory_bytes=None, energy_j=None, accuracy=0.9),
        candidates=with_front(candidates),
        environment={"onnxruntime": "1"},
        made_s=0.0,
    )
    return msgspec.structs.replace(found, **changes)


def test_it_says_what_was_shipped_what_was_not_and_why():
    text, words = read(
        report(
            candidate("int8", 0.4, 0.001, "shipped"),
            candidate("pruned", 0.2, 0.03, "kept off", "its drop reaches 3.4 points & more"),
        )
    )
    assert "2.50 × as fast, 4.0 × smaller, drop 0.10 (-0.30 to 0.50)" in words
    assert "its drop reaches 3.4 points & more" in words
    assert "cats & <dogs>" in words
    assert "<dogs>" not in text
    assert "only ratios count" in words
    assert text.count('class="shipped" cx=') == 1
    assert "http" not in text.replace("http://www.w3.org", "")


def test_the_front_goes_by_what_was_found_when_each_was_tried():
    """One was judged, and did worse on those samples than the other on the choosing part: that is no comparison."""
    judged = candidate("judged", 0.4, 0.001, "shipped")
    assert judged.judged is not None
    judged = msgspec.structs.replace(
        judged, seconds_ratio=0.6, judged=msgspec.structs.replace(judged.judged, drop=0.01, high=0.02)
    )
    other = msgspec.structs.replace(candidate("other", 0.5, 0.002, "kept off"), judged=None)
    found = report(judged, other)
    assert [each.id for each in found.candidates if each.on_front] == ["judged"]
    text, _ = read(found)
    assert "judged <recipe>: 40 % of the time" in unescape(text)


def test_this_machine_and_a_larger_file_are_said_in_words():
    larger = msgspec.structs.replace(candidate("int8", 0.4, 0.001, "shipped"), bytes_ratio=3.61)
    here = msgspec.structs.replace(
        report(larger), device=DeviceTold(name="this", kind="this machine", factor=1.0, threads=1)
    )
    _, words = read(here)
    assert "compressed for this machine" in words
    assert "Device: this machine, one thread." in words
    assert "3.6 × larger" in words
    assert "× smaller" not in words


def test_what_is_far_worse_does_not_press_the_others_together():
    text, _ = read(report(candidate("int8", 0.4, 0.001, "shipped"), candidate("lost", 0.2, 0.6, "kept off")))
    floor, lowest = (
        float(re.search(rf'class="{kind}"[^>]* (?:y1|cy)="([0-9.]+)"', text)[1]) for kind in ("floor", "front")
    )
    assert lowest == HEIGHT - BOTTOM, "at the lower edge, not below it"
    assert floor > HEIGHT / 6
    assert "lies at its lower edge" in text


def test_nothing_shipped_nothing_tried_and_nothing_measured_are_said():
    _, words = read(report(refused=(Refused(what="pruning", why="needs a training script"),)))
    assert "Nothing was shipped" in words
    assert "None: no way of compressing" in words
    assert "needs a training script" in words
    bare = msgspec.structs.replace(
        candidate("odd", 1.0, 0.0, "failed", "it broke"),
        seconds=None,
        seconds_ratio=None,
        tried_ratio=None,
        judged=None,
        bytes_ratio=None,
    )
    text, words = read(report(bare))
    assert "it broke" in words
    assert "<svg" not in text


def test_outputs_stand_side_by_side_with_the_largest_in_bold():
    text, words = read(report(shown=(Shown(sample=4, label=1, outputs={"original": [0.5, 2.0], "int8": [0.4, 1.5]}),)))
    assert "Sample 4, right is class 1" in words
    assert "<b>2</b>" in text
    assert "<b>1.5</b>" in text


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.05), (-0.17, 2.3), (-3.0, 55.0), (0.0, 1e-4)])
def test_ticks_are_round_and_lie_within(low, high):
    found = ticks(low, high)
    assert 4 <= len(found) <= 9
    assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in found)
    steps = {round((b - a) / (found[1] - found[0]), 6) for a, b in pairwise(found)}
    assert steps == {1.0}
