"""A kill between any two steps, on either side, loses nothing and reveals nothing twice."""

import os

import numpy as np
import pytest

from hybrid.errors import Conflict
from hybrid.federated.secure.device import Device
from hybrid.federated.secure.gateway import MaskedRound
from hybrid.federated.secure.messages import Consent, decoded
from tests.federated.secure.cohort import STAGES, Cohort, task_of


def run_with(cohort: Cohort, stage: str, *, box_killed: bool, gateway_killed: bool) -> None:
    """A round in which, at one stage, each message is made or taken twice from the state before it."""
    for each in STAGES:
        for box in cohort.boxes:
            before = box.state
            state = cohort.round
            message = box.begin(cohort.task) if each == "advertise" else box.answer(state.message_for(box.id))
            if each == stage and box_killed and each != "advertise":
                box.state = before  # killed before it saved, or after and before it sent: it answers again
                again = box.answer(state.message_for(box.id))
                assert again == message or each in {"mask", "consent"}, "signatures are drawn anew"
                message = again
            if each == stage and gateway_killed:
                cohort.round.take(box.id, message)  # taken, and killed before its entry was stored: not acknowledged
            assert cohort.take(box, message)
        if each == stage and gateway_killed:
            cohort.round.close()
        cohort.close()


@pytest.mark.parametrize("stage", STAGES)
def test_a_box_or_the_gateway_is_killed_at_a_stage(stage) -> None:
    cohort = Cohort.of(3, task_of(9, clip_norm=1e6))
    run_with(cohort, stage, box_killed=True, gateway_killed=True)
    np.testing.assert_array_equal(cohort.sum().levels, cohort.expected(range(3)))


def test_every_prefix_of_the_journal_is_a_round_that_goes_on() -> None:
    """The gateway is restored from each prefix: nothing in it was made up, and what is missing is asked for again."""
    cohort = Cohort.of(3, task_of(6, clip_norm=1e6))
    cohort.run()
    stages = [MaskedRound.restored(cohort.task, cohort.journal[:n]).stage for n in range(len(cohort.journal) + 1)]
    assert stages == [stage for stage in STAGES for _ in range(4)] + ["done"]
    for n in range(len(cohort.journal)):
        state = MaskedRound.restored(cohort.task, cohort.journal[:n])
        whole = MaskedRound.restored(cohort.task, [*cohort.journal[:n], cohort.journal[n]])
        assert len(whole.waits_for) != len(state.waits_for) or whole.stage != state.stage or state.members is None


def test_a_restarted_box_cannot_mask_two_inputs_alike() -> None:
    cohort = Cohort.of(3, task_of(6, clip_norm=1e6))
    for _ in range(2):
        cohort.stage(cohort.boxes)
    box = cohort.boxes[0]
    delivery = cohort.round.message_for(box.id)
    first = box.answer(delivery)
    assert box.device.has_masked
    own = box.levels
    assert own.any()
    box.levels = np.zeros_like(own)
    with pytest.raises(Conflict, match="one input a round"):
        box.answer(delivery)
    box.levels = own
    assert box.answer(delivery) == first


def test_secrets_are_gone_once_the_last_message_is_made() -> None:
    cohort = Cohort.of(3, task_of(6, clip_norm=1e6))
    for _ in range(4):
        cohort.stage(cohort.boxes)
    box = cohort.boxes[0]
    secrets = box.device._state.secrets
    request = cohort.round.message_for(box.id)
    reveal = box.answer(request)
    for secret in (secrets.cipher, secrets.mask, secrets.seed, secrets.dealing):
        assert secret not in box.state
    assert box.answer(request) == reveal
    assert box.device.is_done
    with pytest.raises(Conflict, match="secrets are gone"):
        box.device.masked(box.levels, box.sign)


def test_production_randomness_and_two_signatures_of_one_consent() -> None:
    """With the system's randomness, and a signature that differs each time (ECDSA): the first one stays."""
    cohort = Cohort.of(3, task_of(6, clip_norm=1e6))
    for box in cohort.boxes:
        box.random = os.urandom
    for _ in range(3):
        cohort.stage(cohort.boxes)
    box = cohort.boxes[0]
    request = cohort.round.message_for(box.id)
    assert box.answer(request) == box.answer(request)
    assert decoded(box.answer(request), Consent).signature != box.sign(b"")
    assert isinstance(box.device, Device)
