"""The bench: parts to prospects, peers, bars, cells that are repeatable, pages and the command."""

import json
from dataclasses import replace
from xml.etree import ElementTree as ET

import msgspec
import numpy as np
import pytest

from devices.catalog import load
from hybrid.bench import plots, tables
from hybrid.bench.bars import Bar, bars
from hybrid.bench.cell import carry_out
from hybrid.bench.contest import Kept, contest, fingerprint
from hybrid.bench.figures import CellFigures, figures_of
from hybrid.bench.matrix import MATRIX, cell, cells_of, narrowed, read, work_of
from hybrid.bench.pages import pages
from hybrid.bench.parts import Layer, ModelParts
from hybrid.bench.parts import read as read_parts
from hybrid.bench.peers import Regression, dads, neurosurgeon
from hybrid.bench.shelf import FOLDER, shelved
from hybrid.bench.spoken import spoken, verdict
from hybrid.errors import BadMessage
from hybrid.partition.mincut import cost_of


@pytest.fixture(scope="module")
def parts() -> list[ModelParts]:
    return shelved()


@pytest.fixture(scope="module")
def small():
    wishes = {"models": ["efficientnet"], "devices": ["rpi-4b"], "links": ["wifi-good"]}
    return narrowed(read(), wishes | {"objectives": ["latency", "energy"]}, quick=True)


@pytest.fixture(scope="module")
def runs(small, parts):
    return carry_out(cells_of(small, parts)[1].build(), small.objectives)


def test_the_matrix_is_at_least_what_was_promised(parts):
    matrix = read(MATRIX)
    assert len(matrix.models) >= 5
    assert {one.name for one in parts} >= set(matrix.models)
    assert len({place.trace for place in cells_of(matrix, parts)}) == 2
    for place in cells_of(matrix, parts):
        assert 0.02 <= place.build().scene.work.local_s <= 2.0


