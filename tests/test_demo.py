"""The demo: its own reading of text, its figures and report, and the whole of it played once, and interrupted once."""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnxruntime as ort
import psutil
import pytest
from PIL import Image
from scipy import ndimage

from hybrid.cli.demo import chart, figures, link, material, reading, report, show, table
from hybrid.cli.demo.components import regions
from hybrid.cli.demo.messages import POLICIES, Answered, Failed, Policy, Stage
from hybrid.cli.demo.processes import Child, DemoFailed, run_command
from hybrid.cli.demo.scenario import Outcome
from hybrid.cli.words import MissingExtra

PAGE_LINES = (
    "Region-based segmentation",
    "Let us first determine markers of the coins and the",
    "background. These markers are pixels that we can label",
    "unambiguously as either object or background. Here,",
    "the markers are found at the two extreme parts of the",
    "histogram of grey values:",
)


@pytest.mark.parametrize("density", [0.05, 0.4, 0.55, 0.7, 1.0])
def test_regions_are_those_of_scipy(density: float) -> None:
    rng = np.random.default_rng(int(100 * density))
    for shape in ((1, 1), (1, 40), (40, 1), (33, 57)):
        mask, values = rng.random(shape) < density, rng.random(shape)
        labels, n_labels = ndimage.label(mask)
        wanted = sorted(
            (box[1].start, box[0].start, box[1].stop, box[0].stop, round(float(values[labels == index].mean()), 9))
            for index, box in enumerate(ndimage.find_objects(labels), 1)
        )
        found = sorted((one.left, one.top, one.right, one.bottom, round(one.mean, 9)) for one in regions(mask, values))
        assert len(found) == n_labels
        assert found == wanted


def test_no_region_in_an_empty_mask() -> None:
    assert regions(np.zeros((5, 5), bool), np.ones((5, 5))) == []


@pytest.fixture(scope="module")
def stuff(tmp_path_factory: pytest.TempPathFactory) -> material.Material:
    return material.gather(tmp_path_factory.mktemp("material"))


@pytest.mark.slow
def test_the_page_is_read(stuff: material.Material) -> None:
    detector, recogniser = ort.InferenceSession(stuff.detector), ort.InferenceSession(stuff.recogniser)
    characters = stuff.characters.read_text(encoding="utf-8")
    with Image.open(stuff.photo) as picture:
        photo = picture.convert("RGB")
    [chances] = detector.run(None, {"x": reading.detector_input(photo)})
    boxes = reading.find_lines(chances)
    lines = [
        reading.read_line(*recogniser.run(None, {"x": reading.line_input(photo, box)}), characters) for box in boxes
    ]
    assert tuple(line.text for line in lines[:6]) == PAGE_LINES
    assert len(lines) == 7
    assert min(line.confidence for line in lines) > 0.9


def test_repeats_and_blanks_are_dropped() -> None:
    steps = np.array([[0, 1, 1, 0, 1, 2, 2, 3, 0, 9]])
    line = reading.read_line(steps, np.full(steps.shape, 0.5, np.float32), "a\nb")
    assert line.text == "aab \ufffd"
    assert line.confidence == pytest.approx(0.5)
    assert reading.read_line(np.zeros((1, 4), np.int64), np.ones((1, 4), np.float32), "a") == reading.Line(
        text="", confidence=0.0
    )


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(material, "_RECOGNISER", ("no-such-package", "model.onnx"))
    with pytest.raises(MissingExtra, match="no-such-package"):
        material.gather(tmp_path)


def stage(placement: str) -> Stage:
    return Stage(
        placement=placement,
        cut="",
        codec="lossless",
        bytes_up=1000 if placement == "offload" else 0,
        bytes_down=10,
        total_s=0.1,
        fallback=None,
    )


