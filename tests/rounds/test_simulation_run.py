"""Whole campaigns on virtual boxes: the gateway's desk and the boxes' learner as they are, hours in a moment."""

import gc
import json
import logging

import msgspec
import numpy as np
import pytest

from cloud_gateway.rounds.simulation.box import VirtualBox
from cloud_gateway.rounds.simulation.model import perceptron
from cloud_gateway.rounds.simulation.run import Material, Outcome, simulate
from cloud_gateway.rounds.simulation.samples import apart, made_up
from cloud_gateway.rounds.simulation.settings import Fleet
from hybrid.cli.main import main
from hybrid.errors import CampaignImpossible, ExitCode
from hybrid.federated.campaign import Aggregation, Campaign, Coding, Privacy, Training


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    learned, test = apart(made_up(60 * 30 + 500, 0), 0, 500)
    return Material(
        artifact=perceptron(tmp_path_factory.mktemp("m") / "model", 32, 0, 10, 0),
        inputs={"x": learned.inputs},
        labels=learned.labels,
        test_inputs={"x": test.inputs},
        test_labels=test.labels,
    )


def run(material, fleet=None, **order) -> Outcome:
    wanted = {"model": "simulated", "version": "", "variant": "", "goal": 10, "rounds": 6}
    return simulate(Campaign(**(wanted | order)), Fleet(**({"boxes": 60} | (fleet or {}))), material, lambda view: None)


def closed(found):
    return [each for each in found.campaign.rounds if each.state == "closed"]


def test_a_fleet_learns(material):
    found = run(material)
    assert found.campaign.state == "completed"
    assert [each.n_counted for each in closed(found)] == [10] * 6
    assert found.campaign.base_accuracy < 0.3
    assert closed(found)[-1].accuracy > 0.75
    assert found.n_bytes_up > 60 * 300  # int8 of 330 weights
    assert sum(found.boxes_by_machine.values()) == 60
    assert found.alarms == ()


def test_the_same_seed_is_the_same_run_and_another_one_another(material):
    fleet = {"drops_ratio": 0.2, "slow_ratio": 0.2, "away_ratio": 0.1, "attackers_ratio": 0.1}
    one, again, other = (run(material, fleet | {"seed": seed}, seed=seed, rounds=3) for seed in (1, 1, 2))
    assert msgspec.json.encode(one) == msgspec.json.encode(again)
    assert [each.accuracy for each in closed(one)] != [each.accuracy for each in closed(other)]


def test_rounds_close_though_boxes_fall_over_and_straggle(material):
    found = run(material, {"drops_ratio": 0.3, "slow_ratio": 0.2, "slow_factor": 50.0})
    assert found.campaign.state == "completed"
    assert found.n_dropped > 5
    assert [each.n_counted for each in closed(found)] == [10] * 6


def test_bad_updates_are_rejected_and_the_model_learns_on(material):
    scaled = run(material, {"attackers_ratio": 0.15, "attack": "scale"})
    assert any(name in scaled.outcomes for name in ("rejected:norm",))
    assert closed(scaled)[-1].accuracy > 0.65
    garbage = run(material, {"attackers_ratio": 0.3, "attack": "garbage"})
    assert garbage.outcomes["rejected:shape"] > 0
    assert closed(garbage)[-1].accuracy > 0.7


def test_a_fleet_that_never_comes_stalls_the_campaign_with_an_alarm(material):
    found = run(material, {"drops_ratio": 1.0}, deadline_s=150.0, most_abandoned=3)
    assert found.campaign.state == "stalled"
    assert found.seconds == pytest.approx(3 * 150.0, abs=10.0)
    assert any(text.startswith("campaign_stalled") for text in found.alarms)


def test_what_takes_too_long_is_stopped(material):
    found = run(material, {"drops_ratio": 1.0, "most_s": 300.0}, deadline_s=3600.0)
    assert found.campaign.state == "stopped"
    assert found.seconds == pytest.approx(300.0, abs=2.0)


def test_privacy_is_accounted_and_ends_the_campaign_when_it_is_spent(material):
    privacy = Privacy(noise=8.0, clip=1.0, max_epsilon=0.8)  # three rounds a box
    uniform = Aggregation(weights="uniform")
    found = run(material, goal=30, rounds=20, deadline_s=100.0, privacy=privacy, aggregation=uniform)
    assert found.campaign.state == "spent"
    assert "epsilon" in found.campaign.reason
    assert 0.0 < found.campaign.epsilon <= 0.8
    assert sum(each.n_counted for each in closed(found)) <= 3 * 60


