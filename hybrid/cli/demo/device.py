"""One device of the demo, a process of its own: reads lines of text from a photo and tells how each answer came about.

It takes its `Assignment` as JSON in its first argument and a token from `HYBRID_TOKEN`, and writes one JSON object a
line on stdout. It warms up, says `ready`, works from the word `go` on its stdin until `stop` or the end of its stdin,
and says `done`.
"""

import sys
import threading
import time
from itertools import count
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import onnxruntime
from PIL import Image

from devices import pace
from hybrid.cli.demo import reading
from hybrid.cli.demo.messages import Answered, Assignment, Done, Failed, Ready, Stage
from hybrid.errors import HybridError
from hybrid.schedule.options import Options
from hybrid.session.inference import InferenceSession

_WARM_UP_S: Final = 25.0
_N_WARM_UP: Final = 2
_PAUSE_AFTER_FAILURE_S: Final = 0.1


class Device:
    """The two models, opened as the policy wants them, and the photo."""

    def __init__(self, assignment: Assignment) -> None:
        self._detector = _open(assignment, Path(assignment.detector))
        self._recogniser = _open(assignment, Path(assignment.recogniser))
        self._characters = Path(assignment.characters).read_text(encoding="utf-8")
        with Image.open(assignment.photo) as photo:
            self._photo = photo.convert("RGB")

    def answer(self, number: int, started_s: float) -> Answered:
        """Finds the lines of the page and reads one of them, the next at every number.

        Args:
            number: of the question.
            started_s: when it was first asked.

        Raises:
            HybridError: cloud-only, and there was no answer in time.
        """
        stages: list[Stage] = []
        [chances] = self._run(self._detector, reading.detector_input(self._photo), stages)
        boxes = reading.find_lines(chances)
        if not boxes:
            return Answered(started_s=started_s, ended_s=time.monotonic(), line=-1, n_lines=0, text="", stages=stages)
        index = number % len(boxes)
        best, sure = self._run(self._recogniser, reading.line_input(self._photo, boxes[index]), stages)
        line = reading.read_line(best, sure, self._characters)
        return Answered(
            started_s=started_s,
            ended_s=time.monotonic(),
            line=index,
            n_lines=len(boxes),
            text=line.text,
            stages=stages,
        )

    @property
    def uses_the_gateway(self) -> bool:
        """Whether the planner would now send both models' work away, as it should over a good link."""
        return all(
            any(candidate.placement != "local" and candidate.chosen for candidate in one.explain())
            for one in (self._detector, self._recogniser)
        )

    def close(self) -> None:
        """Closes both sessions."""
        self._detector.close()
        self._recogniser.close()

    def _run(self, session: InferenceSession, array: np.ndarray, stages: list[Stage]) -> list[np.ndarray]:
        outputs: list[np.ndarray] = session.run(None, {"x": array})
        report = session.report
        if report is not None:
            stages.append(
                Stage(
                    placement=report.placement,
                    cut=report.cut,
                    codec=report.codec,
                    bytes_up=report.bytes_up,
                    bytes_down=report.bytes_down,
                    total_s=report.total_s,
                    fallback=report.fallback,
                )
            )
        return outputs


def _open(assignment: Assignment, model: Path) -> InferenceSession:
    engine = onnxruntime.SessionOptions()
    engine.intra_op_num_threads = 1  # pacing counts the calling thread's time, so the engine must compute in it
    gateway = assignment.gateway or None
    if assignment.policy == "cloud":
        options = Options(placement="offload", fallback=False, deadline_s=assignment.timeout_s)
    else:
        options = Options()
    return InferenceSession(str(model), engine, gateway=gateway, options=options)


def _warm_up(device: Device, policy: str) -> None:
    """Answers until the policy can do what it is for, or the time for that is over."""
    until_s = time.monotonic() + _WARM_UP_S
    n_answers = 0
    while time.monotonic() < until_s:
        try:
            device.answer(n_answers, time.monotonic())
            n_answers += 1
        except HybridError:
            time.sleep(_PAUSE_AFTER_FAILURE_S)
        if n_answers >= _N_WARM_UP and (policy != "hybrid" or device.uses_the_gateway):
            return


def _say(message: Ready | Answered | Failed | Done) -> None:
    sys.stdout.write(msgspec.json.encode(message).decode() + "\n")
    sys.stdout.flush()


def _asked(device: Device, number: int, patience_s: float) -> Answered:
    """One answer; a failed question is asked again until the patience is over, as a plain client would.

    Raises:
        HybridError: what the last try ended with.
    """
    started_s = time.monotonic()
    while True:
        try:
            return device.answer(number, started_s)
        except HybridError:
            if time.monotonic() - started_s >= patience_s:
                raise
            time.sleep(_PAUSE_AFTER_FAILURE_S)


def _work(device: Device, patience_s: float, stopped: threading.Event) -> None:
    n_started = n_answered = 0
    for number in count():
        if stopped.is_set():
            break
        n_started += 1
        started_s = time.monotonic()
        try:
            _say(_asked(device, number, patience_s))
            n_answered += 1
        except HybridError as error:
            _say(Failed(started_s=started_s, ended_s=time.monotonic(), code=error.code, message=str(error)))
    _say(Done(n_started=n_started, n_answered=n_answered))


def _await_stop(stopped: threading.Event) -> None:
    sys.stdin.readline()
    stopped.set()


def main() -> None:
    """The device's whole life."""
    assignment = msgspec.json.decode(sys.argv[1], type=Assignment)
    pace.set_factor(assignment.pace)
    device = Device(assignment)
    _warm_up(device, assignment.policy)
    _say(Ready())
    stopped = threading.Event()
    if sys.stdin.readline().strip() == "go":
        threading.Thread(target=_await_stop, args=(stopped,), daemon=True).start()
        _work(device, assignment.timeout_s if assignment.policy == "cloud" else 0.0, stopped)
    device.close()


if __name__ == "__main__":
    main()
