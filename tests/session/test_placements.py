"""Forced placements against a real gateway: the same outputs, and reports that say what happened."""

import asyncio

import numpy as np
import onnxruntime
import pytest

import hybrid
from hybrid.artifact.cache import cache_dir
from hybrid.artifact.digest import model_digest
from hybrid.errors import PlacementUnavailable
from hybrid.graph.shape_key import ShapeKey
from hybrid.partition.prepared import prepare
from tests import zoo
from tests.live_gateway import LiveGateway


def forced(gateway: LiveGateway, name: str, placement: str, **options: object) -> hybrid.InferenceSession:
    chosen = hybrid.Options(placement=placement, fallback=False, **options)  # type: ignore[arg-type]
    return hybrid.InferenceSession(zoo.path(name), gateway=gateway.url, token=gateway.token, options=chosen)


def whole(name: str, feeds: zoo.Feeds) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(zoo.path(name)).run(None, feeds)


def assert_same(found: list[np.ndarray], wanted: list[np.ndarray], tolerance: float = 1e-4) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert a.flags.writeable
        assert a.flags.c_contiguous
        if b.dtype.kind == "f":
            assert np.abs(a - b).max() <= tolerance * np.abs(b).max()
        else:
            assert np.array_equal(a, b)


@pytest.mark.parametrize("name", ["ppocr_det", "ppocr_rec", "ppocr_cls", "silero", "magika", "minilm"])
def test_offload_gives_the_same_outputs(gateway: LiveGateway, name: str) -> None:
    with forced(gateway, name, "offload") as session:
        for variant in range(zoo.n_variants(name)):
            feeds = zoo.feeds(name, seed=variant, variant=variant)
            assert_same(session.run(None, feeds), whole(name, feeds))
            report = session.report
            assert report is not None
            assert (report.placement, report.fallback, report.cut) == ("offload", None, "")
            assert report.gateway == gateway.url
            assert 0 < report.bytes_up <= sum(feed.nbytes for feed in feeds.values()) + 4096
            assert 0 < report.tail_s < report.total_s
            assert len(report.model_digest) == 64


@pytest.mark.parametrize("name", ["ppocr_det", "ppocr_rec", "ppocr_cls", "silero", "magika", "minilm"])
def test_split_gives_the_same_outputs(gateway: LiveGateway, name: str) -> None:
    feeds = zoo.feeds(name)
    with forced(gateway, name, "split") as session:
        outputs = session.run(None, feeds)
        assert_same(outputs, whole(name, feeds))
        report = session.report
        assert report is not None
        assert (report.placement, report.fallback) == ("split", None)
        assert report.head_s > 0
        assert report.tail_s > 0
        assert len(report.cut) == 16