def test_a_late_update_is_held_to_the_norm_that_its_box_was_told(material):
    """The clip norm falls from round to round; boxes that began earlier clipped to what it was then."""
    privacy = Privacy(noise=1.0, clip=3.0, is_adaptive=True)
    late = Aggregation(weights="uniform", max_staleness=4)
    found = run(material, goal=10, rounds=12, privacy=privacy, aggregation=late)
    assert closed(found)[-1].clip < closed(found)[0].clip
    assert "rejected:norm" not in found.outcomes


@pytest.mark.parametrize("order", [
    {"aggregation": Aggregation(scaffold=True, weights="uniform")},
    {"aggregation": Aggregation(max_staleness=3)},
    {"aggregation": Aggregation(optimizer="adam", learning_rate=0.03)},
    {"aggregation": Aggregation(rule="median")},
    {"coding": Coding(up="top-k", down="top-k", share=0.1)},
], ids=["scaffold", "buffered", "adam", "median", "top-k"])  # fmt: skip
def test_every_kind_of_campaign_runs(material, order):
    found = run(material, **order)
    assert found.campaign.state == "completed"
    assert closed(found)[-1].accuracy > found.campaign.base_accuracy + 0.1


@pytest.mark.parametrize("privacy", [
    Privacy(secure=True, clip=3.0), Privacy(secure=True, clip=3.0, noise=0.5, is_adaptive=True)
], ids=["secure", "secure-private"])  # fmt: skip
def test_masked_rounds_come_to_their_sums_though_boxes_fall_over(material, privacy):
    """Every box is a device of the protocol: keys, shares, masks, consent and repair, through the gateway's masking."""
    uniform = Aggregation(weights="uniform")
    found = run(material, {"boxes": 30, "drops_ratio": 0.15}, goal=8, least=4, rounds=3, privacy=privacy,
                aggregation=uniform, deadline_s=7200.0)  # fmt: skip
    assert found.campaign.state == "completed"
    assert found.n_dropped > 0
    assert all(each.n_counted >= 4 for each in closed(found))
    assert closed(found)[-1].accuracy > 0.4
    assert (found.campaign.epsilon > 0) == (privacy.noise > 0)


def test_attackers_steer_masked_rounds_that_nobody_looks_into_and_too_large_a_sum_is_not_used(material):
    secure = {"privacy": Privacy(secure=True, clip=3.0), "aggregation": Aggregation(weights="uniform"),
              "goal": 8, "rounds": 2, "deadline_s": 7200.0}  # fmt: skip
    honest = run(material, {"boxes": 20}, **secure)
    turned = run(material, {"boxes": 20, "attackers_ratio": 0.3, "attack": "flip"}, **secure)
    assert turned.n_attackers == 6
    assert turned.attackers_outcomes["accepted"] > 0
    assert closed(turned)[-1].accuracy < closed(honest)[-1].accuracy - 0.2
    scaled = run(material, {"boxes": 20, "attackers_ratio": 0.2, "attack": "scale"}, **secure)
    assert scaled.outcomes["refused"] > 0
    assert closed(scaled)[-1].accuracy > 0.3


def test_boxes_that_cannot_do_a_task_give_it_up_once_and_are_counted(material):
    training = Training(learning_rate=1e38)
    found = run(material, {"boxes": 12}, goal=10, training=training, most_abandoned=2, deadline_s=600.0)
    assert found.campaign.state == "stalled"
    assert found.failures == {"training_diverged": 2 * 12}


