"""The parts of a masked round alone: shares, ring, graph, bounds, quantization, task."""

import math
from fractions import Fraction

import numpy as np
import pytest

from hybrid.errors import BadMessage, CorruptContent, TensorMismatch, TooLarge
from hybrid.federated.secure import bounds
from hybrid.federated.secure.bounds import LEAST_GROUP, Plan, exposure, failure, plan_for, tail
from hybrid.federated.secure.cipher import Stream, agreed, derived, fresh_secret, opened, public_key_of, sealed
from hybrid.federated.secure.graph import Graph
from hybrid.federated.secure.invitation import Invitation
from hybrid.federated.secure.quantized import checked, quantized
from hybrid.federated.secure.ring import (
    add_mask,
    check_packed,
    packed,
    packed_size,
    ring_bits,
    signed,
    unpacked,
    words_of,
)
from hybrid.federated.secure.roster import Members
from hybrid.federated.secure.shamir import PRIME, dealt, rebuilt
from hybrid.federated.secure.shares import pair_key, self_key
from hybrid.federated.secure.task import SecureTask
from tests.federated.secure.cohort import Box, task_of


# ------------------------------------------------------------------------------------------------------------- shares
def test_the_field_is_one() -> None:
    """Miller and Rabin with thirty bases, and nothing prime between it and 2^256."""

    def is_prime(number: int) -> bool:
        odd, twos = number - 1, 0
        while odd % 2 == 0:
            odd, twos = odd // 2, twos + 1
        for witness in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, *range(101, 121)):
            power = pow(witness, odd, number)
            if power in {1, number - 1}:
                continue
            for _ in range(twos - 1):
                power = power * power % number
                if power == number - 1:
                    break
            else:
                return False
        return True

    assert PRIME == 2**256 - 189
    assert is_prime(PRIME)
    assert not any(is_prime(number) for number in range(PRIME + 2, 2**256, 2))


def test_any_threshold_of_shares_rebuilds_and_one_less_fits_every_secret() -> None:
    rng = np.random.default_rng(0)
    secret = fresh_secret(rng.bytes)
    shares = dict(zip(range(1, 10), dealt(secret, 5, range(1, 10), rng.bytes), strict=True))
    for _ in range(20):
        chosen = [int(one) for one in rng.permutation(9)[:5] + 1]
        assert rebuilt({point: shares[point] for point in chosen}) == secret
    four = {point: shares[point] for point in (1, 4, 6, 9)}
    assert rebuilt(four) != secret
    for other in (bytes(32), fresh_secret(rng.bytes)):
        # a polynomial of degree 4 through these four shares exists for each secret, so they say nothing of it
        number = int.from_bytes(other, "little")
        rest = _through({0: number} | {point: int.from_bytes(share, "little") for point, share in four.items()}, 2)
        assert rebuilt(four | {2: rest.to_bytes(32, "little")}) == other
    with pytest.raises(CorruptContent, match="no number of the field"):
        rebuilt({1: b"\xff" * 32, 2: bytes(32)})


def _through(values: dict[int, int], at: int) -> int:
    total = 0
    for point, value in values.items():
        for other in values:
            if other != point:
                value = value * (at - other) * pow(point - other, -1, PRIME) % PRIME
        total += value
    return total % PRIME


def test_randomness_that_is_none_is_refused() -> None:
    for bad in (bytes, lambda n: b"\xff" * n, lambda _n: b""):
        with pytest.raises(BadMessage, match="no usable bytes"):
            fresh_secret(bad)


# ------------------------------------------------------------------------------------------------------------ ciphers
def test_two_sides_agree_and_nobody_else_opens() -> None:
    one, two = b"\x11" * 32, b"\x22" * 32
    common = agreed(one, public_key_of(two))
    assert common == agreed(two, public_key_of(one)) != agreed(one, public_key_of(one))
    key = derived(common, b"roster", b"share", b"a", b"b")
    assert key != derived(common, b"roster", b"share", b"ab", b"")
    text = sealed(key, b"secret", b"a to b")
    assert opened(key, text, b"a to b") == b"secret"
    for wrong in ((key, text, b"b to a"), (derived(common, b"other"), text, b"a to b"), (key, text[:5], b"a to b")):
        with pytest.raises(CorruptContent):
            opened(*wrong)


