"""A trained ImageNet convnet, built from its published weights: it sees what is there, and is cut like any other."""

import numpy as np
import pytest
from PIL import Image

from tests import zoo
from tests.halves import distance, prepare_here, run_model, run_split
from tests.partition.test_split_equals_whole import N_CUTS, TOLERANCE, spread


def photo(name: str) -> dict[str, np.ndarray]:
    """The middle square of a photograph, as the net wants it."""
    with Image.open(zoo.photo(name)) as opened:
        picture = opened.convert("RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    pixels = (np.asarray(square, np.float32) - 127.5) / 127.5
    return {"image": np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])}


def test_head_then_tail_equals_efficientnet(tmp_path):
    feeds = photo("coffee.png")
    whole = run_model(zoo.efficientnet(), feeds)
    prepared = prepare_here(zoo.efficientnet(), feeds, tmp_path)
    assert len(prepared.table.pareto) >= 5  # a convnet that is worth cutting
    cuts = spread(prepared.table.interior, N_CUTS)
    assert len(cuts) >= N_CUTS
    for cut in cuts:
        assert distance(run_split(prepared, cut, feeds), whole) <= TOLERANCE, cut


@pytest.mark.parametrize(
    ("name", "classes"),
    [("coffee.png", {504, 967}), ("chelsea.png", {281, 282, 285}), ("motorcycle_left.png", {665, 670})],
)
def test_it_sees_what_is_on_the_photo(name, classes):
    """Mug or espresso; a tabby, tiger or Egyptian cat; a moped or motor scooter."""
    logits = run_model(zoo.efficientnet(), photo(name))["logits"][0]
    assert int(logits.argmax()) in classes


def test_a_file_of_another_format_is_refused(tmp_path):
    from tests.efficientnet_lite0 import read_weights

    path = tmp_path / "weights.pth"
    path.write_bytes(b"\x80\x02K\x01.")
    with pytest.raises(ValueError, match="old format"):
        read_weights(path)
