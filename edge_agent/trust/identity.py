"""Who this box is: its key, its installation's epoch, this run of the agent, and where it was enrolled."""

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from edge_agent.disk import Disk
from edge_agent.part import Problem
from edge_agent.trust.machine import Machine
from edge_agent.trust.record_file import RecordFiles, json_of
from hybrid.errors import Conflict, Forbidden, StorageError
from hybrid.fleet.signing import box_id_of
from hybrid.fleet.trust_bundle import TrustBundle, opened

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

FOLDER: Final = "identity"
KEY_FILE: Final = "box.key"
INSTALLATION_FILE: Final = "installation.json"
ENROLMENT_FILE: Final = "enrolment.json"
TRUST_FILE: Final = "trust.json"
NEXT_KEY_FILE: Final = "next.key"
TOKEN_FILE: Final = "enrolment.token"  # noqa: S105 (a file's name)


class Installation(msgspec.Struct, frozen=True, kw_only=True):
    """One installation of the agent on one machine.

    Attributes:
        epoch: 32 hex digits, drawn at random.
        machine: on which it was drawn.
    """

    epoch: str
    machine: Machine


class Enrolment(msgspec.Struct, frozen=True, kw_only=True):
    """Where this box belongs.

    Attributes:
        url: where its gateway was met last; a hint.
        is_discovered: the token named no URL: the gateway is looked for on the network as well.
        authority_sha256: hex; the one gateway that this box believes.
        root_sha256: hex; whose trust bundles it takes; empty for a fleet without a root.
        box_id: what it is called there.
        name: the same for people.
        tags: as the gateway said last.
    """

    url: str
    authority_sha256: str
    box_id: str
    is_discovered: bool = False
    root_sha256: str = ""
    name: str = ""
    tags: dict[str, str] = {}


class BoxKey:
    """The box's private key; it never leaves the machine.

    Attributes:
        public_key: DER SubjectPublicKeyInfo.
        box_id: the box's id.
    """

    def __init__(self, key: "EllipticCurvePrivateKey") -> None:
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        self._key = key
        self.public_key = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.box_id = box_id_of(self.public_key)

    @classmethod
    def fresh(cls) -> "BoxKey":
        """A new P-256 key."""
        from cryptography.hazmat.primitives.asymmetric import ec

        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def parse(cls, content: bytes) -> "BoxKey":
        """The key in a PKCS 8 PEM.

        Raises:
            ValueError: there is none of this kind in it.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            key = load_pem_private_key(content, None)
        except (TypeError, UnsupportedAlgorithm) as exc:
            raise ValueError(str(exc)) from exc
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise ValueError("no P-256 key")
        return cls(key)

    @property
    def pem(self) -> bytes:
        """PKCS 8 PEM without a password."""
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def sign(self, message: bytes) -> bytes:
        """ECDSA with SHA-256, DER."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        return self._key.sign(message, ec.ECDSA(hashes.SHA256()))


