"""What a simulated fleet is made of: the clock, the split of samples, machines and links, attacks."""

import asyncio
from random import Random

import numpy as np
import pytest

from cloud_gateway.rounds.evaluation import features_of
from cloud_gateway.rounds.simulation.attack import attacked, attacked_levels
from cloud_gateway.rounds.simulation.model import OneModel, head_of, input_of, opened, perceptron
from cloud_gateway.rounds.simulation.samples import divided, held_out, made_up
from cloud_gateway.rounds.simulation.settings import Fleet, Link, attackers, machines
from cloud_gateway.rounds.simulation.virtual_loop import VirtualLoop
from devices.catalog.load import link_class
from devices.errors import CatalogUnknown
from hybrid.errors import BadMessage, NotFound, TensorMismatch
from hybrid.federated.campaign import Training
from hybrid.federated.coding.catalog import form
from hybrid.federated.layout import Layout
from hybrid.federated.learning.body import Body


def test_an_hour_passes_at_once_and_in_order():
    loop, seen = VirtualLoop(), []

    async def at(s):
        await asyncio.sleep(s)
        seen.append((asyncio.get_running_loop().time(), await asyncio.to_thread(lambda: s)))

    async def program():
        await asyncio.gather(at(3600.0), at(1.0), at(60.0))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5.0):
                await asyncio.Event().wait()

    loop.run_until_complete(program())
    loop.close()
    assert [s for _, s in seen] == [1.0, 60.0, 3600.0]
    assert [round(now_s, 3) for now_s, _ in seen] == [1.0, 60.0, 3600.0]
    assert loop.now_s == pytest.approx(3605.0)


def test_a_simulation_that_waits_for_nothing_ends_with_an_error():
    loop = VirtualLoop()
    with pytest.raises(RuntimeError, match="nothing is left"):
        loop.run_until_complete(asyncio.wait_for(asyncio.Event().wait(), None))
    for task in asyncio.all_tasks(loop):
        task.cancel()
        loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.close()


@pytest.mark.parametrize("split", ["dirichlet", "shards", "even"])
def test_every_sample_goes_to_one_box_and_every_box_has_one(split):
    labels = made_up(600, 0).labels
    held = divided(labels, 40, split, alpha=0.5, n_shards=2, seed=3)
    assert len(held) == 40
    assert min(map(len, held)) >= 1
    dealt = np.concatenate(held)
    assert set(dealt) == set(range(600))
    again = divided(labels, 40, split, alpha=0.5, n_shards=2, seed=3)
    assert all(np.array_equal(one, other) for one, other in zip(held, again, strict=True))


def test_splits_are_as_unlike_as_they_are_called():
    labels = made_up(4000, 0).labels

    def n_classes(split, alpha=0.5):
        held = divided(labels, 20, split, alpha=alpha, n_shards=2, seed=1)
        return np.mean([len(np.unique(labels[indices])) for indices in held])

    assert n_classes("even") == 10
    assert n_classes("shards") <= 4
    assert n_classes("dirichlet", 0.1) < n_classes("dirichlet", 10.0)
    with pytest.raises(BadMessage, match="at least one a box"):
        divided(labels[:5], 20, "even", alpha=1.0, n_shards=2, seed=1)


def test_what_measures_is_never_learned_from():
    learned, test = held_out(1000, 0)
    assert (len(learned), len(test)) == (800, 200)
    assert not set(learned) & set(test)
    assert len(held_out(100_000, 0)[1]) == 2000


def test_a_slower_machine_trains_longer_and_a_slower_link_carries_longer():
    fleet = Fleet(boxes=4, machines=("rpi-zero-2w", "n100-mini-pc"), links=("3g", "ethernet"))
    slow, fast = machines(fleet, 5000)[:2]
    assert slow.train_s(100, 40, Training()) > 3 * fast.train_s(100, 40, Training())
    rng = Random(0)
    assert slow.link.up_s(50_000, rng) > 5 * fast.link.up_s(50_000, rng)


def test_rates_are_drawn_between_the_measured_quantiles():
    kind = link_class("lte")
    link, rng = Link(kind), Random(0)
    took = sorted(link.up_s(10_000_000, rng) for _ in range(400))
    assert took[200] == pytest.approx(8e7 / kind.up.median_bps, rel=0.15)
    assert took[-1] <= 8e7 / kind.up.p5_bps + 1.0


