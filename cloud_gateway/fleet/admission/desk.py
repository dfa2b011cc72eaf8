"""The fleet's front desk: who asks, who is let in, and who is not any more.

Design: each call is a method that takes a message and gives one, knowing nothing of HTTP, so that the simulation asks
the very same desk. Everything that a call changes is one transaction, on the disk before its answer leaves.
"""

import secrets
import sqlite3
from collections.abc import Callable
from typing import Final

from cloud_gateway.fleet.admission.access import LIFE_S, AccessTokens
from cloud_gateway.fleet.admission.alarms import Alarms, AuditLog
from cloud_gateway.fleet.admission.authority import Authority
from cloud_gateway.fleet.admission.boxes import Box, Boxes
from cloud_gateway.fleet.admission.enrolment import EnrolmentTokens, EnrolmentWish, refusal
from cloud_gateway.fleet.admission.trust_desk import TrustDesk
from hybrid.errors import BadMessage, Forbidden, NotAdmitted, NotFound, StaleNonce, Unauthenticated, VersionUnsupported
from hybrid.fleet.enrolment_token import EnrolmentToken
from hybrid.fleet.messages import PROTOCOL, AccessAnswer, AccessCall, Admission, EnrollAnswer, EnrollCall
from hybrid.fleet.signing import access_bytes, box_id_of, check_box_key, enroll_bytes, is_signed
from hybrid.fleet.trust_bundle import TrustBundle
from hybrid.hosting.database import Database
from hybrid.hosting.identity import Identity

PROTOCOLS_BACK: Final = 2
_MAX_SAID: Final = 200
_LIVES_KEPT: Final = 1000
_HEX: Final = frozenset("0123456789abcdef")


