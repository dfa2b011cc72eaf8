"""Codecs in sessions: heads that quantize, and gateways that know fewer codecs than the device."""

import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

import hybrid
from compression.codecs import catalog
from hybrid.errors import PlacementUnavailable
from hybrid.route.allowance import LOSSLESS
from hybrid.route.levels import n_levels_of, run_head, wanted_levels
from hybrid.route.way import Head
from hybrid.scouting.exact_codecs import exact_codecs
from hybrid.scouting.offer import FIRST_CODECS, Offer
from hybrid.scouting.opening import lacks_levels
from hybrid.serving.split.tail_shelf import PreparedReply
from hybrid.wire.tensor import Tensor
from tests import live_gateway, zoo
from tests.halves import prepare_here, run_model
from tests.live_gateway import LiveGateway

OLDER = """#!{python}
import sys
from compression.codecs import catalog
for name in [name for name in catalog.CODECS if name not in {known!r}]:
    del catalog.CODECS[name]
from hybrid.cli.main import main
sys.exit(main())
"""


def forced(gateway: LiveGateway, name: str, placement: str, codec: str) -> hybrid.InferenceSession:
    options = hybrid.Options(placement=placement, codec=codec, fallback=False, deadline_s=60.0)
    return hybrid.InferenceSession(str(zoo.path(name)), gateway=gateway.url, token=gateway.token, options=options)


@pytest.mark.parametrize("codec", ["q8", "q8z", "q4z"])
def test_levels_at_a_cut(gateway: LiveGateway, codec: str) -> None:
    feeds = zoo.feeds("ppocr_cls")
    wanted = list(run_model(zoo.path("ppocr_cls"), feeds).values())
    with forced(gateway, "ppocr_cls", "split", codec) as session:
        for _ in range(3):
            outputs = session.run(None, feeds)
        report = session.report
        assert report is not None
        assert (report.placement, report.codec) == ("split", codec)
        (raw,) = {c.bytes_up for c in session.explain() if c.chosen}
        assert report.bytes_up == raw
    assert np.abs(outputs[0] - wanted[0]).max() < (0.2 if codec == "q4z" else 0.05)


def open_head(folder: Path, n_levels: int) -> tuple[Head, dict[str, np.ndarray], dict[str, np.ndarray]]:
    import onnxruntime

    feeds = zoo.feeds("ppocr_cls")
    prepared = prepare_here(zoo.path("ppocr_cls"), feeds, folder)
    cut = next(cut for cut in prepared.table.interior if cut.id in prepared.table.pareto)
    session = onnxruntime.InferenceSession(str(prepared.quantizing_head_path(cut.id, n_levels)))
    crossing = tuple(spec.name for spec in cut.tensors)
    head = Head(
        run=session.run, inputs=tuple(feeds), crossing=crossing, computed=(*crossing, *cut.head_outputs),
        n_levels=n_levels, levels=prepared.level_names(cut.id),
    )  # fmt: skip
    return head, feeds, run_model(prepared.head_path(cut.id), feeds)


@pytest.mark.parametrize("codec", ["q8", "q8z", "q4", "q4z"])
def test_the_message_is_the_same_whoever_quantizes(codec: str, tmp_path: Path) -> None:
    head, feeds, plain = open_head(tmp_path, n_levels_of(codec))
    crossing, kept = run_head(head, feeds, codec, wanted=())
    assert kept == {}
    for name in head.crossing:
        levels = crossing[name]
        assert not isinstance(levels, np.ndarray)
        assert Tensor.of_levels(name, levels, codec) == Tensor.of(name, plain[name], codec)


def test_the_device_may_ask_for_the_floats_too(tmp_path: Path) -> None:
    head, feeds, plain = open_head(tmp_path, 256)
    crossing, kept = run_head(head, feeds, "q8z", wanted=head.crossing)
    for name in head.crossing:
        assert not isinstance(crossing[name], np.ndarray)
        np.testing.assert_array_equal(kept[name], plain[name])


