"""A device's side of a masked round: message in, message out; refuses whatever could uncover an update.

Design: all that is drawn at random is drawn at the beginning and everything else follows from it, so that the same
request gets the same bytes again and a restart can neither mask two inputs alike nor deal two sets of shares. What was
once settled (roster, sharers, input, live set, answer) stays: a request that differs is refused. Save `to_bytes()`
before an answer is sent.
"""

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from hybrid.errors import BadMessage, Conflict, CorruptContent, HybridError, MaskingRefused, TensorMismatch
from hybrid.federated.secure.cipher import Random, fresh_secret, public_key_of
from hybrid.federated.secure.messages import (
    Advert,
    Consent,
    Delivery,
    GatewayMessage,
    LiveSet,
    Masked,
    Reveal,
    Roster,
    UnmaskCall,
    decoded,
    encoded,
)
from hybrid.federated.secure.ring import add_mask, packed, words_of
from hybrid.federated.secure.roster import Members, advert_bytes, check_advert, check_indexes
from hybrid.federated.secure.shares import Secrets, SharePair, dealing, pair_key, received, self_key
from hybrid.federated.secure.task import SecureTask
from hybrid.fleet.signing import box_id_of

STATE_VERSION: Final = 1

Sign = Callable[[bytes], bytes]
"""Signs bytes with the box's key (ECDSA with SHA-256, DER)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """What a device insists on, whatever the task says.

    Attributes:
        least_devices: fewest devices in a sum.
        corrupt_percent: smallest share of devices that the round must bear to be corrupt.
        most_inputs: masked inputs for one step of a campaign: two sums that differ by one device tell that device's
            update, so 1 is safe; with more, a step that failed after masking can be tried again, by trust.
        listed: box ids of the operator's device list; None goes without, and cannot tell invented devices.
        devices_digest: of that list; empty without.
    """

    least_devices: int = 3
    corrupt_percent: int = 20
    most_inputs: int = 1
    listed: Collection[str] | None = None
    devices_digest: str = ""

    def check(self, task: SecureTask) -> None:
        """Refuses a task below these. Raises `MaskingRefused`."""
        if task.least_devices < self.least_devices or task.corrupt_percent < self.corrupt_percent:
            raise MaskingRefused(
                f"a sum of {task.least_devices} devices, {task.corrupt_percent} % of them corrupt, is offered; this "
                f"device wants {self.least_devices} and {self.corrupt_percent} % at least: order the campaign so"
            )
        if self.listed is not None and task.devices_digest != self.devices_digest:
            raise MaskingRefused(
                "the round is not for the operator's device list that this device has: give the campaign the newest one"
            )


class _State(msgspec.Struct, kw_only=True):
    version: int
    task: SecureTask
    box_key: bytes
    advert: Advert
    secrets: Secrets | None
    roster: Roster | None = None
    sharers: tuple[int, ...] = ()
    held: dict[int, SharePair] = {}
    input_digest: bytes = b""
    signature: bytes = b""
    live: tuple[int, ...] = ()
    consent: bytes = b""
    unmask_digest: bytes = b""
    reveal: bytes = b""


class Device:
    """One device in one attempt at one round; made by `begin` or `from_bytes`."""

    def __init__(self, state: _State, guard: Guard) -> None:
        self._state = state
        self._guard = guard
        self._members: Members | None = None
        if state.roster is not None:
            self._members = Members(state.task, state.roster.adverts)

    @classmethod
    def begin(
        cls,
        task: SecureTask,
        box_key: bytes,
        *,
        sign: Sign,
        random: Random,
        guard: Guard = Guard(),
        n_inputs_before: int = 0,
    ) -> "Device":
        """Fresh keys for an attempt.

        Args:
            task: of the round.
            box_key: the box's public key, DER.
            sign: with its private key.
            random: cryptographic.
            guard: what the device insists on.
            n_inputs_before: inputs that the device has masked for this step (or a later one) of the campaign; to be
                counted on disk before a masked input is sent.

        Raises:
            MaskingRefused: a task below the guard, or of a step for which the device masked an input before.
        """
        guard.check(task)
        if n_inputs_before >= guard.most_inputs:
            raise MaskingRefused(
                f"step {task.step} of campaign {task.campaign} has a masked input of this device already: sit this "
                "round out"
            )
        secrets = Secrets(*(fresh_secret(random) for _ in range(4)))
        keys = public_key_of(secrets.cipher), public_key_of(secrets.mask)
        signature = sign(advert_bytes(task, box_key, *keys))
        advert = Advert(box_key=box_key, cipher_key=keys[0], mask_key=keys[1], signature=signature)
        return cls(_State(version=STATE_VERSION, task=task, box_key=box_key, advert=advert, secrets=secrets), guard)

    @classmethod
    def from_bytes(cls, content: bytes, *, guard: Guard = Guard()) -> "Device":
        """As `to_bytes` gave it. Raises `CorruptContent`."""
        try:
            state = msgspec.msgpack.decode(content, type=_State)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, HybridError) as exc:
            raise CorruptContent("a device's state of a masked round does not parse: sit this round out") from exc
        if state.version != STATE_VERSION:
            raise CorruptContent("a device's state of a masked round is of another program: sit this round out")
        return cls(state, guard)

    def to_bytes(self) -> bytes:
        """All of it, secrets included: the caller seals it."""
        return msgspec.msgpack.encode(self._state)

    @property
    def task(self) -> SecureTask:
        """Which round and attempt."""
        return self._state.task

    @property
    def has_masked(self) -> bool:
        """Whether a masked input was made: from then on the device's update belongs to this attempt."""
        return bool(self._state.input_digest)

    @property
    def is_done(self) -> bool:
        """Whether the last message was made; the secrets are gone then."""
        return bool(self._state.reveal)

    def advert(self) -> bytes:
        """Stage 0: the device's keys."""
        return encoded(self._state.advert)

    def answer(self, content: bytes, *, sign: Sign, levels: Callable[[], np.ndarray]) -> bytes:
        """The answer to any message of the gateway; the same message gets the same answer.

        Args:
            content: as it came.
            sign: with the box's private key.
            levels: gives the quantized update, int (n_masked,), when it is wanted; the same whenever it is asked.

        Raises:
            MaskingRefused: what the gateway sent could uncover an update; sit this round out.
            Conflict: a message of a stage that the device has not reached.
            ProtocolError, CorruptContent: a message with a fault.
        """
        message = decoded(content, GatewayMessage)
        if isinstance(message, Roster):
            return self.take_roster(message)
        if isinstance(message, Delivery):
            self.take_delivery(message)
            return self.masked(levels(), sign)
        if isinstance(message, LiveSet):
            return self.take_live(message, sign)
        return self.take_unmask(message)

    def take_roster(self, roster: Roster) -> bytes:
        """Stage 1: check everybody's keys, and deal shares."""
        state = self._state
        secrets = self._secrets()
        if state.roster is None:
            for advert in roster.adverts:
                check_advert(advert, state.task, self._guard.listed)
            members = Members(state.task, roster.adverts)
            index = members.index_of(box_id_of(state.box_key))
            if index is None or roster.adverts[index] != state.advert:
                raise MaskingRefused(
                    "the roster does not hold this device's keys as it signed them: sit this round out"
                )
            if len(roster.adverts) < max(state.task.least_devices, self._guard.least_devices):
                raise MaskingRefused(f"a roster of {len(roster.adverts)} devices is too small: sit this round out")
            message, own = dealing(members, index, secrets)
            self._members, state.roster, state.held = members, roster, {index: own}
            return encoded(message)
        if roster != state.roster:
            raise MaskingRefused("the gateway sent two different rosters: sit this round out")
        members, index = self._place()
        return encoded(dealing(members, index, secrets)[0])

    def take_delivery(self, delivery: Delivery) -> None:
        """Stage 2: open the neighbours' shares; those that do not open are left out."""
        state, secrets = self._state, self._secrets()
        members, index = self._place()
        sharers = check_indexes(delivery.sharers, range(members.plan.n_devices), "sharing")
        if state.sharers:
            if state.sharers != delivery.sharers:
                raise MaskingRefused("the gateway sent two different lists of who dealt shares: sit this round out")
            return
        if index not in sharers or len(sharers) < members.least_live or index not in members.graph.core(sharers):
            raise MaskingRefused(
                f"{len(sharers)} devices dealt shares, too few of them for or around this one: sit this round out"
            )
        dealers = [other for other in members.graph.neighbours(index) if other in sharers]
        if len(dealers) != len(delivery.parcels):
            raise BadMessage(f"{len(delivery.parcels)} parcels for {len(dealers)} neighbours who dealt shares")
        held = {index: state.held[index]}
        for dealer, parcel in zip(dealers, delivery.parcels, strict=True):
            try:
                held[dealer] = received(members, parcel, secrets, dealer, index)
            except (CorruptContent, BadMessage):
                continue  # of this neighbour the device holds nothing; the others do
        if len(held) < members.plan.threshold:
            raise MaskingRefused(
                f"shares of {len(held) - 1} neighbours open here, {members.plan.threshold - 1} must: the gateway gave "
                "others another roster, or changed them; sit this round out"
            )
        state.sharers, state.held = delivery.sharers, held

    def masked(self, levels: np.ndarray, sign: Sign) -> bytes:
        """Stage 2: the device's input under its masks.

        Raises:
            Conflict: shares were not delivered, or another input was masked before.
            TensorMismatch: another length, no whole numbers, or beyond the task's levels.
        """
        state, secrets = self._state, self._secrets()
        members, index = self._place()
        if not state.sharers:
            raise Conflict("no shares were delivered yet: the gateway's message of stage 2 comes first")
        text = _sound(levels, state.task)
        digest = hashlib.sha256(text.tobytes()).digest()
        if state.input_digest not in {b"", digest}:
            raise Conflict("another input was masked for this round: one input a round, the same whenever it is asked")
        words = words_of(text, members.bits)
        add_mask(words, self_key(members, secrets.seed, index), sign=1)
        for other in members.graph.neighbours(index):
            if other in state.sharers:
                add_mask(words, pair_key(members, secrets.mask, index, other), sign=1 if index < other else -1)
        if not state.signature:
            state.signature = sign(members.masked_bytes(state.sharers))
        state.input_digest = digest
        return encoded(Masked(signature=state.signature, payload=packed(words, members.bits)))

    def take_live(self, message: LiveSet, sign: Sign) -> bytes:
        """Stage 3: consent to one live set, for good, once every live neighbour was told the same sharers."""
        state = self._state
        if state.live and state.live != message.live:
            raise MaskingRefused("the gateway sent two different live sets: sit this round out")
        if not state.consent:
            self._check_live(message)
            members, _ = self._place()
            consent = sign(members.live_bytes(state.sharers, message.live))
            state.live, state.consent = message.live, consent
        return encoded(Consent(signature=state.consent))

    def take_unmask(self, call: UnmaskCall) -> bytes:
        """Stage 4: one share of each device that this one holds for, once a quorum consented to the same live set."""
        state = self._state
        digest = hashlib.sha256(msgspec.msgpack.encode([call.live, call.dead])).digest()
        if state.reveal:
            if digest != state.unmask_digest:
                raise MaskingRefused("the gateway asks for other shares than before: nothing more is revealed")
            return state.reveal
        members, index = self._place()
        if not state.consent:
            raise Conflict("this device has consented to no live set yet: the gateway's message of stage 3 comes first")
        if set(call.live) & set(call.dead):
            raise MaskingRefused("the gateway names a device both live and dead: both its secrets would leave")
        if call.live != state.live:
            raise MaskingRefused("the gateway's live set is not the one that was consented to: nothing is revealed")
        if call.dead != tuple(sorted(set(state.sharers) - set(call.live))):
            raise MaskingRefused("the gateway's dead are not those who dealt shares and are not live")
        self._check_consents(members, call)
        live = set(state.live)
        shares = []
        for other in members.graph.holders(index):
            if other in state.sharers:
                pair = state.held.get(other, SharePair(seed=b"", secret=b""))
                shares.append(pair.seed if other in live else pair.secret)
        state.reveal, state.unmask_digest = encoded(Reveal(shares=tuple(shares))), digest
        state.secrets, state.held = None, {}
        return state.reveal

    def _check_live(self, message: LiveSet) -> None:
        state = self._state
        members, index = self._place()
        if not state.sharers:
            raise Conflict("no shares were delivered to this device: it takes no part in unmasking")
        live = check_indexes(message.live, state.sharers, "live")
        if index in live and not self.has_masked:
            raise MaskingRefused("the gateway names this device live, but it masked nothing: sit this round out")
        if len(live) < max(members.least_live, self._guard.least_devices):
            raise MaskingRefused(f"a sum of {len(live)} devices is too small: {members.least_live} are wanted")
        if members.graph.core(live) != live:
            raise MaskingRefused("a device of the live set has too few live neighbours: its update could be uncovered")
        around = [other for other in members.graph.neighbours(index) if other in live]
        signed = members.masked_bytes(state.sharers)
        if len(message.signatures) != len(around) or not all(
            members.is_signed_by(other, signature, signed)
            for other, signature in zip(around, message.signatures, strict=True)
        ):
            raise MaskingRefused(
                "a live neighbour has not signed that it is masked with the same devices as this one: the gateway told "
                "it other sharers, and could uncover it"
            )

    def _check_consents(self, members: Members, call: UnmaskCall) -> None:
        signed = members.live_bytes(self._state.sharers, call.live)
        signers = {one.index for one in call.consents if one.index < members.plan.n_devices}
        if len(signers) != len(call.consents):
            raise MaskingRefused("the gateway counts a consent twice, or one from outside the roster")
        n_consents = sum(members.is_signed_by(one.index, one.signature, signed) for one in call.consents)
        if n_consents < members.plan.quorum:
            raise MaskingRefused(
                f"{n_consents} devices consented to this live set, {members.plan.quorum} must: nothing is revealed"
            )

    def _place(self) -> tuple[Members, int]:
        """The roster, and the device's own index in it."""
        if self._members is None:
            raise Conflict("no roster came yet: the gateway's message of stage 1 comes first")
        index = self._members.index_of(box_id_of(self._state.box_key))
        if index is None:
            raise CorruptContent("the state's roster does not hold this device: sit this round out")
        return self._members, index

    def _secrets(self) -> Secrets:
        if self._state.secrets is None:
            raise Conflict("this device is done with the round, and its secrets are gone")
        return self._state.secrets


def _sound(levels: np.ndarray, task: SecureTask) -> np.ndarray:
    if levels.shape != (task.n_masked,) or not np.issubdtype(levels.dtype, np.integer):
        raise TensorMismatch(f"levels are {levels.dtype} {levels.shape}; whole numbers ({task.n_masked},) are wanted")
    largest = max(int(levels.max()), -int(levels.min()))
    if largest > task.n_levels:
        raise TensorMismatch(f"a level of {largest} is beyond the task's {task.n_levels}")
    return np.ascontiguousarray(levels, dtype="<i4")
