"""Label smoothing: its gradient, losses that are told without it, and plans of releases that have none."""

import msgspec
import numpy as np
import pytest

from hybrid.errors import BadMessage
from hybrid.federated.campaign import Training
from hybrid.federated.learning.examples import Examples
from hybrid.federated.learning.head import read_head
from hybrid.federated.learning.losses import loss_of
from hybrid.federated.learning.training import Start, train
from tests.federated.learning_making import digits, reference_model


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_a_smoothed_loss_has_the_gradient_of_its_differences(smoothing: float) -> None:
    scores, classes = np.random.default_rng(4).normal(size=(5, 7)), np.array([0, 6, 3, 3, 1])
    loss_at = loss_of("cross-entropy", classes, n=5, smoothing=smoothing)
    found = loss_at(scores)[1]
    for at in np.ndindex(scores.shape):
        moved = [scores.copy(), scores.copy()]
        moved[0][at] += 1e-5
        moved[1][at] -= 1e-5
        expected = (loss_at(moved[0])[0] - loss_at(moved[1])[0]) / 2e-5
        assert found[at] == pytest.approx(expected, rel=1e-5, abs=1e-8)
    kept, log = (1 - smoothing) * np.eye(7)[classes] + smoothing / 7, scores - np.log(np.exp(scores).sum(1))[:, None]
    assert loss_at(scores)[0] == pytest.approx(-(kept * log).sum() / 5, rel=1e-6)


def test_smoothing_is_of_labels_and_losses_are_told_without_it(tmp_path) -> None:
    path = reference_model(tmp_path)
    head = read_head(path, "image", {"head.bin": path.with_name("head.bin").stat().st_size})
    x, y = digits()[0][3]
    start = Start(shared=head.vector, seed=1)
    plain, smooth = (
        train(head.program, head.layout, Examples(x, y), Training(epochs=30, label_smoothing=part), start=start)
        for part in (0.0, 0.3)
    )
    assert plain.loss_before == smooth.loss_before
    assert smooth.loss_after > 2 * plain.loss_after, "what is smoothed is never sure"
    values = np.eye(10, dtype=np.float32)[y]
    one, other = (
        train(head.program, head.layout, Examples(x, values), Training(label_smoothing=part), start=start)
        for part in (0.0, 0.3)
    )
    assert np.array_equal(one.delta, other.delta), "values have no classes to spread over"
    with pytest.raises(BadMessage, match="label smoothing 1"):
        train(head.program, head.layout, Examples(x, y), Training(label_smoothing=1.0), start=start)


def test_a_plan_of_an_older_gateway_smooths_nothing_and_an_older_box_passes_over_it() -> None:
    class Older(msgspec.Struct, frozen=True, kw_only=True):
        epochs: int = 5
        personal: tuple[str, ...] = ()

    assert msgspec.msgpack.decode(msgspec.msgpack.encode(Older(epochs=7)), type=Training) == Training(epochs=7)
    told = msgspec.msgpack.encode(Training(epochs=7, label_smoothing=0.1))
    assert msgspec.msgpack.decode(told, type=Older) == Older(epochs=7)