def test_parts_are_kept_and_foreign_files_refused(parts, tmp_path):
    for one in parts:
        assert read_parts(FOLDER / f"{one.name}.json") == one
        assert one.cuts[0].kind == "input"
        assert len(one.layers) == len(one.wiring.work)
    (tmp_path / "odd.json").write_text("{}")
    with pytest.raises(BadMessage, match="no measured parts"):
        read_parts(tmp_path / "odd.json")
    (tmp_path / "old.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(parts[0], schema=0)))
    with pytest.raises(BadMessage, match="version 0"):
        read_parts(tmp_path / "old.json")


def test_prospects_are_the_measured_parts_times_the_device_s_factor(parts):
    one = parts[0]
    work = work_of(one, 3.0)
    assert work.local_s == pytest.approx(3 * one.whole_s)
    assert len(work.prospects) == 1 + sum(len(cut.codecs) for cut in one.cuts)
    for prospect, ratios in zip(work.prospects[1:], work.size_ratios[1:], strict=True):
        cut = next(cut for cut in one.cuts if cut.cut == prospect.cut)
        part = next(part for part in cut.codecs if part.codec == prospect.codec)
        assert prospect.head_s == pytest.approx(3 * cut.head_s)
        assert prospect.tail_s == cut.tail_s
        assert np.mean(ratios) == pytest.approx(1.0)
        assert prospect.bytes_up == round(np.mean(part.n_bytes))


def test_regression_finds_the_line_that_made_the_seconds():
    layers = [Layer(op="Conv", work=w, n_bytes=b, seconds=1e-5 + 2e-9 * w + 1e-10 * b) for w, b in
              ((1e5, 1e4), (2e6, 5e4), (3e5, 9e5), (7e6, 1e3), (5e6, 4e5))]  # fmt: skip
    fitted = Regression.fit(layers)
    fresh = Layer(op="Conv", work=4e6, n_bytes=2e5, seconds=0.0)
    assert fitted.seconds(fresh) == pytest.approx(1e-5 + 8e-3 + 2e-5, rel=1e-3)
    assert fitted.seconds(Layer(op="Seldom", work=4e6, n_bytes=2e5, seconds=0.0)) == pytest.approx(8.03e-3, rel=1e-2)
    assert Regression.fit([]).seconds(fresh) == 0.0


@pytest.mark.parametrize("name", ["efficientnet", "magika"])
def test_dads_takes_a_cut_that_no_measured_one_beats_by_its_own_cost(parts, small, name):
    one = next(part for part in parts if part.name == name)
    place = replace(cells_of(small, parts)[0], model=one)
    scene = place.build().scene
    factor, up_bps = 7.1, 5e6
    chosen = scene.work.prospects[dads(one, scene, factor, up_bps).choose(0.0, None).prospect]
    seconds = [layer.seconds for layer in one.layers]
    ways = {"local": set(range(len(seconds)))} | {cut.cut: set(cut.head_layers) for cut in one.cuts}
    costs = {
        key: cost_of(
            one.wiring, head, [round(1e9 * factor * s) for s in seconds], [round(1e9 * s) for s in seconds],
            [round(1e9 * 8 * (n or 0) / up_bps) for n in one.wiring.n_bytes],
        )
        for key, head in ways.items()
    }  # fmt: skip
    key = "local" if chosen.placement == "local" else chosen.cut
    assert costs[key] <= min(costs.values()) * 1.001


def test_neurosurgeon_never_sends_more_over_a_slower_link(parts, small):
    one = next(part for part in parts if part.name == "efficientnet")
    sent = []
    for link in ("3g", "lte", "wifi-good", "ethernet"):
        place = cell(small, one, parts, load.device("rpi-4b"), load.link_class(link), trace_kind="steady")
        chosen = neurosurgeon(one, parts, place.scene, 7.1).choose(0.0, None).prospect
        sent.append(place.scene.work.prospects[chosen].bytes_up)
    assert sent == sorted(sent)


def test_a_cell_is_the_same_again_whatever_else_is_run(small, parts, runs):
    again = carry_out(cells_of(small, parts)[1].build(), small.objectives)
    for objective in small.objectives:
        assert np.array_equal(again.ours[objective].outcome.latency_s, runs.ours[objective].outcome.latency_s)
        assert bars(again, objective) == bars(runs, objective)


def test_the_oracle_is_the_least_and_figures_agree_with_the_runs(runs):
    figures = figures_of(runs, "mark")
    for found in figures.objectives:
        for policy in found.policies:
            if policy.policy in ("local", "hybrid"):
                assert found.oracle <= policy.cost * 1.000001, policy.policy
        assert sum(found.oracle_shares) == pytest.approx(1.0)
    latency = figures.of("latency")
    assert latency is not None
    local = latency.of("local")
    assert local is not None
    assert local.mean_s == pytest.approx(runs.statics[0].outcome.latency_s.mean())
    assert latency.bars[0].name.startswith("windows within 1.05")
    assert msgspec.json.decode(msgspec.json.encode(figures), type=CellFigures) == figures


def test_bars_know_both_directions():
    assert Bar(name="x", measured=1.0, limit=1.03).held
    assert not Bar(name="x", measured=1.04, limit=1.03).held
    assert Bar(name="x", measured=0.995, limit=0.99, at_least=True).held
    assert not Bar(name="x", measured=0.98, limit=0.99, at_least=True).held


def test_a_run_goes_on_where_it_was_ended(small, parts, tmp_path):
    only = msgspec.structs.replace(small, traces=("steady",), front_s_per_j=())
    mark = fingerprint(only, parts)
    path = tmp_path / "cells.jsonl"
    told: list[str] = []
    first = contest(
        only, [p.build() for p in cells_of(only, parts)], Kept(path), mark, done=lambda c: told.append(c.name)
    )
    with path.open("ab") as file:
        file.write(b'{"model": "half a li')
    kept = Kept(path)
    assert kept.get(first[0].name, mark) == first[0]
    assert kept.get(first[0].name, "another") is None
    assert contest(only, [p.build() for p in cells_of(only, parts)], kept, mark) == first
    kept.put(msgspec.structs.replace(first[0], model="another"))
    assert Kept(path).get(first[0].name, mark) == first[0], "half a line spoils no other"
    assert told == [first[0].name]
    assert fingerprint(only, parts, ["dads"]) != mark


def test_wishes_that_are_none_are_refused():
    with pytest.raises(BadMessage, match="none of the matrix"):
        narrowed(read(), {"models": ["resnet9000"]})
    with pytest.raises(BadMessage, match="no matrix"):
        read(MATRIX.with_name("nowhere.toml"))


def test_pages_hold_every_cell_and_every_missed_bar(small, parts, runs):
    figures = figures_of(runs, "mark", [(0.0, 0.05, 2.0), (1.0, 0.06, 1.0)])
    made = pages(small, parts, [figures], pictures_at="")
    assert "efficientnet" in made.summary
    missed = [bar for found in figures.objectives for bar in found.bars if not bar.held]
    assert made.every_cell.count("✗") - 1 == len(missed)  # one stands in the introduction
    for name, picture in made.pictures.items():
        assert name.endswith(".svg")
        ET.fromstring(picture)
    assert tables.splits([figures], "latency") == "", "no cut truly wins here"


def test_what_is_said_names_the_winner_and_fits_eighty_columns(runs):
    figures = figures_of(runs, "mark")
    said = spoken([figures])
    assert "efficientnet on rpi-4b over wifi-good, changing link: latency" in said
    assert "hybrid:" in said
    assert f"of {sum(len(found.bars) for found in figures.objectives)} bars held in 1 cells" in said
    assert ".svg" not in said, "no picture is named that was not written"
    many = [msgspec.structs.replace(figures, model=f"model{number}") for number in range(20)]
    for text in (said, spoken(many)):
        assert max(map(len, text.splitlines())) <= 80
    assert "wifi-good, changing" in spoken(many)


def test_the_verdict_says_who_won(runs):
    latency = figures_of(runs, "mark").of("latency")
    ours = latency.of("hybrid")
    fixed = [policy for policy in latency.policies if policy.policy not in ("hybrid", "foresight")]
    best = min(policy.cost for policy in fixed)
    for cost, word in ((0.5 * best, "It wins"), (best, "Even with"), (2.0 * best, "It loses")):
        assert word in verdict(latency, msgspec.structs.replace(ours, cost=cost))


def test_a_true_split_is_said_plainly(runs):
    figures = figures_of(runs, "mark")
    latency = figures.of("latency")
    won = msgspec.structs.replace(figures, objectives=(msgspec.structs.replace(latency, split=("split a q8", 0.8)),))
    none = msgspec.structs.replace(figures, objectives=(msgspec.structs.replace(latency, split=("split a q8", 0.99)),))
    assert "A cut truly wins" in tables.splits_said([won], "latency")
    assert "in 1 of 1 cells" in tables.splits_said([won], "latency")
    assert "No cut truly wins" in tables.splits_said([none], "latency")
    assert "A cut truly wins here: split a q8 costs 0.80" in spoken([won])


def test_axes_are_round_and_pictures_escape_names():
    axis = plots.Axis.of([0.0, 37.0])
    assert (axis.low, axis.high, axis.step) == (0.0, 40.0, 10.0)
    assert plots.Axis.of([100.0, 104.0]).low >= 99.0
    picture = plots.lines("a & b", "x", "y", {"<odd>": [(0.0, 1.0), (2.0, 3.0)]}, marks=True)
    assert "&lt;odd&gt;" in picture
    ET.fromstring(picture)


def test_the_command_answers_in_json(capsys):
    from typer.testing import CliRunner

    from hybrid.cli.bench import app

    done = CliRunner().invoke(
        app,
        ["--quick", "--models", "magika", "--devices", "rpi-4b", "--links", "lte", "--traces", "steady", "--objective",
         "latency", "--policies", "dads", "--json"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)["data"]
    (only,) = told["cells"]
    assert [one["policy"] for one in only["objectives"][0]["policies"]] == [
        "local", "offload raw", "offload encoded", "best static", "dads", "hybrid",
    ]  # fmt: skip
