"""What the doctor sees of a box's place in its fleet: clock, key, enrolment, gateway, trust, and what seals samples."""

import asyncio
import os
import time
from pathlib import Path
from typing import Final

import msgspec

from edge_agent.living.patient import Patient
from edge_agent.samples.vault import CREDENTIAL, CREDENTIALS_VARIABLE, KEY_FILE, TPM_FILE
from edge_agent.trust.identity import BoxKey
from edge_agent.trust.machine import this_machine
from edge_agent.trust.trusted_time import BUILT_S
from hybrid.cli.doctor.check import Check, failed, passed, warned
from hybrid.errors import HybridError, LinkError
from hybrid.fleet.trust_bundle import opened

_WITHIN_S: Final = 3.0
_APART_S: Final = 300.0


class _Kept(msgspec.Struct, frozen=True):
    time_s: float


def clock(box: Patient) -> Check:
    """The clock, against the last time that the gateway signed."""
    now_s = time.time()
    kept = box.record("time.json", _Kept)
    trusted_s = max(BUILT_S, kept.time_s if kept is not None else 0.0)
    shown = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now_s))
    if now_s < trusted_s - _APART_S:
        when = time.strftime("%Y-%m-%d", time.gmtime(trusted_s))
        fix = "the agent needs no right clock, but logs and TLS of other programs do: timedatectl set-ntp true"
        return warned("clock", f"{shown} is before {when}, which is known to be past", fix, now_s=round(now_s))
    return passed("clock", shown, now_s=round(now_s))


def identity(box: Patient) -> Check:
    """The box's key and installation."""
    key, installation = _key(box), box.installation
    path = box.data / "identity" / "box.key"
    if key is None and box.enrolment is None:
        return passed("identity", "not enrolled, no key yet", enrolled=False)
    if key is None:
        fix = "restore identity/box.key, or enrol it as a new box: hybrid agent enroll --anew TOKEN"
        return failed("identity", "the box is enrolled, but its key is lost or damaged", fix)
    if path.stat().st_mode & 0o077:
        return failed(
            "identity", f"{path} can be read by others", f"chmod 0600 {path}; then enrol it anew: it may be known"
        )
    if installation is not None and this_machine().is_another(installation.machine):
        fix = "start the agent: it draws a new epoch; if this is a copy of a card that still runs, enrol it with --anew"
        return warned("identity", f"box {key.box_id[:8]}… was installed on another machine", fix)
    return passed("identity", f"box {key.box_id}", box_id=key.box_id)


def enrolment(box: Patient) -> Check:
    """Whether the box belongs to a fleet, and what the gateway says of it."""
    found, key = box.enrolment, _key(box)
    if found is None:
        fix = (
            "hybrid agent enroll TOKEN (a token: `hybrid fleet token create` on the gateway); without: it serves alone"
        )
        return warned("enrolment", "this box belongs to no fleet", fix, enrolled=False)
    if key is not None and key.box_id != found.box_id:
        fix = "restore identity/ from one backup, or enrol it anew: hybrid agent enroll --anew TOKEN"
        return failed("enrolment", "key and enrolment are of two different boxes", fix)
    admission = str(box.part("access").get("admission") or "")
    tags = ",".join(f"{name}={value}" for name, value in sorted(found.tags.items()))
    seen = f"{found.name or found.box_id[:8]} of {found.url or 'a gateway that is looked for'}"
    seen += f", tags {tags}" if tags else ""
    facts = {"enrolled": True, "admission": admission or None, "has_root": bool(found.root_sha256)}
    if admission in ("waiting", "quarantined", "revoked"):
        fix = {
            "waiting": "a person must admit it: hybrid fleet boxes admit BOX",
            "quarantined": "two boxes use one key, or it came from a backup: hybrid fleet alarms, then admit or revoke",
            "revoked": "it was put out of the fleet; enrol it with a new token: hybrid agent enroll --anew TOKEN",
        }[admission]
        return failed("enrolment", f"{seen}: {admission}", fix, **facts)
    return passed("enrolment", f"{seen}" + (f": {admission}" if admission else ""), **facts)


