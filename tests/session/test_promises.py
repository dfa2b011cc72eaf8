"""Promises that are easily broken: what may leave, whose mistake it was, models that come and go, clean ends."""

import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import hybrid
from devices.shaped_proxy import ShapedProxy
from hybrid.errors import PlacementUnavailable
from tests import zoo
from tests.live_gateway import LiveGateway
from tests.session.test_placements import assert_same, forced, whole


def open_cls(gateway: LiveGateway, url: str = "", **options: object) -> hybrid.InferenceSession:
    chosen = hybrid.Options(**options)  # type: ignore[arg-type]
    return hybrid.InferenceSession(
        zoo.path("ppocr_cls"), gateway=url or gateway.url, token=gateway.token, options=chosen
    )


def placement(session: hybrid.InferenceSession) -> str:
    assert session.report is not None
    return session.report.placement


def settles(session: hybrid.InferenceSession, feeds: zoo.Feeds, wanted: str, limit_s: float = 60.0) -> bool:
    """Whether requests come to be computed there; between them what prepares that has the machine."""
    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s:
        session.run(None, feeds)
        if placement(session) == wanted:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    "options",
    [{"max_uplink_bytes_per_s": 0.0}, {"raw_input_may_leave": False, "placement": "offload"}],
    ids=["no uplink", "no raw input"],
)
def test_what_may_not_leave_does_not_leave_for_trials_either(gateway: LiveGateway, options: dict[str, object]) -> None:
    feeds = zoo.feeds("ppocr_cls")
    with ShapedProxy(gateway.port) as link, open_cls(gateway, f"http://127.0.0.1:{link.port}", **options) as session:
        assert not session.prepare(feeds, timeout_s=10)
        for _ in range(3):
            assert_same(session.run(None, feeds), whole("ppocr_cls", feeds))
            assert placement(session) == "local"
        assert link.traffic().up_bytes < feeds["x"].nbytes / 4  # control calls only


def test_wrong_inputs_raise_onnxruntimes_error_and_cost_the_gateway_nothing(gateway: LiveGateway) -> None:
    good = zoo.feeds("minilm")
    bad = good | {"input_ids": np.full_like(good["input_ids"], 10**9)}
    with pytest.raises(Exception) as wanted:  # noqa: PT011
        whole("minilm", bad)
    with forced(gateway, "minilm", "offload") as session:
        session.run(None, good)
        session_fallback = hybrid.InferenceSession(
            zoo.path("minilm"),
            gateway=gateway.url,
            token=gateway.token,
            options=hybrid.Options(placement="offload"),
        )
    with session_fallback as session:
        assert session.prepare(good)
        with pytest.raises(type(wanted.value)):
            session.run(None, bad)
        assert_same(session.run(None, good), whole("minilm", good))
        assert placement(session) == "offload"


def test_a_first_request_that_fails_does_not_spoil_its_shape(gateway: LiveGateway) -> None:
    good = zoo.feeds("minilm", variant=1)
    bad = good | {"input_ids": np.full_like(good["input_ids"], 10**9)}
    options = hybrid.Options(placement="offload")
    with hybrid.InferenceSession(
        zoo.path("minilm"), gateway=gateway.url, token=gateway.token, options=options
    ) as session:
        with pytest.raises(Exception):  # noqa: B017, PT011
            session.run(None, bad)
        assert settles(session, good, "offload")


def test_unknown_outputs_raise_onnxruntimes_error(gateway: LiveGateway) -> None:
    feeds = zoo.feeds("ppocr_cls")
    with pytest.raises(Exception) as wanted:  # noqa: PT011
        onnxruntime.InferenceSession(zoo.path("ppocr_cls")).run(["nope"], feeds)
    with open_cls(gateway, placement="offload") as session:
        assert session.prepare(feeds)
        with pytest.raises(type(wanted.value)):
            session.run(["nope"], feeds)
        session.run(None, feeds)
        assert placement(session) == "offload"


def test_a_model_that_is_unloaded_and_loaded_again_is_used_again(own_gateway: LiveGateway) -> None:
    feeds = zoo.feeds("ppocr_cls")

    def repository(action: str) -> None:
        request = urllib.request.Request(
            f"{own_gateway.url}/v2/repository/models/cls/{action}",
            method="POST",
            data=b"{}",
            headers={"Authorization": f"Bearer {own_gateway.token}"},
        )
        urllib.request.urlopen(request, timeout=20).close()

    with open_cls(own_gateway, placement="offload") as session:
        assert settles(session, feeds, "offload")
        repository("unload")
        assert settles(session, feeds, "local")
        repository("load")
        assert settles(session, feeds, "offload")


