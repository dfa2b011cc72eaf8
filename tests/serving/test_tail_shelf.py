"""Preparations are bounded: in number, in size and in where they run."""

import asyncio
import threading
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from hybrid.artifact.digest import model_digest
from hybrid.errors import DeadlinePassed, Overloaded, PlanError, TooLarge
from hybrid.serving.engines.served_model import ServedModel
from hybrid.serving.split import tail_shelf
from hybrid.wire.message import InferRequest
from hybrid.wire.tensor import Tensor
from tests import small_models
from tests.serving.test_split_service import Side, gateway, ready, side

__all__ = ["side"]
pytestmark = pytest.mark.timeout(60)


def key(n: int) -> str:
    return f'{{"x":[{n},3,224,224]}}'


async def test_many_shapes_of_a_model_start_one_preparation_at_a_time(
    side: Side, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Semaphore(0), threading.Event()
    n_running, most = 0, 0

    def prepare(*_: Any) -> NoReturn:
        nonlocal n_running, most
        n_running += 1
        most = max(most, n_running)
        begun.release()
        go_on.wait(20)
        n_running -= 1
        raise PlanError("not this one")

    monkeypatch.setattr(tail_shelf, "prepare", prepare)
    digest = side.model.model_digest
    async with gateway(side, tmp_path) as running, asyncio.timeout(30):
        n_refused = 0
        for n in range(1, 13):
            try:
                assert (await running.split.prepare(digest, key(n))).state == "preparing"
            except Overloaded as exc:
                n_refused += 1
                assert exc.fields["retry_after_s"] == 5
        assert n_refused == 4
        go_on.set()
        for _ in range(8):
            await asyncio.to_thread(begun.acquire, timeout=10)
        while True:  # there is room again when one has ended
            try:
                assert (await running.split.prepare(digest, key(12))).state == "preparing"
                break
            except Overloaded:
                await asyncio.sleep(0.01)
    assert most == 1


@pytest.mark.parametrize("sizes", [[12_000_000, 16], [2**40] * 60])
async def test_a_size_beyond_a_message_is_refused_before_anything_is_computed(
    side: Side, tmp_path: Path, sizes: list[int]
) -> None:
    digest, text = side.model.model_digest, f'{{"x":{sizes}}}'
    request = InferRequest(
        inputs=(Tensor.of("x", np.zeros(1, np.float32)),), model_digest=digest, shape_key=text, cut="0" * 16
    )
    async with gateway(side, tmp_path) as running:
        with pytest.raises(TooLarge):
            await running.split.prepare(digest, text)
        with pytest.raises(TooLarge):
            await running.split.infer(request)


async def test_synthetic_inputs_are_made_off_the_loop(
    side: Side, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_in: set[threading.Thread] = set()
    original = tail_shelf.synthetic_feeds

    def synthetic_feeds(*args: Any) -> dict[str, np.ndarray]:
        made_in.add(threading.current_thread())
        return original(*args)

    monkeypatch.setattr(tail_shelf, "synthetic_feeds", synthetic_feeds)
    async with gateway(side, tmp_path) as running:
        await ready(running.split, side)
    assert made_in
    assert threading.current_thread() not in made_in


async def test_the_deadline_holds_while_a_model_is_opened_by_name(
    side: Side, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_models.mlp(tmp_path / "other.onnx")
    other = ServedModel(name="other", version="1", model_digest=model_digest(path), path=path)
    go_on = threading.Event()

    def find(name: str, version: str) -> ServedModel:
        go_on.wait(10)
        return other

    request = InferRequest(inputs=(Tensor.of("x", np.zeros((1, 64), np.float32)),), model_name="other", deadline_s=0.2)
    async with gateway(side, tmp_path / "cache") as running:
        monkeypatch.setattr(running.source, "find", find)
        try:
            async with asyncio.timeout(5):
                with pytest.raises(DeadlinePassed):
                    await running.split.infer(request)
        finally:
            go_on.set()
