"""A forked child is not held up by engines of its parent that it lets go."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests import zoo

CHILD_LETS_GO = """
import gc, os, sys, warnings
warnings.simplefilter("ignore")
from devices.onnx_engine import open_session
engine = open_session({model!r})
cycle = [engine]
cycle.append(cycle)
if {is_garbage}:
    gc.disable()
    del engine, cycle
child = os.fork()
if child == 0:
    if not {is_garbage}:
        del engine, cycle
    gc.collect()
    os._exit(7)  # as children of multiprocessing end; an orderly exit waits in the engine's own static destructors
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("is_garbage", [False, True], ids=["held", "garbage"])
def test_a_child_that_lets_an_engine_go_ends(is_garbage: bool) -> None:
    code = CHILD_LETS_GO.format(model=str(zoo.path("ppocr_cls")), is_garbage=is_garbage)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    until_s = time.monotonic() + 30
    try:
        while process.poll() is None and time.monotonic() < until_s:
            time.sleep(0.05)
        assert process.poll() == 0, "the child hangs"
        assert process.communicate()[0].split() == ["7"]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
