"""A box with a cascade: the small model where it is sure, the session over the large one elsewhere."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edge_agent.models.cascading import EscalatingSession
from hybrid.artifact.manifest import CascadeRule
from hybrid.cascade.build import write_artifact
from hybrid.schedule.options import Options
from hybrid.serving.computing import Asked
from hybrid.session.connected import Neighbourhood
from hybrid.session.report import RunReport
from tests.cascade.made import classifier, points
from tests.edge_agent.model_room import ask, model_room, served, version
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
            hard: list[float] = []
            room.compute.on_hard = lambda _model, inputs, outputs, hard=hard: hard.append(
                (inputs["x"][0, 0], outputs["scores"][0, 0])
            )
            for index, row in enumerate(x):
                computed = await ask(room, "m", {"x": row[None]})
                side = 0 if sure[index] and cascade == "auto" else 1
                assert np.allclose(computed.outputs[0][0], wanted[side][index], atol=1e-5)
            assert room.compute.runs(version(tmp_path / "artifact" / "l.onnx").model_digest).n_good == len(x)
            unsure = [] if cascade == "off" else np.flatnonzero(~sure)
            assert [given for given, _ in hard] == [x[at, 0] for at in unsure]
            assert np.allclose([answer for _, answer in hard], [wanted[1][at][0] for at in unsure], atol=1e-5)


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
            hard: list[float] = []
            room.compute.on_hard = lambda _model, inputs, _outputs: hard.append(inputs["x"][0, 0])
            for index, row in enumerate(x):
                computed = await ask(room, "m", {"x": row[None]})
                assert np.allclose(computed.outputs[0][0], wanted[0 if sure[index] else 1][index], atol=1e-5)
                assert computed.place.placement == ("local" if sure[index] else "offload")
                assert (computed.place.model_digest == opened.model_digest) is bool(sure[index])
            assert hard == [x[at, 0] for at in np.flatnonzero(~sure)]
            gateway.kill()
            for index, row in enumerate(x[:8]):
                computed = await ask(room, "m", {"x": row[None]})
                assert np.allclose(computed.outputs[0][0], wanted[0][index], atol=1e-5)
            assert len(hard) == (~sure).sum() + (~sure[:8]).sum(), "hard ones that nobody else answered too"


async def test_a_request_at_fault_does_not_end_the_cascade(tmp_path: Path) -> None:
    small, large = classifier(tmp_path / "s.onnx", used=4, batch=1), classifier(tmp_path / "l.onnx", used=12)
    rule = CascadeRule(
        small="small", output="scores", kind="logits", temperature=1.0, threshold=0.01, max_accuracy_drop=0.01
    )
    write_artifact(small, large, rule, name="points", version="1", folder=tmp_path / "artifact")
    x, _ = points(3, 1)
    answers = [onnxruntime.InferenceSession(path) for path in (small, large)]
    async with model_room(tmp_path / "box") as room:
        room.compute.neighbourhood = lambda: Neighbourhood(("http://127.0.0.1:9",), None)  # nobody is there
        await room.host.answer(version(tmp_path / "artifact" / "l.onnx"))
        for rows, side in ((x[:1], 0), (x, 1), (x[:1], 0)):
            computed = await ask(room, "m", {"x": rows})
            assert np.allclose(computed.outputs[0], answers[side].run(None, {"x": rows})[0], atol=1e-5)


async def test_a_session_is_not_kept_for_gateways_that_left_while_it_was_made(tmp_path: Path) -> None:
    model = classifier(tmp_path / "l.onnx", used=12)
    x, _ = points(1, 1)
    async with model_room(tmp_path / "box") as room:
        urls = iter(["http://127.0.0.1:9", "http://127.0.0.1:10"])
        known = [Neighbourhood((next(urls),), None)]
        room.compute.neighbourhood = lambda: known[0]
        opened = version(model)
        await room.host.answer(opened)
        first = asyncio.create_task(ask(room, "m", {"x": x}))
        await asyncio.sleep(0)
        known[0] = Neighbourhood((next(urls),), None)
        await asyncio.gather(first, ask(room, "m", {"x": x}))
        await ask(room, "m", {"x": x})
        kept = room.compute.sessions[opened.model_digest]
        clients = kept._hosted._connection._gateways.clients
        assert [client.url for client in clients] == ["http://127.0.0.1:10"]


async def test_a_session_is_not_kept_for_a_model_that_left_while_it_was_made(tmp_path: Path) -> None:
    before, after = (version(classifier(tmp_path / f"{used}.onnx", used=used), number=str(used)) for used in (4, 12))
    x, _ = points(1, 1)
    async with model_room(tmp_path / "box") as room:
        room.compute.neighbourhood = lambda: Neighbourhood(("http://127.0.0.1:9",), None)
        await room.host.answer(before)
        made = room.compute._made

        async def made_meanwhile(*arguments: object) -> object:
            hosted = await made(*arguments)
            room.compute._made = made
            await room.host.answer(after)
            return hosted

        room.compute._made = made_meanwhile
        await ask(room, "m", {"x": x})
        await ask(room, "m", {"x": x})
        assert list(room.compute.sessions) == [after.model_digest]


async def test_a_model_is_not_asked_by_the_cascade_of_the_version_that_took_its_name(tmp_path: Path) -> None:
    small, large = classifier(tmp_path / "s.onnx", used=4), classifier(tmp_path / "l.onnx", used=12)
    rule = CascadeRule(
        small="small", output="scores", kind="logits", temperature=1.0, threshold=THRESHOLD, max_accuracy_drop=0.01
    )
    artifact = write_artifact(small, large, rule, name="points", version="2", folder=tmp_path / "artifact")
    variant = next(found for found in artifact.manifest.variants if found.id == "small")
    plain = classifier(tmp_path / "plain.onnx", used=8)
    x, _ = points(1, 1)
    async with model_room(tmp_path / "box") as room:
        room.compute.neighbourhood = lambda: Neighbourhood(("http://127.0.0.1:9",), None)
        await room.host.answer(version(plain, name="other"))  # the same model under another name stays in memory
        model = served(version(plain))
        session = await room.executor.open_whole(model)
        path = artifact.path_of(variant.files[0])
        await room.host.answer(version(path, number="2", folder=artifact.folder, variant="small"))
        await room.compute(model, session, {"x": x}, session.output_names, Asked())
        assert not isinstance(room.compute.sessions[model.model_digest], EscalatingSession)


class _Runs:
    """In place of the cascade's own runs."""

    given_s: float | None = None

    def runs(self, *_given: object) -> "_Runs":
        return self

    def run(self, _names: object, _feeds: object, deadline_s: float | None) -> tuple[list[np.ndarray], RunReport]:
        self.given_s = deadline_s
        return [], RunReport()