class FleetDesk:
    """Enrolment, access and admission of a fleet's boxes.

    Its methods may be called from any thread; all but `hello` and those that read memory write to the disk.

    Attributes:
        authority: who this gateway is.
        boxes: the registry.
        tokens: for enrolment.
        access: tokens that boxes were lent.
        alarms: what people should look at.
        audit: who did what.
        trust: the newest trust bundle.
        seen: called with a box's id after each good access call.
        changed: called after each change that must not be lost.
    """

    def __init__(
        self,
        database: Database,
        authority_key: bytes,
        *,
        wall_s: Callable[[], float],
        draw: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._database = database
        self._wall_s = wall_s
        self.authority = Authority(authority_key, wall_s=wall_s, draw=draw)
        self.boxes = Boxes(database)
        self._lock = self.boxes.lock
        self.tokens = EnrolmentTokens(database, wall_s, draw)
        self.access_tokens = AccessTokens(database, self.boxes, wall_s, draw)
        self.alarms = Alarms(database, wall_s)
        self.audit = AuditLog(database, wall_s)
        self.trust = TrustDesk(database, wall_s)
        self.seen: Callable[[str], None] = _nobody
        self.changed: Callable[[], None] = _nothing
        self.boxes.on_change(lambda _: self.changed())

    # -- what boxes ask ---------------------------------------------------------------------------------------------

    def enroll(self, call: EnrollCall, spki_sha256: bytes) -> EnrollAnswer:
        """Let a key in, or say again that it was.

        Raises:
            Forbidden: a token that does not let it in; never says why.
            BadMessage, StaleNonce, Unauthenticated, VersionUnsupported: a call that is not sound.
        """
        check_protocol(call.protocol)
        self.authority.issued_s(call.nonce, spki_sha256)
        check_box_key(call.box_key)
        _check_hex("epoch", call.epoch)
        message = enroll_bytes(_text(call.token_id), call.nonce, spki_sha256, call.epoch)
        if not is_signed(call.box_key, call.signature, message):
            raise Unauthenticated("the enrolment is not signed by the key that it is for; the box must sign it")
        with self._lock:
            answer = self._enroll(call)
            self.authority.spend(call.nonce)
        return answer

    def _enroll(self, call: EnrollCall) -> EnrollAnswer:
        box_id = box_id_of(call.box_key)
        with self._database.writing() as db:
            token = self.tokens.known(db, call.token_id, call.secret)
            box = self.boxes.find(box_id)
            if box is not None and self.tokens.has_enrolled(db, token.id, box_id):
                return self._told(box, has_root=token.has_root)
            self.tokens.check_free(token)
            if box is not None and box.admission in ("revoked", "quarantined"):
                raise refusal()
            software, machine = _said(call.software), _said(call.machine)
            if box is None:
                admission: Admission = "waiting" if token.approve else "admitted"
                box = Box(
                    id=box_id,
                    key=call.box_key,
                    name=self.boxes.free_name(call.name, box_id),
                    tags=token.tags,
                    admission=admission,
                    token_id=token.id,
                    enrolled_s=self._wall_s(),
                    reason="waits for a person's approval" if token.approve else "",
                    software=software,
                    machine=machine,
                )
                self.boxes.insert(db, box)
            else:  # a known key with a new token: its record was lost on the box, or it is to have other tags
                new = {"token_id": token.id, "tags": token.tags, "software": software, "machine": machine}
                box = self.boxes.within(db, box_id, **new)
            self.tokens.note(db, token.id, box_id)
            self.audit.within(db, "box", "enrolled", box_id=box_id, detail=f"token {token.id}, {box.admission}")
        self.boxes.take(box)
        return self._told(box, has_root=token.has_root)

    def _told(self, box: Box, *, has_root: bool) -> EnrollAnswer:
        trust = self.trust.newest() if has_root else None
        return EnrollAnswer(
            box_id=box.id,
            admission=box.admission,
            name=box.name,
            tags=box.tags,
            trust=None if trust is None else trust[1],
        )

    def access(self, call: AccessCall, spki_sha256: bytes) -> AccessAnswer:
        """A token of one hour for an admitted box; for any other its admission alone.

        Raises:
            NotFound: this fleet knows no such box.
            BadMessage, StaleNonce, Unauthenticated, VersionUnsupported: a call that is not sound.
        """
        check_protocol(call.protocol)
        issued_s = self.authority.issued_s(call.nonce, spki_sha256)
        _check_hex("epoch", call.epoch)
        _check_hex("run", call.run)
        box = self.boxes.find(_text(call.box_id))
        if box is None:
            raise NotFound(
                "this gateway knows no such box; its fleet was lost or is another one: enrol the box again",
                advice="Restore the gateway's DATA/fleet from a backup, or enrol the box with a new token.",
            )
        message = access_bytes(box.id, call.epoch, call.run, call.nonce, spki_sha256)
        if not is_signed(box.key, call.signature, message):
            raise Unauthenticated("the access call is not signed by that box's key; the box must sign it")
        with self._lock:
            answer = self._access(call, box.id, issued_s)
            self.authority.spend(call.nonce)
        if answer.token:
            self.seen(box.id)
        return answer

    def _access(self, call: AccessCall, box_id: str, issued_s: float) -> AccessAnswer:
        box = self._known(box_id)
        if box.admission != "admitted":
            return AccessAnswer(admission=box.admission)
        is_new_life = (call.epoch, call.run) != (box.epoch, box.run)
        with self._database.writing() as db:
            past = self._past(db, box, call) if is_new_life and not box.pardoned else ""
            if past:
                # Signed before the newer one began, it is a letter that came late, and no sign of life.
                if issued_s < box.since_s:
                    raise StaleNonce("this call was signed before a newer run of the box began; ask for a new hello")
                changed = self._quarantine(db, box, f"{past} {getattr(call, past)[:8]}", past)
            else:
                life = self._begin_life(db, box, call) if is_new_life else {}
                changed = self.boxes.within(db, box_id, seen_s=self._wall_s(), software=_said(call.software), **life)
                token, count = self.access_tokens.lend(db, box_id, is_new_life=is_new_life)
        self.boxes.take(changed)
        if past:
            self.access_tokens.end(box_id)
            self.alarms.recount()
            return AccessAnswer(admission=changed.admission)
        count()
        return AccessAnswer(admission="admitted", token=token.text, expires_in_s=LIFE_S)

    def _known(self, box_id: str) -> Box:
        box = self.boxes.find(box_id)
        if box is None:
            raise NotFound("this gateway knows no such box any more; enrol it again")
        return box

    def _past(self, db: sqlite3.Connection, box: Box, call: AccessCall) -> str:
        """What of this call belongs to a past that another one has followed; empty for nothing."""
        for word, mine, its in (("run", call.run, box.run), ("epoch", call.epoch, box.epoch)):
            query = f"SELECT 1 FROM life WHERE box_id = ? AND {word} = ? LIMIT 1"  # noqa: S608 (two fixed words)
            if mine != its and db.execute(query, (box.id, mine)).fetchone() is not None:
                return word
        return ""

    def _quarantine(self, db: sqlite3.Connection, box: Box, seen: str, past: str) -> Box:
        what = "runs on two machines at once" if past == "run" else "came back as it was before (an old image?)"
        reason = f"its key {what}: {seen} was seen again after a newer one"
        db.execute("DELETE FROM access WHERE box_id = ?", (box.id,))
        self.alarms.within(db, "clone", box.id, f"{box.name}: {reason}")
        self.audit.within(db, "gateway", "quarantined", box_id=box.id, detail=reason)
        return self.boxes.within(db, box.id, admission="quarantined", reason=reason)

    def _begin_life(self, db: sqlite3.Connection, box: Box, call: AccessCall) -> dict[str, object]:
        now_s = self._wall_s()
        db.execute(
            "INSERT INTO life (box_id, epoch, run, at_s) VALUES (?, ?, ?, ?)", (box.id, call.epoch, call.run, now_s)
        )
        db.execute(
            "DELETE FROM life WHERE box_id = ? AND id NOT IN "
            "(SELECT id FROM life WHERE box_id = ? ORDER BY id DESC LIMIT ?)",
            (box.id, box.id, _LIVES_KEPT),
        )
        return {"epoch": call.epoch, "run": call.run, "since_s": now_s, "pardoned": False}

    # -- who asks ---------------------------------------------------------------------------------------------------

    def box(self, identity: Identity) -> Box:
        """The admitted box behind a verified token.

        Raises:
            Forbidden: it is no box. NotAdmitted: it was quarantined or revoked meanwhile.
        """
        identity.require("fleet")
        box = self.boxes.find(identity.box_id)
        if box is None:
            raise Forbidden("this call is for boxes of the fleet, by their own access tokens", right="fleet")
        if box.admission != "admitted":
            raise NotAdmitted(f"box {box.name} is {box.admission}: {box.reason}", admission=box.admission)
        return box

    def check_epoch(self, identity: Identity, epoch: str) -> Box:
        """The box, when the epoch of its call is that of its last access call.

        Raises:
            Unauthenticated: it is another one; the box asks for access anew and sends again.
            Forbidden, NotAdmitted: see `box`.
        """
        box = self.box(identity)
        if epoch != box.epoch:
            raise Unauthenticated(
                "this call's epoch is not the one that the access token was given for; ask for access"
            )
        return box

    # -- what people do ---------------------------------------------------------------------------------------------

    def make_token(self, wish: EnrolmentWish, who: str) -> EnrolmentToken:
        """A new enrolment token.

        Raises:
            BadMessage: a wish that makes no sense, or a fleet that has no root yet and shall have one.
        """
        trust = self.trust.root_sha256()
        if wish.needs_root and trust is None:
            raise BadMessage(
                "this fleet has no trust bundle yet: set one, or say that it shall have none",
                advice="Set one: hybrid fleet trust set FILE. Or without a root: hybrid fleet token create --no-root.",
            )
        token = self.tokens.create(
            wish,
            authority_sha256=self.authority.fingerprint,
            root_sha256=trust if wish.needs_root else None,
            who=who,
        )
        self.changed()
        self.audit.note(who, "token.created", detail=f"{token.id} for {wish.count}")
        return token

    def revoke_token(self, token_id: str, who: str) -> None:
        """End an enrolment token. Raises `NotFound`."""
        self.tokens.revoke(token_id)
        self.changed()
        self.audit.note(who, "token.revoked", detail=token_id)

    def set_trust(self, envelope: bytes, who: str) -> TrustBundle:
        """Hand out a newer trust bundle from now on. Raises as `TrustDesk.take`."""
        bundle = self.trust.take(envelope)
        self.changed()
        self.audit.note(who, "trust.set", detail=f"sequence {bundle.sequence}, {len(bundle.keys)} keys")
        return bundle

    def admit(self, box_id: str, who: str) -> Box:
        """Let a box in: one that waits, or one that was quarantined or revoked; whoever calls next is the box.

        Raises:
            NotFound: no such box.
        """
        return self._judge(box_id, who, "admitted", "admitted")

    def revoke(self, box_id: str, who: str, reason: str = "") -> Box:
        """Let a box out, now: its tokens end, on open channels too.

        Raises:
            NotFound: no such box.
        """
        return self._judge(box_id, who, "revoked", "revoked", reason or f"revoked by {who}")

    def _judge(self, box_id: str, who: str, admission: Admission, what: str, reason: str = "") -> Box:
        with self._lock:
            before = self._known(box_id)
            pardoned = admission == "admitted" and (before.pardoned or before.admission in ("quarantined", "revoked"))
            with self._database.writing() as db:
                box = self.boxes.within(db, box_id, admission=admission, reason=reason, pardoned=pardoned)
                if admission != "admitted":
                    db.execute("DELETE FROM access WHERE box_id = ?", (box_id,))
                self.audit.within(db, who, what, box_id=box_id, detail=reason)
            self.boxes.take(box)
            if admission != "admitted":
                self.access_tokens.end(box_id)
        return box


def check_protocol(theirs: int) -> None:
    """Return if this gateway speaks a box's version of the calls.

    Raises:
        VersionUnsupported: it does not; both versions are named.
    """
    if not max(1, PROTOCOL - PROTOCOLS_BACK) <= theirs <= PROTOCOL:
        raise VersionUnsupported(
            f"the box speaks version {theirs} of the fleet's calls, this gateway "
            f"{max(1, PROTOCOL - PROTOCOLS_BACK)} to {PROTOCOL}; upgrade the older side",
            mine=PROTOCOL,
            theirs=theirs,
        )


def _check_hex(word: str, text: str) -> None:
    if len(text) != 32 or set(text) - _HEX:
        raise BadMessage(f"the {word} is {text[:40]!r}; 32 hex digits are wanted")


def _text(text: str) -> str:
    """Text that can be encoded and stored: a lone surrogate can be neither."""
    return text.encode("utf-8", "replace").decode()


def _said(text: str) -> str:
    """What a box says of itself, as people can read it in a list."""
    return "".join(letter for letter in _text(text[:_MAX_SAID]) if letter.isprintable())


def _nobody(box_id: str) -> None:
    """Nobody wants to know."""


def _nothing() -> None:
    """Nobody wants to know."""
