"""What a job is asked with from Python: paths as text too, and nothing that no job can mean."""

from pathlib import Path

import pytest

from hybrid.compress import Job
from hybrid.errors import BadMessage


def test_paths_may_be_text():
    job = Job(model="m.onnx", data="x.npz", labels="y.npy", out="small")  # type: ignore[arg-type]
    assert (job.model, job.data, job.labels, job.out) == (Path("m.onnx"), Path("x.npz"), Path("y.npy"), Path("small"))
    assert Job(model=None, data=Path("x"), out=Path("y")).model is None


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"objective": "speed"}, r"objective 'speed' is none of 'latency', 'bytes', 'energy'"),
        ({"metric": "f1"}, r"metric 'f1' is none of None, 'accuracy'"),
        ({"emulation": "pace"}, "emulation 'pace' is none of"),
        ({"max_drop": 0.0}, r"max_drop is 0\.0, wanted a share"),
        ({"max_drop": float("nan")}, "max_drop is nan"),
        ({"max_drop": 2}, "at most 1"),
        ({"budget_s": -1.0}, r"budget_s is -1\.0, wanted 0 or more"),
        ({"n_samples": 0}, "n_samples is 0, wanted 1 or more"),
        ({"threads": -2}, "threads is -2"),
    ],
    ids=str,
)
def test_what_no_job_can_mean_is_refused_at_once(wish, said):
    with pytest.raises(BadMessage, match=said):
        Job(model=Path("m.onnx"), data=Path("x.npz"), out=Path("small"), **wish)
