"""The gateway's side of a masked round: takes messages, closes stages, ends with a sum or with the reason why not.

Design: no clock; the caller closes a stage when all have answered or its time is over. Every change gives a journal
entry (`hybrid.federated.secure.journal`), to be stored before the message is acknowledged; masked inputs, which are
large, are stored by the caller as they came and read once, when they are summed.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Final, Literal

import msgspec

from hybrid.errors import BadMessage, Conflict, CorruptContent, Forbidden, TooLarge
from hybrid.federated.secure.bounds import MAX_DEVICES
from hybrid.federated.secure.journal import Closed, Entry, MaskedDigest, Taken
from hybrid.federated.secure.messages import (
    MASKED_OVERHEAD_BYTES,
    Advert,
    Consent,
    Dealt,
    Delivery,
    DeviceMessage,
    LiveSet,
    Masked,
    Parcel,
    Reveal,
    Roster,
    Signed,
    UnmaskCall,
    decoded,
    encoded,
)
from hybrid.federated.secure.ring import check_packed, packed_size
from hybrid.federated.secure.roster import Members, check_advert
from hybrid.federated.secure.shamir import is_element
from hybrid.federated.secure.shares import fingerprint
from hybrid.federated.secure.task import SecureTask

Stage = Literal["advertise", "share", "mask", "consent", "unmask", "done", "excluded"]
STAGES: Final[tuple[Stage, ...]] = ("advertise", "share", "mask", "consent", "unmask", "done")
MOST_ADVERTS: Final = 8
"""Keys that one box may bring for an attempt, each in place of those before: its journal stays bounded."""
KINDS: Final[dict[str, type[msgspec.Struct]]] = {
    "advertise": Advert,
    "share": Dealt,
    "mask": Masked,
    "consent": Consent,
    "unmask": Reveal,
}


class MaskedRound:
    """One attempt at one round, as the gateway sees it; `excluded` and `done` are final.

    Attributes:
        task: of the round.
        stage: what devices are asked for now.
        reason: why it is excluded; empty otherwise.
        members: roster, from stage `share` on.
    """

    def __init__(self, task: SecureTask, *, listed: Collection[str] | None = None) -> None:
        self.task = task
        self.stage: Stage = "advertise"
        self.reason = ""
        self.members: Members | None = None
        self._listed = listed
        self._adverts: dict[str, Advert] = {}
        self._n_adverts: Counter[str] = Counter()
        self.dealt: dict[int, Dealt] = {}
        self.masked: dict[int, MaskedDigest] = {}
        self.consents: dict[int, bytes] = {}
        self.reveals: dict[int, Reveal] = {}
        self.live: frozenset[int] = frozenset()
        self._dealers: dict[int, dict[int, int]] = {}

    @classmethod
    def restored(
        cls, task: SecureTask, entries: Iterable[bytes], *, listed: Collection[str] | None = None
    ) -> "MaskedRound":
        """The round that a journal tells. Raises `CorruptContent`."""
        made = cls(task, listed=listed)
        for content in entries:
            made._apply(Entry.from_bytes(content))
        return made

    @property
    def roster(self) -> Members:
        """The roster. Raises `Conflict` before there is one."""
        if self.members is None:
            raise Conflict("the round has no roster yet: its first stage is still open")
        return self.members

    @property
    def most_bytes(self) -> int:
        """Longest message that can be meant for this stage or, sent again, for one before: a limit for a body."""
        if self.members is None:
            return 1024
        n_keys_bytes = 1024 + 160 * self.members.plan.n_devices
        return max(n_keys_bytes, packed_size(self.task.n_masked, self.members.bits) + MASKED_OVERHEAD_BYTES)

    @property
    def box_ids(self) -> frozenset[str]:
        """Who still takes part, as far as the gateway knows."""
        if self.members is None:
            return frozenset(self._adverts)
        indexes = range(self.members.plan.n_devices) if self.stage == "share" else self.dealt
        return frozenset(self.members.box_ids[index] for index in indexes)

    @property
    def waits_for(self) -> frozenset[str]:
        """Boxes whose message of this stage has not come; nobody in particular while adverts come."""
        if self.members is None or self.stage in {"done", "excluded"}:
            return frozenset()
        came: dict[str, Collection[int]] = {
            "share": self.dealt,
            "mask": self.masked,
            "consent": self.consents,
            "unmask": self.reveals,
        }
        return self.box_ids - {self.members.box_ids[index] for index in came[self.stage]}

    @property
    def is_enough(self) -> bool:
        """Whether the stage could be closed and the round would go on."""
        return not self._lack()

    def take(self, box_id: str, content: bytes) -> bytes | None:
        """Take in a device's message.

        Args:
            box_id: who sent it, as its token or signature proved.
            content: as it came; a masked input is to be stored by the caller under this box's id.

        Returns:
            The journal's entry, to be stored before the message is acknowledged; None for what was taken before. Where
            storing fails, this object is ahead of the journal: drop it and restore another.

        Raises:
            Conflict: of a stage that is over or not begun, or another content than before.
            Forbidden: a box that is not in the round, or keys and signatures that are not its own.
            ProtocolError, CorruptContent: a message with a fault; the device counts as lost until it sends a sound one.
        """
        if self.stage in {"done", "excluded"}:
            raise Conflict(f"the masked round is {self.stage}{': ' * bool(self.reason)}{self.reason}; nothing is taken")
        message: DeviceMessage = decoded(content, DeviceMessage, most_bytes=self.most_bytes)
        is_of_stage = type(message) is KINDS[self.stage]
        if not is_of_stage:
            if self._was_taken(box_id, message):
                return None
            is_of_stage = self.stage == "unmask" and isinstance(message, Consent)  # a late one helps too
        if not is_of_stage:
            raise Conflict(f"the masked round is at stage {self.stage}; another stage's message came: ask what is next")
        taken = self._judged(box_id, message)
        if taken is None:
            return None
        entry = Entry(box_id=box_id, taken=taken)
        self._apply(entry)
        return entry.to_bytes()

    def close(self) -> bytes:
        """End the stage with who answered: the next stage begins, or the round is excluded.

        Returns:
            The journal's entry, to be stored before anybody is told.

        Raises:
            Conflict: the round has ended.
        """
        if self.stage in {"done", "excluded"}:
            raise Conflict(f"the masked round is {self.stage} already")
        entry = Entry(box_id="", taken=Closed())
        self._apply(entry)
        return entry.to_bytes()

    def message_for(self, box_id: str) -> bytes | None:
        """What a box is to answer at this stage; None where it waits, or did not come this far."""
        members = self.members
        index = None if members is None else members.index_of(box_id)
        if members is None or index is None or self.stage in {"done", "excluded"}:
            return None
        if self.stage == "share":
            return encoded(Roster(adverts=members.adverts))
        if index not in self.dealt:
            return None
        sharers = tuple(sorted(self.dealt))
        if self.stage == "mask":
            return encoded(Delivery(sharers=sharers, parcels=self._parcels(members, index)))
        live = tuple(sorted(self.live))
        if index not in self.consents:
            around = [one for one in members.graph.neighbours(index) if one in self.live]
            return encoded(LiveSet(live=live, signatures=tuple(self.masked[one].signature for one in around)))
        if self.stage == "consent":
            return None
        consents = tuple(Signed(index=one, signature=signed) for one, signed in sorted(self.consents.items()))
        dead = tuple(one for one in sharers if one not in self.live)
        return encoded(UnmaskCall(live=live, dead=dead, consents=consents[: members.plan.quorum]))

    def _parcels(self, members: Members, holder: int) -> tuple[Parcel, ...]:
        parcels = []
        for dealer in members.graph.neighbours(holder):
            dealt = self.dealt.get(dealer)
            if dealt is not None:
                holders = members.graph.holders(dealer)
                place = holders.index(holder)
                behind = int(holder > dealer)  # the dealer is a holder of its own, but sends itself no parcel
                sealed = dealt.sealed[place - behind]
                parcels.append(Parcel(sealed=sealed, fingerprints=dealt.fingerprints[place]))
        return tuple(parcels)

    def _was_taken(self, box_id: str, message: DeviceMessage) -> bool:
        """Whether this is what the box sent at an earlier stage: it did not hear that it was taken."""
        index = None if self.members is None else self.members.index_of(box_id)
        if isinstance(message, Advert):
            return self._adverts.get(box_id) == message
        if index is None or isinstance(message, Reveal):
            return False
        if isinstance(message, Dealt):
            return self.dealt.get(index) == message
        if isinstance(message, Masked):
            return index in self.masked and self.masked[index].sha256 == hashlib.sha256(message.payload).digest()
        return index in self.consents and self._is_consent(index, message)

    def _is_consent(self, index: int, message: Consent) -> bool:
        signed = self.roster.live_bytes(sorted(self.dealt), sorted(self.live))
        return self.roster.is_signed_by(index, message.signature, signed)

    def _judged(self, box_id: str, message: DeviceMessage) -> Taken | None:
        """What is kept of a message of this stage; None where it was taken before."""
        if isinstance(message, Advert):
            return self._judged_advert(box_id, message)
        members = self.roster
        index = members.index_of(box_id)
        if index is None or (self.stage != "share" and index not in self.dealt):
            raise Forbidden(f"box {box_id} is not in this stage of the masked round: it waits for the next round")
        before: Taken | None
        taken: Taken
        if isinstance(message, Dealt):
            before, taken = self.dealt.get(index), self._judged_dealt(index, message)
        elif isinstance(message, Masked):
            before, taken = self.masked.get(index), self._judged_masked(index, message)
            if before is not None and before.sha256 == taken.sha256:
                return None  # a signature differs each time that the same is signed
        elif isinstance(message, Consent):
            if not self._is_consent(index, message):
                raise Forbidden(f"box {box_id} signed another live set, or another key did: it counts as lost")
            if index in self.consents:
                return None
            before, taken = None, message
        else:
            before, taken = self.reveals.get(index), self._judged_reveal(index, message)
        if before is not None and before != taken:
            raise Conflict(f"box {box_id} sent another message of stage {self.stage} before; the first one counts")
        return taken if before is None else None

    def _judged_advert(self, box_id: str, advert: Advert) -> Advert | None:
        if self._adverts.get(box_id) == advert:
            return None
        if self._n_adverts[box_id] >= MOST_ADVERTS:  # a box that began anew has other keys: the newest ones count
            raise Conflict(f"box {box_id} advertised {MOST_ADVERTS} keys for this attempt before; the last ones count")
        if box_id not in self._adverts and len(self._adverts) >= MAX_DEVICES:
            raise TooLarge(f"a masked round has {MAX_DEVICES} devices at most: this one waits for the next round")
        keys = {advert.cipher_key, advert.mask_key}
        if any(keys & {one.cipher_key, one.mask_key} for other, one in self._adverts.items() if other != box_id):
            raise BadMessage(f"box {box_id} advertises another box's key: leave it out")
        if check_advert(advert, self.task, self._listed) != box_id:
            raise Forbidden(f"box {box_id} brought keys of another box")
        return advert

    def _judged_dealt(self, index: int, dealt: Dealt) -> Dealt:
        members = self.roster
        if dealt.roster_digest != members.digest:
            raise CorruptContent("shares for another roster: fetch the roster of this attempt and deal again")
        n_neighbours = members.plan.degree
        if len(dealt.sealed) != n_neighbours or len(dealt.fingerprints) != n_neighbours + 1:
            raise BadMessage(f"shares for {len(dealt.sealed)} neighbours; device {index} has {n_neighbours}")
        return dealt

    def _judged_masked(self, index: int, masked: Masked) -> MaskedDigest:
        members = self.roster
        signed = members.masked_bytes(sorted(self.dealt))
        if not members.is_signed_by(index, masked.signature, signed):
            raise Forbidden(
                f"device {index} did not sign that it is masked with those who dealt: it was told others, so that its "
                "masks would not cancel out, or another key signed; it counts as lost"
            )
        check_packed(masked.payload, self.task.n_masked, members.bits)
        return MaskedDigest(sha256=hashlib.sha256(masked.payload).digest(), signature=masked.signature)

    def _judged_reveal(self, index: int, reveal: Reveal) -> Reveal:
        dealers = self.dealers_to(index)
        if len(reveal.shares) != len(dealers):
            raise BadMessage(f"{len(reveal.shares)} shares; device {index} holds them of {len(dealers)} devices")
        for dealer, share in zip(dealers, reveal.shares, strict=True):
            if share and not self._fits(dealer, index, share):
                raise CorruptContent(f"device {index} reveals a wrong share of device {dealer}: it counts as lost")
        return reveal

    def dealers_to(self, holder: int) -> dict[int, int]:
        """Whose shares a device holds, by index ascending, each with its place in what the device reveals."""
        found = self._dealers.get(holder)
        if found is None:
            dealers = (one for one in self.roster.graph.holders(holder) if one in self.dealt)
            found = self._dealers[holder] = {one: place for place, one in enumerate(dealers)}
        return found

    def _fits(self, dealer: int, holder: int, share: bytes) -> bool:
        place = self.roster.graph.holders(dealer).index(holder)
        pair = self.dealt[dealer].fingerprints[place]
        kind, wanted = (b"seed", pair.seed) if dealer in self.live else (b"secret", pair.secret)
        return is_element(share) and fingerprint(self.roster, share, kind, dealer, holder) == wanted

    def shares_of(self, dealer: int) -> dict[int, bytes]:
        """A threshold of the revealed shares of a device's one secret, by their points; fewer where too few came."""
        found: dict[int, bytes] = {}
        for holder in self.roster.graph.holders(dealer):
            reveal = self.reveals.get(holder)
            if reveal is not None and len(found) < self.roster.plan.threshold:
                share = reveal.shares[self.dealers_to(holder)[dealer]]
                if share:
                    found[holder + 1] = share
        return found

    def _lack(self) -> str:
        """What the stage lacks to be closed well; empty where nothing."""
        n_came, least = len(self._adverts), self.task.least_devices
        if self.members is not None:
            least = self.members.least_live
            n_came = {"share": len(self.dealt), "mask": len(self.masked)}.get(self.stage, len(self.consents))
        if self.stage == "mask" and n_came >= least:
            n_came = len(self._core())
        if self.stage == "unmask" and len(self.reveals) < self.roster.plan.threshold:
            return f"the secrets of devices have too few shares, {len(self.reveals)} came"
        if self.stage == "unmask":
            bare = [one for one in self.dealt if len(self.shares_of(one)) < self.roster.plan.threshold]
            if not bare:
                return ""
            named = ", ".join(self.roster.box_ids[one] for one in bare[:3])
            return f"the secrets of {len(bare)} devices ({named}, …) have too few shares, {len(self.reveals)} came"
        wanted = self.roster.plan.quorum if self.stage == "consent" else least
        return "" if n_came >= wanted else f"{n_came} devices came through stage {self.stage}, {wanted} are wanted"

    def _core(self) -> frozenset[int]:
        return self.roster.graph.core(self.masked)

    def _apply(self, entry: Entry) -> None:
        taken = entry.taken
        if isinstance(taken, Closed):
            self._closed()
            return
        if isinstance(taken, Advert):
            self._adverts[entry.box_id] = taken
            self._n_adverts[entry.box_id] += 1
            return
        index = self.roster.index_of(entry.box_id)
        if index is None:
            raise CorruptContent("the journal of a masked round names a box that is not on its roster: exclude it")
        if isinstance(taken, Dealt):
            self.dealt[index] = taken
        elif isinstance(taken, MaskedDigest):
            self.masked[index] = taken
        elif isinstance(taken, Consent):
            self.consents[index] = taken.signature
        else:
            self.reveals[index] = taken

    def _closed(self) -> None:
        lack = self._lack()
        if not lack and self.stage == "advertise":
            adverts = tuple(self._adverts[box_id] for box_id in sorted(self._adverts))
            try:
                self.members = Members(self.task, adverts)
            except BadMessage as exc:
                lack = str(exc)
        if not lack and self.stage == "mask":
            self.live = self._core()
        self.stage = "excluded" if lack else STAGES[STAGES.index(self.stage) + 1]
        self.reason = lack
