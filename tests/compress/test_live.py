"""What was shipped is what a session answers with, where it permits the drop; and a gateway takes it."""

import shutil
import time
from dataclasses import replace

import onnxruntime
import pytest

import hybrid
from hybrid.artifact.folder import open_folder, verify
from hybrid.artifact.publishers import create_key, own_key_path, read_key
from hybrid.compress import Job, compress
from tests.compress import nets
from tests.compress.conftest import MAX_DROP, BySize, cut_short

NOBODY = "http://127.0.0.1:9"
FEEDS = {"x": nets.samples(1, 5)[0]}


@pytest.fixture(scope="module")
def made(data, wide, tmp_path_factory):
    """An artifact of a net on which int8 pays, its head in a file of its own, and the settings with the user's key."""
    folder = tmp_path_factory.mktemp("made")
    job = Job(
        model=wide, data=data / "x.npz", labels=data / "y.npy", out=folder / "small", max_drop=MAX_DROP, head="auto"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYBRID_CONFIG", str(folder / "config"))
        cut_short(patch)
        create_key(own_key_path())
        result = compress(replace(job, sign=read_key(own_key_path())), timer=lambda _job: BySize())
    assert result.artifact is not None
    return result.artifact, folder / "config"


@pytest.fixture
def artifact(made, tmp_path):
    """Signed with the user's own key."""
    found, config = made
    shutil.copytree(config, tmp_path / "config")
    return found


def answered(artifact, wanted: str, **options: object):
    """The answer and the report of the run that was answered by the wanted variant, or of the last one."""
    one_thread = onnxruntime.SessionOptions()
    one_thread.intra_op_num_threads = 1
    with hybrid.InferenceSession(
        artifact.model_path,
        one_thread,
        gateway=NOBODY,
        options=hybrid.Options(**options),  # type: ignore[arg-type]
    ) as session:
        until_s = time.monotonic() + (20 if wanted else 0.5)
        while True:
            [output] = session.run(None, FEEDS)
            if session.report.variant == wanted or time.monotonic() > until_s:
                return output, session.report
            time.sleep(0.02)


@pytest.mark.slow
def test_a_session_answers_with_the_variant(artifact):
    output, report = answered(artifact, "int8", max_accuracy_drop=0.05)
    assert report.variant == "int8"
    own = onnxruntime.InferenceSession(artifact.path_of("int8/model.onnx"))
    assert (output == own.run(None, FEEDS)[0]).all()


def test_a_session_that_permits_less_answers_with_the_original(artifact):
    _, report = answered(artifact, "", max_accuracy_drop=0.001)
    assert report.variant == ""


@pytest.mark.slow
def test_a_gateway_takes_the_artifact_with_its_papers(artifact, wide, tmp_path, hybrid_here):
    from tests.live_gateway import LiveGateway

    with LiveGateway(tmp_path / "gateway", "--no-announce") as gateway:
        words = ["models", "push", str(artifact.folder), "--gateway", gateway.url, "--token", gateway.token]
        done = hybrid_here(*words, "--name", "wide")
        assert done.returncode == 0, done.stderr
        assert "2" in done.stdout + done.stderr, "a calibration and a report go along"
        bare = ["models", "push", str(wide), "--name", "bare", "--head", "auto", "--golden", "random"]
        done = hybrid_here(*bare, "--gateway", gateway.url, "--token", gateway.token)
        assert done.returncode == 0, done.stderr
        assert "the head begins at last (Gemm), on 'f'" in done.stderr
        words = ["models", "pull", "bare:1", "--out", "pulled", "--gateway", gateway.url, "--token", gateway.token]
        assert hybrid_here(*words).returncode == 0
        words = ["models", "pull", "wide:1", "--out", "pulled", "--gateway", gateway.url, "--token", gateway.token]
        done = hybrid_here(*words)
        assert done.returncode == 0, done.stderr
    bare_one = open_folder(tmp_path / "pulled" / "bare" / "1")
    verify(bare_one)
    assert bare_one.manifest.model_digest == artifact.manifest.model_digest
    assert bare_one.manifest.golden is not None
    assert bare_one.manifest.variants == artifact.manifest.variants[:1]
    pulled = open_folder(tmp_path / "pulled" / "wide" / "1")
    verify(pulled)
    assert pulled.manifest_bytes == artifact.manifest_bytes
    for variant in pulled.manifest.variants:
        assert len(variant.trainable_files) == 1
        session = onnxruntime.InferenceSession(pulled.path_of(variant.files[0]))
        assert session.run(None, FEEDS)[0].shape == (1, nets.N_CLASSES)