def test_a_named_cut_is_taken(gateway: LiveGateway) -> None:
    feeds, path = zoo.feeds("ppocr_cls"), zoo.path("ppocr_cls")
    interior = prepare(path, model_digest(path), ShapeKey.of(feeds), cache_dir() / "graphs").table.interior
    wanted = whole("ppocr_cls", feeds)
    for cut in interior[:: len(interior) // 7]:
        with forced(gateway, "ppocr_cls", f"split:{cut.id}") as session:
            assert_same(session.run(None, feeds), wanted)
            assert session.report is not None
            assert session.report.cut == cut.id
            chosen = [candidate for candidate in session.explain() if candidate.chosen]
            assert [(c.cut, c.reason) for c in chosen] == [(cut.id, "forced by options.placement")]


def test_an_unknown_cut_is_refused(gateway: LiveGateway) -> None:
    with (
        forced(gateway, "ppocr_cls", "split:0123456789abcdef") as session,
        pytest.raises(PlacementUnavailable, match="0123456789abcdef"),
    ):
        session.run(None, zoo.feeds("ppocr_cls"))


@pytest.mark.parametrize(("codec", "tolerance"), [("none", 1e-4), ("lossless", 1e-4), ("fp16", 2e-2)])
def test_codecs_at_a_cut(gateway: LiveGateway, codec: str, tolerance: float) -> None:
    feeds = zoo.feeds("ppocr_cls")
    with forced(gateway, "ppocr_cls", "split", codec=codec) as session:
        assert_same(session.run(None, feeds), whole("ppocr_cls", feeds), tolerance)
        assert session.report is not None
        assert session.report.codec == codec


def test_jpeg_when_forced_is_small_and_close(gateway: LiveGateway) -> None:
    from PIL import Image

    picture = Image.open(zoo.photo("text.png")).convert("RGB").resize((320, 160))
    feeds = {"x": np.ascontiguousarray((np.asarray(picture, np.float32) / 127.5 - 1).transpose(2, 0, 1)[None])}
    with forced(gateway, "ppocr_det", "offload", codec="jpeg") as session:
        outputs = session.run(None, feeds)
        assert session.report is not None
        assert session.report.bytes_up < feeds["x"].nbytes / 20
    assert np.abs(outputs[0] - whole("ppocr_det", feeds)[0]).mean() < 0.02


def test_wanted_outputs_keep_their_order(gateway: LiveGateway) -> None:
    feeds = zoo.feeds("silero")
    names = [node.name for node in onnxruntime.InferenceSession(zoo.path("silero")).get_outputs()]
    with forced(gateway, "silero", "offload") as session:
        backwards = session.run(names[::-1], feeds)
        assert_same(backwards[::-1], whole("silero", feeds))
        (only,) = session.run(names[1:2], feeds)
        assert_same([only], whole("silero", feeds)[1:2])


def test_many_in_flight_on_asyncio(gateway: LiveGateway) -> None:
    many = [zoo.feeds("ppocr_cls", seed) for seed in range(16)]

    async def everything() -> None:
        with forced(gateway, "ppocr_cls", "split") as session:
            results = await asyncio.gather(*(session.run_awaitable(None, feeds) for feeds in many))
        for feeds, outputs in zip(many, results, strict=True):
            assert_same(outputs, whole("ppocr_cls", feeds))

    asyncio.run(everything())


def test_many_threads(gateway: LiveGateway) -> None:
    from concurrent.futures import ThreadPoolExecutor

    many = [zoo.feeds("ppocr_cls", seed) for seed in range(24)]
    with forced(gateway, "ppocr_cls", "offload") as session, ThreadPoolExecutor(6) as pool:
        for feeds, outputs in zip(many, pool.map(lambda feeds: session.run(None, feeds), many), strict=True):
            assert_same(outputs, whole("ppocr_cls", feeds))


def test_cancelling_leaves_the_session_usable(gateway: LiveGateway) -> None:
    feeds = {"x": np.zeros((1, 3, 960, 960), np.float32)}

    async def cancel_then_run() -> list[np.ndarray]:
        with forced(gateway, "ppocr_det", "offload") as session:
            await session.run_awaitable(None, zoo.feeds("ppocr_det"))
            task = asyncio.ensure_future(session.run_awaitable(None, feeds))
            done, _ = await asyncio.wait([task], timeout=0.05)
            assert not done
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return await session.run_awaitable(None, zoo.feeds("ppocr_det"))

    assert_same(asyncio.run(cancel_then_run()), whole("ppocr_det", zoo.feeds("ppocr_det")))


def test_raw_input_stays_here_when_it_must(gateway: LiveGateway) -> None:
    options = hybrid.Options(raw_input_may_leave=False)
    with hybrid.InferenceSession(
        zoo.path("ppocr_cls"), gateway=gateway.url, token=gateway.token, options=options
    ) as session:
        assert session.prepare(zoo.feeds("ppocr_cls"))
        session.run(None, zoo.feeds("ppocr_cls"))
        reasons = {c.placement: c.reason for c in session.explain() if not c.cut}
        assert "raw input may not leave" in reasons["offload"]
