"""Boxes whose variants are for other engines learn one head: the campaign is of either."""

from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np

from cloud_gateway.rounds.offers import Asked
from hybrid.artifact.manifest import same_head
from hybrid.federated.learning.head import open_head
from hybrid.federated.messages import Condition, Offer
from tests.federated.lite_making import kept_artifact
from tests.learning.lab import Box, Desk, again, at_work
from tests.outbox.lab import until


async def test_a_box_on_litert_learns_for_a_campaign_of_the_onnx_variant(tmp_path: Path) -> None:
    artifact = kept_artifact()
    twin = open_head(artifact.folder, artifact.manifest, "onnx")
    desk = Desk(twin, artifact.digest, variant="onnx")
    box = Box(tmp_path / "box", artifact, desk)
    async with at_work(box.outbox, box.samples):
        await box.fill(40)
        async with at_work(box.learning):
            await until(lambda: desk.step == 3 and box.learning.store.waiting is None)
    offer = next(call.offers[0] for call in desk.asked if call.offers)
    assert (offer.variant, offer.same_head) == ("original", ("onnx",))
    note = box.learning.store.notes["c4mp"]
    assert note.n_accepted == 3
    assert note.loss_after < note.loss_before
    assert np.abs(desk.steps[-1] - twin.vector).max() > 0.01


def test_a_gateway_takes_it_for_one_that_holds_the_model() -> None:
    offer = Offer(model="net", artifact_digest="ab", variant="original", n_samples=9, same_head=("onnx",))

    def holds(asked_of: str, offer: Offer = offer) -> int | None:
        course = SimpleNamespace(
            id="c",
            learned=set(),
            order=SimpleNamespace(model="net", variant=asked_of),
            row=SimpleNamespace(base_digest="ab"),
        )
        return Asked(offers={"net": again(offer)}, condition=Condition(), held={}).holds(course)

    assert (holds("original"), holds("onnx"), holds("small")) == (0, 0, None)
    older = msgspec.msgpack.encode(["net", "ab", "original", 9])
    assert holds("onnx", msgspec.msgpack.decode(older, type=Offer)) is None, "an older agent says nothing of it"


def test_other_bytes_are_another_head() -> None:
    manifest = kept_artifact().manifest
    assert same_head(manifest, manifest.variants[0]) == ("onnx",)
    files = manifest.files | {"onnx/head.bin": manifest.files["body.tflite"]}
    other = msgspec.structs.replace(manifest, files=files)
    assert same_head(other, manifest.variants[0]) == ()
    frozen = msgspec.structs.replace(manifest.variants[0], trainable_files=())
    assert same_head(manifest, frozen) == ()