class BoxIdentity:
    """What lies in `DATA/identity`, as this start of the agent found it.

    Attributes:
        files: the folder.
        epoch: of the installation.
        run: drawn at this start.
        key: the box's; None before its first enrolment, or when it was lost.
        enrolment: None while the box belongs nowhere.
        trust: the newest trust bundle; None where there is none (yet).
        had_root: a trust bundle lies here, readable or not: a box that lost its enrolment still believes no one.
        moved: this start found itself on another machine and drew a new epoch.
    """

    def __init__(
        self,
        data: Path,
        disk: Disk,
        machine: Machine,
        *,
        draw: Callable[[int], bytes] = secrets.token_bytes,
        wall_s: Callable[[], float] | None = None,
    ) -> None:
        """Reads a few small files, and writes one at the first start; blocking.

        Raises:
            StorageError: the disk cannot be read.
        """
        self.files = RecordFiles(data / FOLDER, disk, **({} if wall_s is None else {"wall_s": wall_s}))
        self.machine = machine
        self.run = draw(16).hex()
        self.moved = False
        self._draw = draw
        self.unwritten = ""
        self.key: BoxKey | None = None
        self.enrolment: Enrolment | None = None
        self.trust: TrustBundle | None = None
        self.had_root = False
        self.epoch = ""
        self.reload()
        self._settle()

    def reload(self) -> None:
        """Take up key, enrolment and trust bundle as they lie on the disk now."""
        self.key = self.files.load(KEY_FILE, BoxKey.parse)
        self.enrolment = self.files.load(ENROLMENT_FILE, json_of(Enrolment))
        enrolment = self.enrolment
        if enrolment is not None and not self.is_sound:
            self._finish_anew()
        self.trust = None
        self.had_root = self.files.has(TRUST_FILE)
        if enrolment is not None and enrolment.root_sha256:
            root = bytes.fromhex(enrolment.root_sha256)
            self.trust = self.files.load(TRUST_FILE, lambda content: _bundle(content, root))

    @property
    def is_sound(self) -> bool:
        """Whether the box can show who it is: it is enrolled, and holds the key of that enrolment."""
        return self.key is not None and self.enrolment is not None and self.key.box_id == self.enrolment.box_id

    def renew_epoch(self) -> None:
        """Draw a new epoch: these numbers were used before; blocking."""
        self._keep(Installation(epoch=self._draw(16).hex(), machine=self.machine))

    def make_key(self) -> BoxKey:
        """The box's key, made when there is none; blocking.

        Raises:
            Conflict: the key of an enrolment that stands is lost: a new one would make the box a stranger.
        """
        if self.key is not None:
            return self.key
        if self.enrolment is not None:
            raise Conflict(
                "this box is enrolled but its key is gone; restore identity/box.key, or give the box up and enrol it "
                "as a new one: hybrid agent enroll --anew TOKEN"
            )
        key = BoxKey.fresh()
        self.files.store(KEY_FILE, key.pem)
        self.key = key
        return key

    def next_key(self) -> BoxKey:
        """The key with which this becomes another box; kept, so that asking again asks with the same; blocking."""
        key = self.files.load(NEXT_KEY_FILE, BoxKey.parse)
        if key is None:
            key = BoxKey.fresh()
            self.files.store(NEXT_KEY_FILE, key.pem)
        return key

    def _finish_anew(self) -> None:
        """The enrolment is already that of the next key: this is another box from now on.

        Agent and command may do so at once: who comes second finds no next key any more, and the key in its place.
        """
        key = self.files.load(NEXT_KEY_FILE, BoxKey.parse)
        if key is None or self.enrolment is None or key.box_id != self.enrolment.box_id:
            self.key = self.files.load(KEY_FILE, BoxKey.parse)
            return
        self.files.store(KEY_FILE, key.pem)
        self.key = key
        self.files.remove(NEXT_KEY_FILE)

    def enrolled(self, enrolment: Enrolment, trust: bytes | None) -> None:
        """Keep where the box belongs from now on; what it was before, it is until this is on the disk; blocking.

        Raises:
            Forbidden, BadMessage, CorruptContent: the trust bundle is not of the root that the token named.
        """
        if enrolment.root_sha256 and trust is not None:
            self.take_trust(trust, bytes.fromhex(enrolment.root_sha256))
        is_another = self.enrolment is None or self.enrolment.box_id != enrolment.box_id
        self.files.store(ENROLMENT_FILE, msgspec.json.encode(enrolment))
        self.enrolment = enrolment
        if is_another and not enrolment.root_sha256:
            self.files.remove(TRUST_FILE)
            self.trust, self.had_root = None, False
        if not self.is_sound:
            self._finish_anew()
            self.renew_epoch()

    def take_trust(self, envelope: bytes, root_sha256: bytes | None = None) -> TrustBundle:
        """Keep a newer trust bundle; blocking.

        Raises:
            Forbidden: this box has no root, the bundle is of another one, or it is older than what was seen.
            BadMessage, CorruptContent: it is not sound.
        """
        if root_sha256 is None and self.enrolment is not None and self.enrolment.root_sha256:
            root_sha256 = bytes.fromhex(self.enrolment.root_sha256)
        if root_sha256 is None:
            raise Forbidden("this box was enrolled in a fleet without a root; it takes no trust bundle")
        same_root = self.trust is not None and self.trust.root_sha256 == root_sha256
        least = self.trust.sequence if self.trust is not None and same_root else 0
        bundle = opened(envelope, root_sha256, least_sequence=least)
        self.files.store(TRUST_FILE, envelope)
        self.trust = bundle
        return bundle

    def problems(self) -> list[Problem]:
        """What is wrong with it."""
        found = [
            Problem(
                code="identity_damaged",
                what=f"identity/{name} was damaged in both copies; it was set aside as {name}.corrupt-TIME",
                do="restore it from a backup, or enrol the box again with a new token: hybrid agent enroll TOKEN",
            )
            for name in dict.fromkeys(self.files.damaged)
        ]
        if self.enrolment is not None and not self.is_sound:
            found.append(
                Problem(
                    code="box_key_lost",
                    what="this box is enrolled but has not the key of that enrolment; it goes on with what it has",
                    do="restore identity/box.key, or enrol it as a new box: hybrid agent enroll --anew TOKEN",
                )
            )
        if self.unwritten:
            found.append(
                Problem(
                    code="storage",
                    what=f"the installation's epoch could not be written: {self.unwritten}",
                    do="make room, or mend the disk; every start counts as a new installation until then",
                )
            )
        return found

    def _settle(self) -> None:
        """The epoch of this installation on this machine."""
        found = self.files.load(INSTALLATION_FILE, json_of(Installation))
        if found is not None and len(found.epoch) == 32 and not self.machine.is_another(found.machine):
            self.epoch = found.epoch
            return
        self.moved = found is not None
        self._keep(Installation(epoch=self._draw(16).hex(), machine=self.machine))

    def _keep(self, installation: Installation) -> None:
        self.epoch = installation.epoch
        try:
            self.files.store(INSTALLATION_FILE, msgspec.json.encode(installation))
            self.unwritten = ""
        except StorageError as exc:  # a full disk must not keep a box from serving what it has
            self.unwritten = str(exc)


def _bundle(content: bytes, root_sha256: bytes) -> TrustBundle:
    from hybrid.errors import HybridError

    try:
        return opened(content, root_sha256)
    except HybridError as exc:
        raise ValueError(str(exc)) from exc
