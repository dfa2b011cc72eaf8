"""How sure a row is: also one that holds several decisions, and one that is no number."""

import numpy as np
import pytest

from hybrid.artifact.manifest import CascadeRule
from hybrid.cascade.cascade import Cascade
from hybrid.cascade.confidence import confidences
from hybrid.cascade.together import Replied


def test_a_row_of_several_decisions_is_as_sure_as_the_least_sure() -> None:
    rng = np.random.default_rng(3)
    scores = rng.normal(0.0, 3.0, (5, 4, 7))
    each = np.stack([confidences(scores[:, at], "logits", 1.3) for at in range(4)], axis=1)
    assert confidences(scores, "logits", 1.3) == pytest.approx(each.min(axis=1))
    scores[2, 3, 0] = np.nan
    assert confidences(scores, "logits", 1.3)[2] == 0.0
    assert confidences(scores[:, 0], "logits", 1.0).shape == (5,)
    assert confidences(scores[0, 0], "logits", 1.0).shape == (1,)
    assert confidences(scores[:0], "logits", 1.0).shape == (0,)


def test_a_cascade_of_several_decisions_sends_the_rows_that_are_unsure() -> None:
    sure, unsure = [9.0, 0.0, 0.0], [0.1, 0.0, 0.0]
    scores = np.array([[sure, sure], [sure, unsure], [sure, sure], [unsure, sure]], np.float32)
    rule = CascadeRule(small="small", output="y", kind="logits", temperature=1.0, threshold=0.9, max_accuracy_drop=0.01)
    asked: list[np.ndarray] = []

    class Together:
        def ask(self, feeds: dict[str, np.ndarray], names: object, left_s: object, *, joins: bool) -> Replied:
            del names, left_s, joins
            asked.append(feeds["x"])
            return Replied(
                outputs={"y": np.full((len(feeds["x"]), 2, 3), 7.0, np.float32)}, gateway="g", bytes_up=1,
                bytes_down=1, network_s=0.0, queue_s=0.0, compute_s=0.0,
            )  # fmt: skip

    cascade = Cascade(rule, ["y"], lambda _names, _feeds: [scores], Together())  # type: ignore[arg-type]
    x = np.arange(4, dtype=np.float32)[:, None]
    weighed = cascade.run(None, {"x": x})
    assert (weighed.by, weighed.n_escalated) == ("both", 2)
    assert asked[0].ravel().tolist() == [1.0, 3.0]
    assert (weighed.outputs[0][[1, 3]] == 7.0).all()
    assert (weighed.outputs[0][[0, 2]] == scores[[0, 2]]).all()