def test_the_stream_is_chacha20_of_rfc_8439() -> None:
    """Appendix A.1, test vector 1: key and nonce of zeros, block 0."""
    expected = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7da41597c5157488d7724e03fb8d84a37"
    assert Stream(bytes(32)).take(48).hex() == expected
    numbers = [Stream(derived(bytes([seed]), b"")).below(6) for seed in range(200)]
    assert set(numbers) == set(range(6))


# --------------------------------------------------------------------------------------------------------------- ring
@pytest.mark.parametrize(("n_devices", "bits"), [(1, 8), (8, 11), (10, 12), (16, 12), (17, 13), (100, 15), (1000, 18)])
def test_the_ring_is_as_wide_as_the_sum(n_devices, bits) -> None:
    assert ring_bits(127, n_devices) == bits
    largest = np.array([127 * n_devices, -127 * n_devices])
    np.testing.assert_array_equal(signed(words_of(largest, bits), bits), largest)


def test_a_ring_has_32_bits_at_most() -> None:
    with pytest.raises(BadMessage, match="32 at most"):
        ring_bits(1 << 22, 1024)


@pytest.mark.parametrize("bits", range(1, 33))
def test_packing_gives_back_every_word_without_a_gap(bits) -> None:
    rng = np.random.default_rng(bits)
    for n_elements in (1, 7, 8, 9, 50):
        words = words_of(rng.integers(0, 1 << bits, n_elements), bits)
        content = packed(words, bits)
        assert len(content) == packed_size(n_elements, bits) == math.ceil(n_elements * bits / 8)
        np.testing.assert_array_equal(unpacked(content, n_elements, bits), words)
        number = sum(int(word) << (place * bits) for place, word in enumerate(words))
        assert content == number.to_bytes(len(content), "little")


def test_what_is_not_packed_is_refused() -> None:
    content = packed(words_of(np.arange(5), 12), 12)
    with pytest.raises(TensorMismatch, match="of 7 bytes; 5 elements of 12 bits have 8"):
        unpacked(content[:7], 5, 12)
    with pytest.raises(TensorMismatch, match="behind its last element"):
        check_packed(content[:7] + b"\x10", 5, 12)


@pytest.mark.parametrize("bits", [12, 18])
def test_masks_cancel_and_hide(bits) -> None:
    rng = np.random.default_rng(0)
    levels = rng.integers(-127, 128, 100_001)
    words = words_of(levels, bits)
    add_mask(words, b"k" * 32, sign=1)
    hidden = signed(words, bits)
    share = np.histogram(hidden, 16, (-(1 << (bits - 1)), 1 << (bits - 1)))[0] / len(hidden)
    assert np.abs(share - 1 / 16).max() < 0.005, "every part of the ring as often"
    assert abs(np.corrcoef(hidden, levels)[0, 1]) < 0.02
    add_mask(words, b"k" * 32, sign=-1)
    np.testing.assert_array_equal(signed(words, bits), levels)


# ---------------------------------------------------------------------------------------------------- graph and bounds
def test_a_tail_is_what_counting_gives() -> None:
    assert tail(5, 2, 3, 2) == Fraction(3, 10)
    assert tail(5, 2, 3, 0) == 1
    assert tail(5, 2, 3, 3) == 0


@pytest.mark.parametrize("n_devices", range(3, 64, 5))
def test_small_rounds_are_complete_and_two_quorums_share_an_honest_device(n_devices) -> None:
    plan = plan_for(n_devices, dropout_percent=30, corrupt_percent=20)
    assert plan.is_complete
    assert plan.threshold == plan.quorum <= n_devices - plan.n_lost
    assert 2 * plan.quorum > n_devices + plan.n_corrupt
    assert plan.quorum - plan.n_corrupt >= 2, "no sum tells an honest device its only honest neighbour's update"
    assert failure(plan) == exposure(plan) == 0


def test_ten_devices_bear_three_lost_and_two_corrupt() -> None:
    plan = plan_for(10, dropout_percent=30, corrupt_percent=20)
    assert (plan.quorum, plan.threshold, plan.degree, plan.n_lost, plan.n_corrupt) == (7, 7, 9, 3, 2)


@pytest.mark.parametrize("n_devices", [100, 250, 1024])
def test_large_rounds_are_sparse_within_their_bounds(n_devices) -> None:
    plan = plan_for(n_devices, dropout_percent=30, corrupt_percent=20)
    assert plan.degree < 0.6 * n_devices
    assert failure(plan) <= Fraction(1, 2**20)
    assert exposure(plan) <= Fraction(1, 2**104)
    sparser = Plan(**{name: getattr(plan, name) for name in Plan.__slots__} | {"degree": plan.degree - 10})
    assert failure(sparser) > Fraction(1, 2**20) or exposure(sparser) > Fraction(1, 2**104)


