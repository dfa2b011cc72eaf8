"""A whole job: search, judgement, artifact and report; and what may go wrong on the way."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from hybrid.artifact.attachments import attachments_in
from hybrid.artifact.folder import open_folder, verify
from hybrid.calibration.record import parse_calibration
from hybrid.compress import Job, Result, Watch, compress
from hybrid.compress.report.report import Report
from hybrid.compress.search.space import prunings
from hybrid.compress.search.staircase import Stairs
from hybrid.errors import Conflict, DataUnfit, DiskFull, ModelMissing, ModelUnsupported
from tests.compress import nets
from tests.compress.conftest import BySize


@pytest.fixture
def done(job: Job, whole: Result) -> None:
    """An earlier call has done the job's work, and its artifact was moved away."""
    assert whole.artifact is not None
    shutil.copytree(whole.artifact.folder.with_name("small.work"), job.out.with_name("small.work"))


def judged(report: Report) -> list[tuple]:
    """What has to be the same whenever the same is asked."""
    return [
        (each.id, each.recipe, each.status, each.reason, each.n_bytes, each.seconds_ratio, each.chosen_by, each.judged)
        for each in report.candidates
    ]


def test_a_model_becomes_an_artifact_with_a_report(job, by_size, net):
    result = compress(job, timer=by_size)
    assert result.artifact is not None
    artifact = open_folder(job.out)
    verify(artifact)
    assert [variant.id for variant in artifact.manifest.variants] == ["original", "int8"]
    assert artifact.model_path.read_bytes() == net.read_bytes()
    assert artifact.manifest.golden is not None
    session = onnxruntime.InferenceSession(artifact.path_of("int8/model.onnx"))
    feeds = {"x": np.load(job.out / artifact.manifest.golden.inputs["x"])}
    wanted = np.load(job.out / artifact.manifest.golden.outputs["y"])
    assert session.run(None, feeds)[0].argmax() == wanted.argmax()


def test_the_report_says_everything_that_was_asked_tried_and_found(job, whole):
    report = msgspec.json.decode(whole.report_paths[0].read_bytes(), type=Report)
    assert report == whole.report
    assert report.shipped == ("int8",)
    assert "int8" in report.front
    shipped = report.candidates[0]
    assert (shipped.id, shipped.status, shipped.runtimes) == ("int8", "shipped", ())
    assert shipped.judged is not None
    assert shipped.judged.n == report.data.n_judge
    assert shipped.judged.low <= shipped.judged.drop <= shipped.judged.high <= job.max_drop
    assert 0 < shipped.judged.p_value <= 1
    assert shipped.bytes_ratio == pytest.approx(0.4, abs=0.1)
    assert shipped.energy_j is not None
    assert report.baseline.energy_j is not None
    assert shipped.energy_j < report.baseline.energy_j
    assert shipped.memory_bytes
    assert len({each.id for each in report.candidates}) == len(report.candidates)
    assert {each.recipe.ranges for each in report.candidates} == {"minmax", "percentile", "entropy"}
    assert all(each.reason for each in report.candidates)
    assert {each.node for each in report.sensitivities} == {"conv0", "conv1", "last"}
    assert {refused.what for refused in report.refused} >= {"learned bottlenecks", "TensorFlow Lite"}
    assert len(report.shown[0].outputs["int8"]) == len(report.shown[0].outputs["original"]) == 6
    assert "<html" in whole.report_paths[1].read_text()