def played(*, wrong: bool = False) -> Outcome:
    """An outcome made up: device-only 0.5 s, cloud-only silent while the link is dead, hybrid 0.25 or 0.5 s."""
    phases = link.schedule(20)
    samples: list[figures.Sample] = []
    for policy in POLICIES:
        at_s, number = 100.0, 0
        while at_s < 120:
            dead = phases[link.phase_at(phases, at_s - 100)].name == "dead"
            took_s = 0.25 if policy != "device" and not dead else 0.5
            if policy == "cloud" and dead:
                said = Failed(started_s=at_s, ended_s=at_s + 2, code="gateway_stalled", message="")
            else:
                places = ["offload", "local"] if took_s == 0.25 else ["local", "local"]
                said = Answered(
                    started_s=at_s,
                    ended_s=at_s + took_s,
                    line=number % 3,
                    n_lines=3,
                    text="nonsense" if wrong and policy == "hybrid" and number == 5 else f"line <{number % 3}>",
                    stages=[stage(place) for place in places],
                )
            samples.append(figures.sample(policy, said, 100.0))
            at_s, number = said.ended_s, number + 1
    samples.sort(key=lambda one: one.ended_s)
    right = figures.right_texts(samples)
    policies = tuple(figures.policy_figures(policy, samples, phases, right) for policy in POLICIES)
    lines = tuple(text for _, text in sorted(right.items()))
    return Outcome(phases=phases, samples=tuple(samples), policies=policies, n_lost=0, setup_s=1.0, lines=lines)


def test_figures_of_each_policy() -> None:
    outcome = played()
    device, cloud, hybrid = outcome.policies
    assert (device.n_answers, device.n_failed, device.p50_s) == (40, 0, pytest.approx(0.5))
    assert cloud.n_failed == cloud.phases[2].n_failed == 2
    assert cloud.phases[2].p50_s is None
    assert cloud.longest_gap_s == pytest.approx(4.25)
    assert hybrid.n_failed == hybrid.n_wrong == 0
    assert [round(phase.p50_s or 0, 3) for phase in hybrid.phases] == [0.25, 0.25, 0.5, 0.25]
    assert hybrid.phases[2].where == {"local": hybrid.phases[2].n_answers}
    assert hybrid.phases[0].where == {"offload + local": hybrid.phases[0].n_answers}
    assert device.bytes_up == 0
    assert outcome.is_good


def test_a_wrong_answer_is_found() -> None:
    outcome = played(wrong=True)
    assert outcome.policies[2].n_wrong == 1
    assert not outcome.is_good