async def test_the_small_answer_is_in_time() -> None:
    runs = _Runs()
    session = EscalatingSession(runs, None, Options(), Neighbourhood((), None))  # type: ignore[arg-type]
    for deadline_s, given_s in ((None, None), (10.0, 9.95), (0.08, 0.07)):
        await session.answer([], {}, None, deadline_s)  # type: ignore[arg-type]
        assert runs.given_s == (None if given_s is None else pytest.approx(given_s))


async def test_a_slow_gateway_holds_no_thread_that_others_need() -> None:
    answers = threading.Event()

    class Slow(_Runs):
        def run(self, _names: object, _feeds: object, deadline_s: float | None) -> tuple[list[np.ndarray], RunReport]:
            assert answers.wait(30)
            return super().run(_names, _feeds, deadline_s)

    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    session = EscalatingSession(Slow(), None, Options(), Neighbourhood((), None))  # type: ignore[arg-type]
    waiting = [asyncio.create_task(session.answer([], {}, None, None)) for _ in range(4)]  # type: ignore[arg-type]
    await asyncio.sleep(0.05)
    assert await asyncio.wait_for(asyncio.to_thread(lambda: "a file"), 10) == "a file"
    answers.set()
    await asyncio.gather(*waiting)
    session._threads.shutdown(wait=False)
    assert (await session.answer([], {}, None, None)).outputs == [], "closed meanwhile, it still answers"  # type: ignore[arg-type]
