"""A box with a cascade: the small model where it is sure, the session over the large one elsewhere."""

import asyncio
from pathlib import Path

import numpy as np
import onnxruntime

from hybrid.artifact.manifest import CascadeRule
from hybrid.cascade.build import write_artifact
from hybrid.schedule.options import Options
from hybrid.session.connected import Neighbourhood
from tests.cascade.made import classifier, points
from tests.edge_agent.model_room import ask, model_room, version
from tests.live_gateway import LiveGateway

THRESHOLD = 0.9


async def test_each_request_is_answered_by_the_one_that_should(tmp_path: Path) -> None:
    small, large = classifier(tmp_path / "s.onnx", used=4), classifier(tmp_path / "l.onnx", used=12)
    rule = CascadeRule(
        small="small", output="scores", kind="logits", temperature=1.0, threshold=THRESHOLD, max_accuracy_drop=0.01
    )
    write_artifact(small, large, rule, name="points", version="1", folder=tmp_path / "artifact")
    plain = [onnxruntime.InferenceSession(path) for path in (small, large)]
    x, _ = points(40, 1)
    wanted = [session.run(None, {"x": x})[0] for session in plain]
    powers = np.exp(wanted[0] - wanted[0].max(axis=1, keepdims=True))
    sure = (powers / powers.sum(axis=1, keepdims=True)).max(axis=1) >= THRESHOLD
    assert 2 < sure.sum() < 38
    for cascade in ("auto", "off"):
        async with model_room(tmp_path / f"box-{cascade}", Options(cascade=cascade)) as room:
            room.compute.neighbourhood = lambda: Neighbourhood(("http://127.0.0.1:9",), None)  # nobody is there
            await room.host.answer(version(tmp_path / "artifact" / "l.onnx"))
            for index, row in enumerate(x):
                computed = await ask(room, "m", {"x": row[None]})
                side = 0 if sure[index] and cascade == "auto" else 1
                assert np.allclose(computed.outputs[0][0], wanted[side][index], atol=1e-5)
            assert room.compute.runs(version(tmp_path / "artifact" / "l.onnx").model_digest).n_good == len(x)


async def test_a_box_that_opened_the_small_one_escalates_what_it_is_unsure_of(tmp_path: Path) -> None:
    """As installed: the answering version is the small variant, the large one answers at a real gateway."""
    small, large = classifier(tmp_path / "s.onnx", used=4), classifier(tmp_path / "l.onnx", used=12)
    rule = CascadeRule(
        small="small", output="scores", kind="logits", temperature=1.0, threshold=THRESHOLD, max_accuracy_drop=0.01
    )
    artifact = write_artifact(small, large, rule, name="points", version="1", folder=tmp_path / "artifact")
    x, _ = points(30, 1)
    wanted = [onnxruntime.InferenceSession(path).run(None, {"x": x})[0] for path in (small, large)]
    powers = np.exp(wanted[0] - wanted[0].max(axis=1, keepdims=True))
    sure = (powers / powers.sum(axis=1, keepdims=True)).max(axis=1) >= THRESHOLD
    assert 2 < sure.sum() < 28
    variant = next(found for found in artifact.manifest.variants if found.id == "small")
    opened = version(artifact.path_of(variant.files[0]), folder=artifact.folder, variant="small")
    with LiveGateway(tmp_path / "gateway", "--no-auth") as gateway:
        await asyncio.to_thread(gateway.push, large, "points")
        async with model_room(tmp_path / "box") as room:
            room.compute.neighbourhood = lambda: Neighbourhood((gateway.url,), None)
            await room.host.answer(opened)
            await ask(room, "m", {"x": x[:1]})
            assert await asyncio.to_thread(room.compute.sessions[opened.model_digest].prepare, {}, 20.0)
            for index, row in enumerate(x):
                computed = await ask(room, "m", {"x": row[None]})
                assert np.allclose(computed.outputs[0][0], wanted[0 if sure[index] else 1][index], atol=1e-5)
                assert computed.place.placement == ("local" if sure[index] else "offload")
                assert (computed.place.model_digest == opened.model_digest) is bool(sure[index])
            gateway.kill()
            for index, row in enumerate(x[:8]):
                computed = await ask(room, "m", {"x": row[None]})
                assert np.allclose(computed.outputs[0][0], wanted[0][index], atol=1e-5)