def test_an_interruption_ends_all_that_runs(material, caplog, monkeypatch):
    """As Ctrl-C while a box trains; no task is left that would be complained of when it is collected."""

    async def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(VirtualBox, "_view", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(material, {"boxes": 10}, goal=5)
    gc.collect()
    assert "pending" not in caplog.text


def test_an_order_that_cannot_be_is_refused_as_by_a_gateway(material):
    with pytest.raises(CampaignImpossible, match="61 updates"):
        run(material, goal=61)


# ------------------------------------------------------------------------------------------------------------ command


def test_the_command_tells_people_and_programs(capsys):
    words = ["rounds", "simulate", "--boxes", "20", "--goal", "5", "--rounds", "3", "--hidden", "0", "--drops", "10"]
    assert main(words) == ExitCode.OK
    text = capsys.readouterr().out
    for told in ("completed after 3 rounds of 20 boxes, 330 weights", "15 counted", "HTTP and TLS not counted", "rpi-"):
        assert told in text, told
    assert main([*words, "--json"]) == ExitCode.OK
    data = json.loads(capsys.readouterr().out)["data"]
    assert data["campaign"]["state"] == "completed"
    assert len(data["campaign"]["rounds"]) == 3
    assert logging.getLogger("hybrid.gateway").level == logging.NOTSET  # as before: a service may follow


@pytest.mark.parametrize(("labels", "said"), [
    (np.linspace(0, 1, 60, dtype=np.float32), "a class number from 0 on"),
    (np.zeros((60, 1), np.int64), "a class number from 0 on"),
    (np.full(60, -1), "a class number from 0 on"),
    (np.full(60, 2_000_000_000), "without gaps"),
    (np.zeros(3, np.int64), "samples to learn from for 20 boxes"),
])  # fmt: skip
def test_labels_that_are_no_classes_are_told(capsys, tmp_path, labels, said):
    np.savez(tmp_path / "mine.npz", x=np.zeros((len(labels), 4), np.float32), labels=labels)
    words = ["rounds", "simulate", "--boxes", "20", "--data", str(tmp_path / "mine.npz")]
    assert main(words) != ExitCode.OK
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("words", [
    ["--goal", "21"], ["--attackers", "101"], ["--drops", "-1"], ["--away", "100"], ["--slow-factor", "0.5"],
])  # fmt: skip
def test_figures_that_cannot_be_are_wrong_usage(capsys, words):
    assert main(["rounds", "simulate", "--boxes", "20", *words]) == ExitCode.USAGE
    assert words[0] in capsys.readouterr().err


def test_the_command_tells_of_attackers_and_of_what_failed(capsys):
    words = ["rounds", "simulate", "--boxes", "10", "--goal", "5", "--rounds", "2", "--hidden", "0"]
    assert main([*words, "--attackers", "20", "--attack", "garbage"]) == ExitCode.OK
    assert "attackers (garbage): 2 boxes; 0 updates accepted" in capsys.readouterr().out
    assert main([*words, "--learning-rate", "1e38", "--most-abandoned", "1"]) == ExitCode.OK
    assert "tasks that boxes could not do: 10 training_diverged" in capsys.readouterr().out


def test_the_command_takes_samples_of_ones_own(capsys, tmp_path):
    samples = made_up(600, 4)
    np.savez(tmp_path / "mine.npz", image=samples.inputs.reshape(600, 4, 8), labels=samples.labels)
    words = [
        "rounds",
        "simulate",
        "--boxes",
        "20",
        "--goal",
        "5",
        "--rounds",
        "3",
        "--data",
        str(tmp_path / "mine.npz"),
    ]
    assert main([*words, "--json", "--split", "shards", "--machine", "rpi-4b", "--link", "lte"]) == ExitCode.OK
    data = json.loads(capsys.readouterr().out)["data"]
    assert data["boxes_by_machine"] == {"rpi-4b": 20}
    assert data["campaign"]["n_parameters"] == 32 * 32 + 32 + 320 + 10


def test_the_command_takes_a_model_of_ones_own(capsys, tmp_path):
    from tests.rounds.lab import artifact_in

    artifact_in(tmp_path / "model", learns=("w2", "b2"))
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", image=rng.random((300, 64), np.float32), labels=rng.integers(10, size=300))
    words = ["rounds", "simulate", str(tmp_path / "model"), "--data", str(tmp_path / "d.npz"), "--boxes", "10"]
    assert main([*words, "--goal", "4", "--rounds", "2", "--json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["data"]["campaign"]["n_parameters"] == 650
    assert main(["rounds", "simulate", str(tmp_path / "model")]) == ExitCode.USAGE
    assert main(["rounds", "simulate", str(tmp_path), "--data", str(tmp_path / "d.npz")]) == ExitCode.NOT_FOUND