@pytest.mark.parametrize("url", [None, "auto"])
def test_what_is_forced_without_fallback_is_never_silently_local(url: str | None) -> None:
    options = hybrid.Options(placement="offload", fallback=False)
    session = hybrid.InferenceSession(zoo.path("ppocr_cls"), gateway=url, options=options)
    with pytest.raises(PlacementUnavailable, match="no gateway"):
        session.run(None, zoo.feeds("ppocr_cls"))


def test_a_run_with_options_of_its_own_stays_here_and_says_so(gateway: LiveGateway) -> None:
    feeds = zoo.feeds("ppocr_cls")
    with open_cls(gateway, placement="offload") as session:
        assert session.prepare(feeds)
        session.run(None, feeds, onnxruntime.RunOptions())
        assert session.report is not None
        assert session.report.placement == "local"
        assert "run_options" in str(session.report.fallback)


def test_a_replaced_file_is_never_mixed_with_the_open_one(gateway: LiveGateway, tmp_path: Path) -> None:
    path = tmp_path / zoo.path("ppocr_cls").name
    shutil.copyfile(zoo.path("ppocr_cls"), path)
    options = hybrid.Options(placement="split")
    with hybrid.InferenceSession(path, gateway=gateway.url, token=gateway.token, options=options) as session:
        assert session.prepare(zoo.feeds("ppocr_cls"))
        shutil.copyfile(zoo.path("silero"), path)
        feeds = {"x": np.ones((5, 3, 48, 192), np.float32)}
        session.prepare(feeds, timeout_s=10)
        assert_same(session.run(None, feeds), whole("ppocr_cls", feeds))
        assert placement(session) == "local"
        assert session.report is not None
        assert "changed after it was opened" in str(session.report.fallback)


def test_text_travels_and_other_objects_stay(tmp_path: Path) -> None:
    from hybrid.route.feeds import Declared, DeclaredInput

    declared = Declared((DeclaredInput("t", None, (None,)),), ("o",), "")
    assert declared.shapes_of({"t": np.array(["a", "b"])}) == (("t", (2,)),)
    assert declared.shapes_of({"t": np.array(["a", "b"], object)}) == (("t", (2,)),)
    assert declared.shapes_of({"t": np.array([b"a", b"b"], object)}) is None
    assert declared.shapes_of({"t": np.array([1, 2], object)}) is None


ENDS_WITHOUT_CLOSING = """
import sys
import hybrid
from tests import zoo
path, url, token, seconds = sys.argv[1:]
session = hybrid.InferenceSession(zoo.path(path), gateway=url, token=token)
import time
until = time.monotonic() + float(seconds)
while time.monotonic() < until:
    session.run(None, zoo.feeds(path))
"""


@pytest.mark.parametrize("seconds", ["0", "0.6", "1.2", "1.8"])
def test_a_program_may_end_without_closing(gateway: LiveGateway, root: Path, seconds: str) -> None:
    command = [sys.executable, "-c", ENDS_WITHOUT_CLOSING, "ppocr_det", gateway.url, gateway.token, seconds]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_sessions_that_are_forgotten_leave_no_threads(gateway: LiveGateway) -> None:
    import gc
    import threading

    session = open_cls(gateway)
    session.prepare(zoo.feeds("ppocr_cls"), timeout_s=5)
    session.cycle = session  # type: ignore[attr-defined]  (only the garbage collector ends it)
    del session
    gc.collect()
    deadline_s = time.monotonic() + 10
    while any(t.name == "hybrid-preparation" for t in threading.enumerate()) and time.monotonic() < deadline_s:
        gc.collect()
    assert not any(thread.name == "hybrid-preparation" for thread in threading.enumerate())


LOGS_A_WARNING = """
import logging, hybrid
hybrid.InferenceSession
logging.getLogger("hybrid.session").warning("nobody asked")
"""


def test_a_program_without_logging_is_not_written_to(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOGS_A_WARNING], cwd=root, capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
