"""Ways of dividing requests in a whole job: tried, judged, shipped, told, and answering in a session."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import hybrid
from hybrid.artifact.attachments import attachments_in
from hybrid.artifact.folder import open_folder, verify
from hybrid.artifact.signature import public_key_of
from hybrid.artifact.splits import splits_of
from hybrid.calibration.record import parse_calibration
from hybrid.compress import Job, Result, compress
from hybrid.compress.report.report import Report, SplitTold
from tests.compress import split_nets
from tests.compress.conftest import BySize

KEY = bytes(range(32))
MAX_DROP = 0.06


@pytest.fixture(scope="module", autouse=True)
def _steady() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        split_nets.steady(patch)
        yield


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """For a device and a link on which dividing wins."""
    folder = tmp_path_factory.mktemp("divided")
    x, labels = split_nets.samples(130, 1)
    np.savez(folder / "x.npz", x=x)
    np.save(folder / "y.npy", labels)
    (folder / "thin.toml").write_text(split_nets.LINK)
    return Job(
        model=split_nets.graph(folder / "net.onnx"),
        data=folder / "x.npz",
        labels=folder / "y.npy",
        out=folder / "small",
        device="rpi-4b",
        link=str(folder / "thin.toml"),
        max_drop=MAX_DROP,
        sign=KEY,
    )


@pytest.fixture(scope="module")
def whole(asked: Job) -> Iterator[Result]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hybrid.compress.search.space.prunings", lambda _bench: ())
        yield compress(asked, timer=split_nets.slow_device)


@pytest.fixture
def job(asked: Job, tmp_path: Path) -> Job:
    return replace(asked, out=tmp_path / "small")


def shipped(report: Report) -> SplitTold:
    """The one that is."""
    (found,) = [each for each in report.splits if each.status == "shipped"]
    return found


def test_an_int8_head_is_shipped_with_its_codec(whole: Result) -> None:
    assert whole.artifact is not None
    artifact = open_folder(whole.artifact.folder)
    verify(artifact)
    (split,) = splits_of(artifact)
    told = shipped(whole.report)
    assert (told.id, told.cut, told.head, told.codec) == (split.id, split.cut, "int8", split.carrier)
    assert told.is_judged
    assert told.high <= MAX_DROP
    parts = (told.head_s, told.encode_s, told.network_s, told.gateway_s)
    assert told.total_s == pytest.approx(sum(part or 0.0 for part in parts))
    alone = [each.total_s for each in whole.report.splits if each.status == "always there"]
    assert told.total_s < 0.95 * min(alone)
    cells = [
        cell
        for paper in attachments_in(artifact.folder, artifact.manifest.model_digest, "calibration")
        for cell in parse_calibration(paper.content).cells
        if cell.split
    ]
    assert [(cell.cut, cell.codec, cell.split, cell.n) for cell in cells] == [
        (split.cut, split.codec, split.digest, whole.report.data.n_judge)
    ]


def test_the_report_names_everything_that_was_tried(whole: Result) -> None:
    rows = {each.id: each for each in whole.report.splits}
    won = shipped(whole.report)
    heads = {(each.head, each.codec) for each in rows.values()}
    assert {("float", "q8z"), ("float", "fp16"), ("int8", "lossless"), ("", "jpeg"), ("all", "")} <= heads
    assert {each.id for each in rows.values() if each.head == "all"} == {"local", "local int8"}
    for each in rows.values():
        assert each.reason
        assert each.status in {"shipped", "kept off", "always there"}
        if each.status == "kept off":
            assert "beaten by" in each.reason
    assert f"beaten by {won.id}" in rows["local int8"].reason
    assert any("for the gateway stands this machine" in remark for remark in whole.report.remarks)
    as_json = json.loads(whole.report_paths[0].read_bytes())["splits"]
    assert {each["id"] for each in as_json} == set(rows)
    page = whole.report_paths[1].read_text()
    assert "Dividing requests" in page
    assert all(name in page for name in rows)


def test_what_is_shipped_is_offered_and_answers_within_the_drop(
    whole: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.live_gateway import LiveGateway

    assert whole.artifact is not None
    monkeypatch.setenv("HYBRID_PUBLISHERS", public_key_of(KEY).hex())
    told, model = shipped(whole.report), whole.artifact.model_path
    codec = f"split:{told.id}"
    x, _ = split_nets.samples(20, 50)
    with LiveGateway(tmp_path / "gateway", "--no-announce", "--no-auth") as gateway:
        gateway.push(whole.artifact.folder, "net")
        options = hybrid.Options(max_accuracy_drop=MAX_DROP)
        with hybrid.InferenceSession(str(model), gateway=gateway.url, options=options) as session:
            assert session.prepare({"x": x[:1]}, timeout_s=30)
            (offered,) = [each for each in session.explain() if each.codec == codec]
            assert offered.accuracy_drop == pytest.approx(told.high)
        options = hybrid.Options(
            placement=f"split:{told.cut}", codec=codec, fallback=False, deadline_s=20.0, max_accuracy_drop=MAX_DROP
        )
        own, n_lost = onnxruntime.InferenceSession(str(model)), 0
        with hybrid.InferenceSession(str(model), gateway=gateway.url, options=options) as session:
            for one in x:
                (found,) = session.run(None, {"x": one[None]})
                assert session.report is not None
                assert (session.report.codec, session.report.fallback) == (codec, None)
                assert session.report.bytes_up < 2 * told.n_bytes
                n_lost += int(np.argmax(found) != np.argmax(own.run(None, {"x": one[None]})[0]))
    assert n_lost / len(x) <= MAX_DROP


@pytest.fixture
def known(whole: Result, asked: Job, job: Job, monkeypatch: pytest.MonkeyPatch) -> Result:
    """What an earlier call has done."""
    shutil.copytree(asked.out.with_name("small.work"), job.out.with_name("small.work"))
    monkeypatch.setattr("hybrid.compress.search.space.prunings", lambda _bench: ())
    return whole


def test_the_same_again_is_all_known(known: Result, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is tried anew by a second call, which ends as the first one did."""

    def tried(*_: object, **_more: object) -> None:
        raise AssertionError("tried anew")

    monkeypatch.setattr("hybrid.compress.splits.trying.try_cuts", tried)
    monkeypatch.setattr("compression.quantization.static.quantize", tried)
    assert compress(job, timer=split_nets.slow_device).report.splits == known.report.splits