def test_a_model_without_a_channel_that_can_go_is_told_so_once(job, by_size, monkeypatch, tmp_path):
    """One product, whose columns are the answers: no ratio of pruning can be had, and none is tried."""
    matrix = numpy_helper.from_array(nets.samples(6, 0)[0].reshape(6, -1).T.copy(), "w")
    nodes = [helper.make_node("Flatten", ["x"], ["f"], "flat"), helper.make_node("MatMul", ["f", "w"], ["y"], "one")]
    onnx.save(nets.model(nodes, [matrix], 1, ("y", 6)), tmp_path / "one.onnx")
    monkeypatch.setattr("hybrid.compress.search.space.prunings", prunings)
    monkeypatch.setattr("hybrid.compress.run.staircase_of", lambda *_: Stairs(multiple=8, clear=True, seconds={}))
    report = compress(replace(job, model=tmp_path / "one.onnx", labels=None), timer=by_size).report
    assert [each.id for each in report.candidates if each.recipe.pruned] == []
    [why] = [each.why for each in report.refused if each.what == "pruning of the graph"]
    assert "these channels are outputs of the model" in why


def test_calibrations_and_the_report_lie_with_the_artifact_signed_with_the_key(job, by_size):
    from hybrid.artifact.signature import new_private_key, public_key_of

    key = new_private_key()
    result = compress(replace(job, sign=key), timer=by_size)
    assert result.artifact is not None
    digest = result.artifact.manifest.model_digest
    [calibration] = attachments_in(job.out, digest, "calibration")
    told = parse_calibration(calibration.content)
    assert calibration.signature is not None
    assert (told.variant, told.publisher) == ("int8", public_key_of(key).hex())
    [cell] = told.cells
    assert (cell.cut, cell.codec, cell.n) == ("output", "none", result.report.data.n_judge)
    assert cell.drop_high <= job.max_drop
    [report] = attachments_in(job.out, digest, "report")
    assert report.content == result.report.content


def test_the_same_job_gives_the_same_variants_and_the_same_words(job, by_size, whole):
    said: list[str] = []
    again = compress(job, Watch(said=said.append), timer=by_size)
    assert again.n_known == whole.n_known
    assert said == []
    assert judged(again.report) == judged(whole.report)
    assert again.artifact is not None
    assert whole.artifact is not None
    assert again.artifact.manifest.files == whole.artifact.manifest.files


def test_what_an_earlier_call_has_done_is_not_done_again(job, by_size, whole, done):
    timer, said = BySize(), []
    second = compress(job, Watch(said=said.append), timer=lambda _job: timer)
    assert judged(second.report) == judged(whole.report)
    assert said == [f"goes on with what an earlier call has finished ({job.out}.work)"]
    assert timer.asked == [2], "only the judgement times anything"
    assert timer.is_closed
    assert second.n_known > whole.n_known


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("at", [0, 2, 5, 9, 13])
def test_ended_at_any_stage_the_same_command_gives_the_same(job, by_size, whole, at):
    stages = 0

    def stage(_text: str) -> None:
        nonlocal stages
        stages += 1
        if stages > at:
            raise _Killed

    with pytest.raises(_Killed):
        compress(job, Watch(stage=stage), timer=by_size)
    assert not job.out.exists()
    resumed = compress(job, timer=by_size)
    assert judged(resumed.report) == judged(whole.report)
    assert resumed.artifact is not None
    assert whole.artifact is not None
    assert resumed.artifact.manifest.files == whole.artifact.manifest.files


def _work(job, told) -> None:
    import hybrid.compress.search.next_step
    import hybrid.compress.search.space

    hybrid.compress.search.space.prunings = lambda _bench: ()
    hybrid.compress.search.next_step.is_lossless = lambda _grade: False
    compress(job, Watch(stepped=lambda: told.send(1)), timer=lambda _job: BySize())


@pytest.mark.parametrize("n_steps", [1, 4])
def test_killed_by_the_kernel_it_goes_on(job, by_size, whole, n_steps):
    mine, theirs = multiprocessing.get_context("spawn").Pipe()
    child = multiprocessing.get_context("spawn").Process(target=_work, args=(job, theirs))
    child.start()
    for _ in range(n_steps):
        assert mine.poll(30)
        mine.recv()
    time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.join(10)
    assert not job.out.exists()
    resumed = compress(job, timer=by_size)
    assert resumed.n_known >= n_steps
    assert judged(resumed.report) == judged(whole.report)