def test_stragglers_and_attackers_are_as_many_as_ordered():
    fleet = Fleet(boxes=50, slow_ratio=0.2, slow_factor=10.0, attackers_ratio=0.1, machines=("rpi-4b",))
    found = machines(fleet, 100)
    usual = min(machine.slowdown_ratio for machine in found)
    assert sum(machine.slowdown_ratio == 10 * usual for machine in found) == 10
    assert len(attackers(fleet)) == 5
    assert machines(fleet, 100) == found


@pytest.mark.parametrize("wrong", [
    {"boxes": 0}, {"drops_ratio": 1.5}, {"away_ratio": 1.0}, {"slow_factor": 0.5}, {"alpha": 0.0}, {"shards": 0},
    {"most_s": 0.0}, {"attackers_ratio": -0.1}, {"alpha": float("inf")}, {"slow_factor": float("inf")},
    {"drops_ratio": float("nan")}, {"boxes": 10_001},
])  # fmt: skip
def test_fleets_that_cannot_be_are_refused(wrong):
    with pytest.raises(BadMessage):
        Fleet(**wrong).check()


def test_machines_that_nobody_knows_are_refused():
    with pytest.raises(CatalogUnknown):
        machines(Fleet(machines=("nosuch",)), 1)


def test_attacks_do_what_they_say():
    layout = Layout(names=("w",), shapes=((400,),))
    rng = np.random.default_rng(0)
    vector = rng.normal(size=400).astype(np.float32)
    kind = form("float32")
    content = kind.encode(vector, layout, rng).content
    assert np.allclose(kind.decode(attacked("flip", content, kind, layout, rng), layout), -5 * vector)
    assert np.allclose(kind.decode(attacked("scale", content, kind, layout, rng), layout), 1000 * vector)
    noise = kind.decode(attacked("noise", content, kind, layout, rng), layout)
    assert np.linalg.norm(noise) == pytest.approx(np.linalg.norm(vector), rel=1e-5)
    assert abs(noise @ vector) < 0.3 * vector @ vector
    packed = form("int8")
    with pytest.raises((BadMessage, TensorMismatch)):
        packed.decode(attacked("garbage", packed.encode(vector, layout, rng).content, packed, layout, rng), layout)


def test_attackers_of_masked_rounds_do_not_clip_but_keep_within_the_levels():
    rng = np.random.default_rng(0)
    levels = rng.integers(-20, 20, size=400, dtype=np.int32)
    assert np.array_equal(attacked_levels("flip", levels, 127, rng), np.clip(-5 * levels, -127, 127))
    assert set(np.abs(attacked_levels("scale", levels[levels != 0], 127, rng))) == {127}
    noise = attacked_levels("noise", levels, 127, rng)
    assert np.linalg.norm(noise) == pytest.approx(np.linalg.norm(levels), rel=0.05)
    garbage = attacked_levels("garbage", levels, 127, rng)
    assert garbage.dtype == np.int32
    assert np.abs(garbage).max() == 127
    assert np.linalg.norm(garbage) > 3 * np.linalg.norm(levels)


@pytest.mark.parametrize("n_hidden", [0, 16])
def test_the_network_is_an_artifact_whose_weights_all_learn(tmp_path, n_hidden):
    artifact = perceptron(tmp_path / "model", 8, n_hidden, 3, 0)
    variant, head = head_of(artifact, "")
    assert head.layout.n_elements == (8 * 3 + 3 if n_hidden == 0 else 8 * 16 + 16 + 16 * 3 + 3)
    inputs = np.random.default_rng(0).normal(size=(700, 8)).astype(np.float32)
    assert np.array_equal(features_of(Body(head), {"x": inputs}), inputs)
    assert input_of(artifact) == "x"
    library = OneModel(artifact)
    assert library.resolve("simulated").artifact_digest == artifact.digest
    assert library.manifest_bytes(artifact.digest) == artifact.manifest_bytes
    assert all(library.find_blob(entry.sha256).is_file() for entry in artifact.manifest.files.values())
    with pytest.raises(NotFound):
        library.resolve("other")
    with pytest.raises(BadMessage, match="name one"):
        head_of(artifact_without_heads(artifact), "")
    assert variant == "original"


def artifact_without_heads(artifact):
    from dataclasses import replace

    from msgspec.structs import replace as changed

    bare = changed(artifact.manifest.variants[0], trainable_files=())
    return replace(artifact, manifest=changed(artifact.manifest, variants=(bare,)))


def test_a_folder_without_an_artifact_says_what_makes_one(tmp_path):
    with pytest.raises(NotFound) as caught:
        opened(tmp_path)
    assert "compress --head" in caught.value.advice