def test_answers_of_the_phase_before_are_not_shown(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    good, _, dead, *_ = link.schedule(10)
    good, dead = dataclasses.replace(good, ends_s=5.0), dataclasses.replace(dead, begins_s=5.0)
    old, new = sampled("hybrid", 4.8, 5.2), sampled("device", 5.1, 5.7)
    screen = show.Screen(quiet=False)
    screen.watch(5.0, good, {"hybrid": old})
    screen.watch(6.0, dead, {"hybrid": old, "device": new})
    _, before, after = capsys.readouterr().out.splitlines()
    assert before.split() == ["5.0s", "good", "…", "…", "400", "ms", "local:", "text"]
    assert after.split() == ["6.0s", "dead", "600", "ms", "…", "…"]


def sampled(policy: Policy, began_s: float, ended_s: float) -> figures.Sample:
    stage = Stage(placement="local", cut="", codec="", bytes_up=0, bytes_down=0, total_s=0.1, fallback=None)
    return figures.Sample(
        policy=policy, began_s=began_s, ended_s=ended_s, line=0, text="text", error="", stages=(stage,)
    )  # fmt: skip


def test_the_phases_follow_each_other() -> None:
    phases = link.schedule(40)
    assert [phase.name for phase in phases] == ["good", "poor", "dead", "good"]
    assert phases[0].begins_s == 0
    assert phases[-1].ends_s == pytest.approx(40)
    assert all(one.ends_s == other.begins_s for one, other in itertools.pairwise(phases))
    assert [link.phase_at(phases, at_s) for at_s in (-1, 0, 9.9, 10.1, 25, 39.9, 99)] == [0, 0, 0, 1, 2, 3, 3]
    assert not phases[2].shape.up.open


class Outline(HTMLParser):
    """Checks that tags close in order, and gathers what the page would load or run."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "onload", "onclick")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open = self.open if tag in self.VOID else self.open[:-1]


def test_the_report_holds_everything_and_runs_nothing() -> None:
    outcome = played()
    page = report.page(outcome, material.photo())
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    assert "script" not in outline.seen
    assert all(source.startswith("data:image/png;base64,") for source in outline.loads)
    assert "line &lt;1&gt;" in page
    assert "line <1>" not in page
    for row in table.rows(outcome.policies, outcome.phases):
        for cell in row:
            assert not cell or cell in page
    assert page.count("<svg viewBox=") == 2
    assert "No answer lost, none wrong." in page
    assert "No answer lost" not in report.page(played(wrong=True), material.photo())


def test_the_chart_stays_in_its_frame() -> None:
    outcome = played()
    for width, height in ((960, 430), (366, 380)):
        outline = Outline()
        outline.feed(chart.chart(outcome.samples, outcome.phases, width=width, height=height))
        assert outline.seen.count("circle") > 10
    assert chart.chart((), outcome.phases, width=300, height=200).startswith("<svg")


def test_the_table_is_the_same_in_both_places() -> None:
    rows = table.rows(played().policies, link.schedule(20))
    text = table.text(rows)
    assert "4,250 ms" in text
    assert "– (2 none)" in text
    assert len({len(line) for line in text.splitlines()}) == 1


def test_a_process_that_fails_is_quoted() -> None:
    with (
        Child("broken one", ("hybrid.cli.main", "no-such-command")) as child,
        pytest.raises(DemoFailed, match=r"broken one ended.*\n.*no-such-command"),
    ):
        child.line(30)
    with pytest.raises(DemoFailed, match="ended with 2"):
        run_command("no-such-command")


def demo(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "hybrid.cli.main", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_whole_demo(tmp_path: Path) -> None:
    """No answer lost, none wrong; the gateway helped while the link was good, and the device did without it."""
    process = demo("--json", "--report", str(tmp_path / "demo.html"))
    out, err = process.communicate(timeout=170)
    assert process.returncode == 0, err
    reply = json.loads(out)
    assert reply["ok"] is True
    data = reply["data"]
    assert (data["n_lost"], data["n_wrong"]) == (0, 0)
    assert tuple(data["lines"][:6]) == PAGE_LINES
    device, cloud, hybrid = data["policies"]
    assert device["n_failed"] == hybrid["n_failed"] == 0
    assert cloud["phases"][2]["n_answers"] <= 1
    assert cloud["n_failed"] >= 1
    assert any("offload" in where or "split" in where for where in hybrid["phases"][0]["where"])
    assert any("offload" in where or "split" in where for where in hybrid["phases"][3]["where"]), "it never came back"
    assert hybrid["phases"][0]["p50_s"] < device["phases"][0]["p50_s"]
    assert hybrid["longest_gap_s"] < cloud["longest_gap_s"]
    assert hybrid["phases"][2]["n_answers"] >= 3
    assert "<svg" in (tmp_path / "demo.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_no_process(how: signal.Signals, tmp_path: Path) -> None:
    process = demo("--report", str(tmp_path / "demo.html"))
    children: list[psutil.Process] = []
    until_s = time.monotonic() + 60
    while len(children) < 4 and time.monotonic() < until_s:
        children = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.1)
    assert len(children) >= 4, "a gateway and three devices"
    process.send_signal(how)
    _, err = process.communicate(timeout=40)
    assert process.returncode == 130, err
    gone, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
    assert gone
    assert not (tmp_path / "demo.html").exists()