def test_a_corrupt_entry_costs_only_its_own_work(job, by_size, whole, done):
    work = job.out.with_name("small.work")
    for model in list(work.glob("*/model.onnx"))[:3]:
        model.write_bytes(b"something else")
    again = compress(job, timer=by_size)
    assert judged(again.report) == judged(whole.report)
    assert len(list((work / "set-aside").iterdir())) == 3


def test_a_full_disk_leaves_no_artifact_and_says_so(job, by_size, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("hybrid.compress.shipping.shutil.copyfile", full)
        with pytest.raises(DiskFull):
            compress(job, timer=by_size)
    assert not job.out.exists()
    assert not list(job.out.parent.glob("**/.tmp-*"))
    assert not job.out.with_name("small.report.json").exists()
    assert compress(job, timer=by_size).artifact is not None


def test_killed_while_the_artifact_is_laid_out_nothing_stays(job, by_size, whole, done, monkeypatch):
    """The next call sweeps what the killed one had copied."""
    from hybrid.compress import shipping

    def killed(*_: object) -> None:
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(shipping, "place_folder", killed)
        patch.setattr(shipping.shutil, "rmtree", lambda *_args, **_options: None)
        with pytest.raises(_Killed):
            compress(job, timer=by_size)
    assert list(job.out.parent.glob("**/.tmp-*"))
    assert judged(compress(job, timer=by_size).report) == judged(whole.report)
    assert not list(job.out.parent.glob("**/.tmp-*"))


class _AllTheSame(BySize):
    def __call__(self, models, feeds):
        return [super(_AllTheSame, self).__call__(models[:1], feeds)[0] for _ in models]


def test_nothing_that_is_not_faster_is_shipped_and_the_report_says_why(job, by_size):
    result = compress(job, timer=lambda _job: _AllTheSame())
    assert result.artifact is None
    assert not job.out.exists()
    report = json.loads(result.report_paths[0].read_bytes())
    assert {each["status"] for each in report["candidates"]} == {"reverted"}
    assert all("not faster on made up" in each["reason"] for each in report["candidates"])


class _Quick(BySize):
    """Fast while it is searched, slow when it is judged."""

    def __call__(self, models, feeds):
        found = super().__call__(models, feeds)
        return found if self.asked.count(2) <= 2 else [found[0]] * len(found)


def test_what_is_not_faster_in_the_last_judgement_is_not_shipped(job, by_size):
    result = compress(job, timer=lambda _job: _Quick())
    assert result.artifact is None
    assert result.report.candidates[0].status == "reverted"


def test_what_differs_between_runtimes_is_not_shipped(job, by_size, monkeypatch):
    from hybrid.compress import across

    class Wrong:
        def __init__(self, path: Path) -> None:
            self.session = onnxruntime.InferenceSession(path)

        def run(self, names, feeds):
            return [-answer for answer in self.session.run(names, feeds)]

    usual = across.runtimes_of
    monkeypatch.setattr(across, "runtimes_of", lambda path: {"another runtime": Wrong, **usual(path)})
    result = compress(job, timer=by_size)
    assert result.artifact is None
    assert "another runtime" in result.report.candidates[0].reason


def test_what_loses_too_much_on_unseen_samples_is_not_shipped(job, by_size, monkeypatch):
    """It looked good on the choosing part; the judging part decides."""
    from hybrid.compress import judging
    from hybrid.compress.grading import Grade

    def grade(_path, material, part):
        return Grade(metric="accuracy", n=len(part), n_lost=len(part) // 10, n_won=0)

    monkeypatch.setattr(judging, "graded", grade)
    result = compress(job, timer=by_size)
    assert result.artifact is None
    assert result.report.candidates[0].status == "kept off"
    assert "beyond the floor" in result.report.candidates[0].reason


def test_a_budget_that_ends_ships_what_was_found_and_says_so(job, by_size):
    now = iter(range(1000))
    result = compress(replace(job, budget_s=4), timer=by_size, now_s=lambda: float(next(now)))
    assert result.is_cut_short
    assert any("the budget ended" in remark for remark in result.report.remarks)
    assert result.artifact is not None


def test_bytes_as_the_objective(job, by_size):
    result = compress(replace(job, objective="bytes"), timer=lambda _job: _AllTheSame())
    assert result.artifact is not None
    smallest = min(each.n_bytes for each in result.report.candidates if each.n_bytes)
    assert result.report.candidates[0].n_bytes == smallest


def test_an_artifact_goes_in_and_its_words_come_along(job, by_size, net, tmp_path):
    from hybrid.artifact.folder import from_onnx, write_folder
    from hybrid.artifact.manifest import canonical_bytes

    bare = from_onnx(net, "patterns", "7", sequence=7)
    manifest = msgspec.structs.replace(bare.manifest, classes=tuple("abcdef"), pre=msgspec.Raw(b'{"kind":"other"}'))
    given = write_folder(replace(bare, manifest=manifest, manifest_bytes=canonical_bytes(manifest)), tmp_path / "given")
    result = compress(replace(job, model=tmp_path / "given", version="8"), timer=by_size)
    assert result.artifact is not None
    made = result.artifact.manifest
    assert (made.name, made.version, made.sequence, made.base) == ("patterns", "8", 8, given.digest)
    assert (made.classes, bytes(made.pre)) == (tuple("abcdef"), b'{"kind":"other"}')


def test_killed_between_artifact_and_report_the_same_command_writes_the_report(job, by_size, monkeypatch):
    from hybrid.compress import run

    def killed(*_: object) -> None:
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(run, "write_report", killed)
        with pytest.raises(_Killed):
            compress(job, timer=by_size)
    assert list(job.out.parent.glob("*.report.*")) == []
    with pytest.raises(Conflict, match="not empty"):
        compress(replace(job, max_drop=0.06), timer=by_size)
    late = compress(job, timer=by_size)
    assert late.artifact is not None
    assert msgspec.json.decode(late.report_paths[0].read_bytes(), type=Report) == late.report
    assert "<html" in late.report_paths[1].read_text()
    with pytest.raises(Conflict, match="not empty"):
        compress(job, timer=by_size)


def test_what_is_written_has_the_modes_that_the_umask_leaves(job, by_size):
    before = os.umask(0o027)
    try:
        result = compress(job, timer=by_size)
    finally:
        os.umask(before)
    assert result.artifact is not None
    written = [*result.report_paths, job.out / "manifest.json", *(job.out / "golden").iterdir()]
    assert {path.stat().st_mode & 0o777 for path in written} == {0o640}


def test_a_place_that_is_taken_is_refused_before_any_work(job, by_size):
    job.out.mkdir()
    (job.out / "mine").write_text("mine")
    with pytest.raises(Conflict, match="not empty"):
        compress(job, timer=by_size)
    assert (job.out / "mine").read_text() == "mine"
    assert not job.out.with_name("small.work").exists()


def test_bad_samples_are_refused_before_any_work(job, by_size):
    with pytest.raises(DataUnfit):
        compress(replace(job, max_drop=0.0001), timer=by_size)
    assert list(job.out.parent.glob("small*")) == []


def test_models_that_are_none(job, by_size, tmp_path):
    with pytest.raises(ModelMissing, match="no model was named"):
        compress(replace(job, model=None), timer=by_size)
    with pytest.raises(ModelMissing):
        compress(replace(job, model=tmp_path / "nothing.onnx"), timer=by_size)
    (tmp_path / "net.tflite").write_bytes(b"....TFL3....")
    with pytest.raises(ModelUnsupported, match="cannot be compressed further"):
        compress(replace(job, model=tmp_path / "net.tflite"), timer=by_size)