def test_the_bounds_hold_in_a_simulation() -> None:
    """At rates where failures are common enough to be counted: the bound is above, and not far above, the count."""
    plan = Plan(n_devices=40, n_corrupt=8, n_lost=12, quorum=25, degree=12, threshold=7)
    rng = np.random.default_rng(1)
    n_bare = n_exposed = 0
    for trial in range(300):
        graph = Graph(plan, trial.to_bytes(32, "big"))
        lost = set(rng.permutation(40)[:12].tolist())
        corrupt = set(range(8))
        n_bare += sum(
            sum(one not in lost for one in graph.neighbours(device)) < 7 for device in range(40) if device not in lost
        )
        most = plan.threshold - LEAST_GROUP + 4  # three more than `exposure` allows, so that it happens
        n_exposed += sum(sum(one in corrupt for one in graph.neighbours(device)) >= most + 1 for device in range(8, 40))
    bare = n_bare / 300
    assert 0.3 * float(failure(plan)) < bare <= 1.1 * float(failure(plan))
    expected = 32 * float(tail(39, 8, 12, plan.threshold - LEAST_GROUP + 5))
    assert 0.9 * expected < n_exposed / 300 < 1.1 * expected


def test_rates_that_cannot_be_borne_and_sizes_that_are_none() -> None:
    with pytest.raises(BadMessage, match="cannot both be borne"):
        plan_for(20, dropout_percent=45, corrupt_percent=45)
    for n_devices in (0, 2, bounds.MAX_DEVICES + 1):
        with pytest.raises(BadMessage, match="3 to 1024"):
            plan_for(n_devices, dropout_percent=30, corrupt_percent=20)


def test_the_graph_is_regular_and_the_same_for_all_and_another_for_another_roster() -> None:
    plan = plan_for(100, dropout_percent=30, corrupt_percent=20)
    graph, again, other = (Graph(plan, bytes([seed]) * 32) for seed in (1, 1, 2))
    for device in range(100):
        around = graph.neighbours(device)
        assert len(set(around)) == plan.degree
        assert device not in around
        assert all(device in graph.neighbours(one) for one in around)
        assert around == again.neighbours(device)
    assert any(graph.neighbours(device) != other.neighbours(device) for device in range(100))


def test_the_core_leaves_out_who_has_too_few_around() -> None:
    plan = Plan(n_devices=40, n_corrupt=1, n_lost=4, quorum=25, degree=4, threshold=4)
    graph = Graph(plan, b"s" * 32)
    everybody = frozenset(range(40))
    assert graph.core(everybody) == everybody
    lonely = 7
    without = everybody - set(graph.neighbours(lonely)[:2])
    assert lonely not in graph.core(without)
    core = graph.core(without)
    assert all(sum(one in core for one in graph.holders(device)) >= 4 for device in core)


# -------------------------------------------------------------------------------------------------------- quantization
def test_quantization_is_right_in_the_mean_and_its_residual_is_what_is_missing() -> None:
    task = task_of(2000, clip_norm=1.0, element_range=0.1)
    rng = np.random.default_rng(0)
    update = (rng.standard_normal(2000) * 0.01).astype(np.float32)
    made = quantized(update, None, task, rng)
    np.testing.assert_allclose(made.levels * task.step_size + made.residual, update, atol=1e-7)
    assert np.abs(made.residual).max() <= task.step_size
    assert made.norm == pytest.approx(np.linalg.norm(update), rel=1e-5)
    again = quantized(update, made.residual, task, rng)
    np.testing.assert_allclose(again.levels * task.step_size + again.residual, update + made.residual, atol=1e-7)
    mean = np.mean([quantized(update, None, task, rng).levels for _ in range(200)], 0) * task.step_size
    assert np.abs(mean - update).max() < 5 * task.step_size / 2 / math.sqrt(200)


@pytest.mark.parametrize("scale", [0.001, 0.02, 1.0, 1e6])
@pytest.mark.parametrize("element_range", [0.05, 10.0])
def test_what_leaves_is_never_longer_than_the_clip(scale, element_range) -> None:
    task = task_of(3000, clip_norm=1.0, element_range=element_range, has_clip_bit=True)
    rng = np.random.default_rng(1)
    update = (rng.standard_normal(3000) * scale).astype(np.float32)
    made = quantized(update, None, task, rng)
    levels = made.levels[:-1].astype(np.float64)
    assert np.linalg.norm(levels * task.step_size) <= task.clip_norm * (1 + 1e-9)
    assert made.levels[-1] == (1 if made.norm <= 1.0 else -1)
    assert np.abs(levels).max() <= task.n_levels
    assert np.linalg.norm(made.residual.astype(np.float64)) <= 2.0, "what the clip took is not owed"