def test_a_fault_here_costs_no_variant(known: Result, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*_: object, **_more: object) -> None:
        raise RuntimeError("an engine's own words")

    monkeypatch.setattr("hybrid.compress.splits.work.prepare", faulty)
    result = compress(job, timer=split_nets.slow_device)
    assert result.report.shipped == known.report.shipped == ("int8",)
    assert "an engine's own words" in result.report.refused[-1].why
    assert not result.report.splits


def test_a_fast_device_ships_no_split(known: Result, job: Job) -> None:
    """The device alone takes milliseconds, the smallest request a round trip: no head is even made."""
    report = compress(job, timer=lambda _job: BySize()).report
    assert "shipped" not in {each.status for each in report.splits}
    (refused,) = [each for each in report.refused if each.what.startswith("splits at")]
    assert "local int8 costs" in refused.why
    assert {each.head for each in report.splits} == {"", "all"}


def test_a_head_that_runtimes_compute_differently_is_out(
    known: Result, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hybrid.compress.splits.heads.Heads.differing", lambda _self, _int8: ["one says otherwise"])
    rows = compress(job, timer=split_nets.slow_device).report.splits
    assert [(each.status, each.reason) for each in rows if each.head == "int8"] == [
        ("failed", "runtimes differ: one says otherwise")
    ]
    assert [(each.head, each.codec) for each in rows if each.status == "shipped"] == [("float", "q4")]
