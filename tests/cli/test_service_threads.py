"""A service multiplies in one thread: OpenBLAS' others would spin beside what answers."""

import os
import subprocess
import sys

import pytest

from hybrid.cli.setting_flags import multiply_in_one_thread

SERVICE = """
import os, typer
from edge_agent.config import AgentConfig
from hybrid.cli.setting_flags import serve_command

def run(config, read_again):
    import numpy
    square = numpy.ones((600, 600), numpy.float32)
    square @ square
    print(len(os.listdir("/proc/self/task")))

app = typer.Typer()
app.command()(serve_command(AgentConfig, run))
app([])
"""


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {"OPENBLAS_NUM_THREADS": "1"}),
        ({"OPENBLAS_NUM_THREADS": "3"}, {"OPENBLAS_NUM_THREADS": "3"}),
        ({"OMP_NUM_THREADS": "2"}, {"OMP_NUM_THREADS": "2"}),
    ],
)
def test_the_operators_word_comes_first(given: dict[str, str], wanted: dict[str, str]) -> None:
    environment = dict(given)
    multiply_in_one_thread(environment)
    assert environment == wanted


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
@pytest.mark.parametrize(("said", "n_threads"), [({}, "1"), ({"OPENBLAS_NUM_THREADS": "2"}, "2")])
def test_numpy_comes_in_behind_it(said: dict[str, str], n_threads: str) -> None:
    kept = {name: text for name, text in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", SERVICE], env=kept | said, capture_output=True, text=True, timeout=60, check=False
    )
    if said and done.stdout.strip() == "1" and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core: OpenBLAS has one thread whatever is said")
    assert done.stdout.strip() == n_threads, done.stderr