def gateway(box: Patient) -> Check:
    """Whether the gateway can be reached, and is the one that this box believes."""
    from hybrid.transport.fleet_hello import meet

    found = box.enrolment
    if box.config.gateway == "none":
        return passed("gateway", "set to none: this box serves alone", url=None)
    if found is None:
        return passed("gateway", "none is needed before the box is enrolled", url=None)
    named = box.config.gateway.partition(",")[0].strip()  # of several the agent asks the first one
    url = named if named not in ("", "auto") else found.url
    url = url or str(box.part("access").get("gateway") or "")
    if not url:
        return warned(
            "gateway", "its address is not known; the agent looks for it", "name it: setting gateway", url=None
        )
    began_s = time.monotonic()
    try:
        met = asyncio.run(meet(url, bytes.fromhex(found.authority_sha256), timeout_s=_WITHIN_S))
    except LinkError as exc:
        untrusted = exc.code == "gateway_untrusted"
        fix = exc.advice or ("ask who changed the gateway or its address" if untrusted else "check network and address")
        return (failed if untrusted else warned)("gateway", str(exc), fix, url=url, code=exc.code)
    except HybridError as exc:
        return warned("gateway", str(exc), exc.advice or f"hybrid explain {exc.code}", url=url, code=exc.code)
    took_s = time.monotonic() - began_s
    return passed("gateway", f"{url} proved who it is in {1e3 * took_s:.0f} ms", url=url, protocol=met.protocol)


def trust(box: Patient) -> Check:
    """Whose signatures count here."""
    found = box.enrolment
    if found is None:
        return passed("trust", "nobody's before the box is enrolled", has_root=None)
    if not found.root_sha256:
        fix = "for signed models only: hybrid keys root, and tokens without --no-root"
        return warned("trust", "a fleet without a root: whatever the gateway assigns is installed", fix, has_root=False)
    envelope = box.content("trust.json")
    if envelope is None:
        fix = "hybrid fleet trust set on the gateway; the box asks for it by itself, and installs nothing until then"
        return warned("trust", "there is a root, but no trust bundle came yet", fix, has_root=True)
    try:
        bundle = opened(envelope, bytes.fromhex(found.root_sha256))
    except HybridError as exc:
        return failed("trust", f"the trust bundle does not check out: {exc}", "connect the box: it fetches it anew")
    n_publishers, n_rounds = len(bundle.trusted("publisher")), len(bundle.trusted("rounds"))
    seen = f"bundle {bundle.sequence}: {n_publishers} publisher(s), {n_rounds} for rounds"
    facts = {"has_root": True, "sequence": bundle.sequence, "n_publishers": n_publishers}
    if not n_publishers:
        return warned(
            "trust", seen, "no version will be installed: delegate to a publisher (hybrid keys delegate)", **facts
        )
    return passed("trust", seen, **facts)


def sealing(box: Patient) -> Check:
    """What the kept samples and queued inputs are sealed with."""
    folder = box.data / "samples"
    given = os.environ.get(CREDENTIALS_VARIABLE)
    said = [one for one in (box.status or {}).get("problems", []) if one.get("code") == "vault_key_on_disk"]
    if box.status is not None:
        on_disk = bool(said)
    else:
        has_credential = given is not None and (Path(given) / CREDENTIAL).is_file()
        on_disk = (folder / KEY_FILE).exists() and not has_credential and not (folder / TPM_FILE).exists()
    if on_disk:
        fix = "give it a key that is not on the disk: docs/operating.md, section Keys"
        return warned("sealing", "samples are sealed, but the key lies beside them: a stolen disk is readable", fix)
    if box.status is None and not folder.exists():
        return passed("sealing", "nothing was kept yet")
    return passed("sealing", "the key is not on the disk")


def _key(box: Patient) -> BoxKey | None:
    content = box.content("box.key")
    try:
        return BoxKey.parse(content) if content is not None else None
    except ValueError:
        return None