@pytest.mark.parametrize("codec", ["none", "lossless", "fp16", "q4"])
def test_another_codec_takes_the_floats_of_the_same_head(codec: str, tmp_path: Path) -> None:
    head, feeds, plain = open_head(tmp_path, 256)
    crossing, _ = run_head(head, feeds, codec, wanted=())
    for name in head.crossing:
        np.testing.assert_array_equal(crossing[name], plain[name])


def test_which_head_a_crossing_wants() -> None:
    assert wanted_levels(["none", "lossless", "jpeg"]) == 0
    assert wanted_levels(["none", "q8", "q8z", "fp16"]) == 256
    assert wanted_levels(["q8z", "q4z"]) == 16
    assert lacks_levels(None, ["none"])


def test_a_gateway_says_what_it_decodes() -> None:
    offer = msgspec.json.decode(msgspec.json.encode(PreparedReply(state="ready")), type=Offer)
    assert offer.codecs == catalog.decodable()
    older = msgspec.json.decode(b'{"state": "ready", "cuts": [], "whole_s": 0.1, "note": null}', type=Offer)
    assert older.codecs == FIRST_CODECS
    assert set(FIRST_CODECS) < set(catalog.CODECS)


@pytest.fixture
def older_gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveGateway]:
    """A gateway that decodes the first four codecs."""
    script = tmp_path / "older"
    script.write_text(OLDER.format(python=sys.executable, known=FIRST_CODECS))
    script.chmod(0o755)
    monkeypatch.setattr(live_gateway, "HYBRID", script)
    with LiveGateway(tmp_path / "data", "--no-announce") as running:
        running.push(zoo.path("ppocr_cls"), "cls")
        yield running


def test_an_older_gateway_is_sent_what_it_knows(older_gateway: LiveGateway) -> None:
    feeds = zoo.feeds("ppocr_cls")
    with forced(older_gateway, "ppocr_cls", "split", "fp16") as session:
        session.run(None, feeds)
        assert session.report is not None
        assert session.report.codec == "fp16"
    with (
        forced(older_gateway, "ppocr_cls", "split", "q8") as session,
        pytest.raises(PlacementUnavailable, match="decodes the codec 'q8'"),
    ):
        session.run(None, feeds)
    assert "unknown_codec" not in older_gateway.log


def test_pictures_have_one_more_lossless_codec() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (1, 3, 40, 40)).astype(np.float32) / 255
    noise = np.random.default_rng(0).standard_normal((1, 3, 40, 40)).astype(np.float32)
    assert exact_codecs({"x": photo, "scale": np.ones(3)}) == ("none", "lossless", "lossless-webp")
    for fed in ({"x": noise}, {"ids": np.arange(9)}, {"text": np.array([b"a"], object)}, {}):
        assert exact_codecs(fed) == ("none", "lossless")
    assert set(exact_codecs({"x": photo})) <= set(LOSSLESS)


@pytest.mark.parametrize(("codec", "least_ratio"), [("lossless-webp", 9), ("webp", 25), ("webp75", 40)])
def test_pictures_when_forced(gateway: LiveGateway, codec: str, least_ratio: float) -> None:
    picture = Image.open(zoo.photo("text.png")).convert("RGB").resize((320, 160))
    pixels = np.asarray(picture, np.float32) / 127.5 - 1
    feeds = {"x": np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])}
    wanted = list(run_model(zoo.path("ppocr_det"), feeds).values())
    with forced(gateway, "ppocr_det", "offload", codec) as session:
        outputs = session.run(None, feeds)
        assert session.report is not None
        assert session.report.codec == codec
        assert session.report.bytes_up < feeds["x"].nbytes / least_ratio
    limit = 1e-4 if codec in LOSSLESS else 0.03
    assert np.abs(outputs[0] - wanted[0]).mean() < limit
