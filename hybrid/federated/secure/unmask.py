"""The sum of a masked round: masked inputs added up, and the masks that the revealed secrets give taken away."""

import hashlib
from collections.abc import Callable

import numpy as np

from hybrid.errors import BadMessage, Conflict, CorruptContent
from hybrid.federated.secure.cipher import public_key_of
from hybrid.federated.secure.gateway import MaskedRound
from hybrid.federated.secure.messages import MASKED_OVERHEAD_BYTES, Masked, decoded
from hybrid.federated.secure.quantized import Sum, checked
from hybrid.federated.secure.ring import add_mask, packed_size, signed, unpacked, zeros
from hybrid.federated.secure.shamir import rebuilt
from hybrid.federated.secure.shares import commitment, pair_key, self_key


def unmasked(masked_round: MaskedRound, masked_input: Callable[[str], bytes]) -> Sum:
    """What the live devices sent, summed; two vectors of memory, whatever their number.

    Args:
        masked_round: at stage `done`.
        masked_input: by box id, the message that was taken at stage `mask`.

    Raises:
        Conflict: the round is not done.
        CorruptContent: a stored input is not what was taken, a device dealt shares that do not give its secret, or the
            total is no sum of clipped updates; nothing of the round may be used.
    """
    if masked_round.stage != "done":
        raise Conflict(f"the masked round is at stage {masked_round.stage}: there is a sum once it is done")
    members, task = masked_round.roster, masked_round.task
    total = zeros(task.n_masked, members.bits)
    for index in sorted(masked_round.live):
        total += _input(masked_round, index, masked_input(members.box_ids[index]))
        seed = rebuilt(masked_round.shares_of(index))
        if commitment(members, seed, index) != masked_round.dealt[index].commitment:
            raise CorruptContent(_dealt_wrongly(members.box_ids[index]))
        add_mask(total, self_key(members, seed, index), sign=-1)
    for index in sorted(masked_round.dealt.keys() - masked_round.live):
        secret = rebuilt(masked_round.shares_of(index))
        if public_key_of(secret) != members.adverts[index].mask_key:
            raise CorruptContent(_dealt_wrongly(members.box_ids[index]))
        for other in members.graph.neighbours(index):
            if other in masked_round.live:
                add_mask(total, pair_key(members, secret, index, other), sign=-1 if other < index else 1)
    return checked(signed(total, members.bits), len(masked_round.live), task)


def _input(masked_round: MaskedRound, index: int, content: bytes) -> np.ndarray:
    task, bits = masked_round.task, masked_round.roster.bits
    try:
        message = decoded(content, Masked, most_bytes=packed_size(task.n_masked, bits) + MASKED_OVERHEAD_BYTES)
    except BadMessage as exc:
        raise CorruptContent("a stored masked input does not parse: exclude the round") from exc
    if hashlib.sha256(message.payload).digest() != masked_round.masked[index].sha256:
        raise CorruptContent("a stored masked input is not the one that was taken: exclude the round")
    return unpacked(message.payload, task.n_masked, bits)


def _dealt_wrongly(box_id: str) -> str:
    return (
        f"box {box_id} dealt shares that do not give what it had committed itself to: the round is lost; leave that "
        "box out of the next one"
    )