def test_the_residual_is_added_before_the_clip() -> None:
    """What leaves is within the clip however much the last rounds held back."""
    task, rng = task_of(3000, clip_norm=1.0, element_range=10.0), np.random.default_rng(2)
    update, residual = ((rng.standard_normal(3000) * 0.01).astype(np.float32) for _ in range(2))
    residual *= 10
    made = quantized(update, residual, task, rng)
    assert made.norm == pytest.approx(np.linalg.norm(update + residual), rel=1e-5)
    assert made.norm > 5
    assert np.linalg.norm(made.levels * task.step_size) <= task.clip_norm * (1 + 1e-9)


def test_two_rosters_share_no_key() -> None:
    """The same keys on the roster of another attempt, which no honest box brings, give other masks."""
    boxes = sorted((Box(number) for number in range(3)), key=lambda box: box.id)
    for box in boxes:
        box.begin(task_of())
    adverts = tuple(box.device._state.advert for box in boxes)
    one, two = Members(task_of(), adverts), Members(task_of(attempt=2), adverts)
    secrets = boxes[0].device._state.secrets
    assert one.digest != two.digest
    assert pair_key(one, secrets.mask, 0, 1) == pair_key(one, boxes[1].device._state.secrets.mask, 1, 0)
    assert pair_key(one, secrets.mask, 0, 1) != pair_key(two, secrets.mask, 0, 1)
    assert self_key(one, secrets.seed, 0) != self_key(two, secrets.seed, 0)


def test_updates_that_are_none_are_refused() -> None:
    task, rng = task_of(4), np.random.default_rng(0)
    for bad in (np.zeros(3, np.float32), np.zeros(4), np.array([0, 1, np.nan, 0], np.float32)):
        with pytest.raises(TensorMismatch):
            quantized(bad, None, task, rng)
    with pytest.raises(TensorMismatch, match="residual"):
        quantized(np.zeros(4, np.float32), np.zeros(5, np.float32), task, rng)


def test_clip_bits_beyond_the_number_of_devices_are_refused() -> None:
    task = task_of(2, has_clip_bit=True)
    assert checked(np.array([1, 2, -3]), 3, task).bits == -3
    with pytest.raises(CorruptContent, match="bits"):
        checked(np.array([1, 2, 4]), 3, task)


# ---------------------------------------------------------------------------------------------------------------- task
def test_an_invitation_travels_and_its_task_names_everything() -> None:
    task = task_of()
    invitation = Invitation(task=task, device_list=b"list")
    assert Invitation.from_bytes(invitation.to_bytes()) == invitation
    changes = {"campaign": "x", "step": 5, "attempt": 2, "model": "m", "artifact_digest": "c", "variant": "v",
               "layout_digest": "l", "n_elements": 51, "clip_norm": 2.0, "element_range": 0.5, "n_levels": 7,
               "has_clip_bit": True, "least_devices": 4, "dropout_percent": 20, "corrupt_percent": 30,
               "devices_digest": "d"}  # fmt: skip
    assert set(changes) == set(SecureTask.__struct_fields__)
    assert len({task.digest, *(task_of(**{name: value}).digest for name, value in changes.items())}) == 17


@pytest.mark.parametrize(
    "changes",
    [{"n_elements": 0}, {"clip_norm": math.nan}, {"element_range": 0.0}, {"least_devices": 2}, {"campaign": ""},
     {"n_levels": 1 << 20}, {"corrupt_percent": 60}, {"model": "m" * 300}],
)  # fmt: skip
def test_a_task_that_no_round_can_have(changes) -> None:
    with pytest.raises(BadMessage):
        task_of(**changes)


def test_an_invitation_that_does_not_parse() -> None:
    sound = Invitation(task=task_of()).to_bytes()
    for bad in (b"\xc1", b"\x80", b"", sound[:-3], sound.replace(b"\xa4step\x04", b"\xa4step\xff")):
        with pytest.raises(BadMessage):
            Invitation.from_bytes(bad)
    with pytest.raises(TooLarge):
        Invitation.from_bytes(bytes(5 << 20))
