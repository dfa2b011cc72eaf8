"""What the doctor sees of a box itself: folder, disk, memory, heat, engines, queue, models, the agent's own word."""

import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from devices.power_supply import is_on_battery
from edge_agent.disk import RealDisk
from edge_agent.install.records import SLOTS, decode
from edge_agent.install.sealed import unsealed
from edge_agent.install.shelf import RECORD
from edge_agent.link_rules import windows
from edge_agent.living import thermal
from edge_agent.living.crash_guard import SAFE_AFTER, CrashGuard
from edge_agent.living.link_policy import network_manager_metered
from edge_agent.living.patient import Patient
from hybrid.artifact.names import ATTACHMENTS_NAME
from hybrid.cli.doctor.check import Check, failed, passed, warned
from hybrid.errors import DiskFull, HybridError

_LOW_BYTES: Final = 500 << 20
_FULL_BYTES: Final = 64 << 20
_NEAR_CELSIUS: Final = 8.0
_LOW_MEMORY_BYTES: Final = 128 << 20
_LEAST_CLOCK: Final = 0.9
_NO_ROOM: Final = "make room on the disk: it is tried again by itself"


def service(box: Patient) -> Check:
    """Whether the agent runs, and what it complains of."""
    if box.trouble:
        return failed("service", f"its settings are refused: {box.trouble}", "mend the setting that is named")
    early = CrashGuard(box.data, RealDisk()).early()
    if box.address is None:
        seen = "no agent runs with this folder"
        seen += f"; its last {early} starts ended early" if early >= SAFE_AFTER else ""
        fix = "sudo systemctl start hybrid-agent, or `hybrid agent serve`; the log says why it ended"
        return warned("service", seen, fix, running=False, n_early=early)
    if box.status is None:
        fix = "sudo systemctl restart hybrid-agent; the watchdog does it by itself where systemd runs it"
        return failed(
            "service", f"process {box.address.pid} runs but does not answer: {box.silence}", fix, running=True
        )
    problems: list[dict[str, Any]] = box.status.get("problems", [])
    facts = {"running": True, "ready": bool(box.status.get("ready")), "n_problems": len(problems)}
    version, up_s = box.status.get("version"), float(box.status.get("uptime_s", 0.0))
    seen = f"hybrid {version} at {box.address.url}, up {_span(up_s)}, {len(box.status.get('models', []))} model(s)"
    if not problems:
        if facts["ready"]:
            return passed("service", seen, **facts)
        return warned("service", f"{seen}; not ready yet", "wait a minute and look again", **facts)
    first = problems[0]
    what = "; ".join(str(one.get("what")) for one in problems[:4])
    judge = failed if first.get("blocks") else warned
    return judge("service", f"{seen}; it says: {what}", str(first.get("do") or "see its log"), **facts)


def folder(box: Patient) -> Check:
    """The data folder: there, private, and everything in it owned by who owns it."""
    try:
        top = box.data.stat()
    except FileNotFoundError:
        fix = "name the agent's folder with --data (packages: /var/lib/hybrid-agent), or start the agent once"
        return failed("folder", f"{box.data} is not there", fix)
    except OSError as exc:
        return failed("folder", f"{box.data}: {exc.strerror}", "run this as the agent's user: sudo hybrid-agent doctor")
    strangers = [path for path in _some_files(box.data) if path.lstat().st_uid != top.st_uid]
    if strangers:
        fix = f"sudo chown -R --reference={box.data} {box.data}: commands were run as another user"
        return failed("folder", f"{strangers[0]} belongs to another user than the folder", fix)
    if top.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return warned("folder", f"{box.data} can be read by others", f"chmod 0700 {box.data}")
    return passed("folder", f"{box.data.absolute()}, private")


def disk(box: Patient) -> Check:
    """Room, and whether a byte can be written and kept."""
    try:
        with tempfile.TemporaryFile(dir=box.data) as file:
            file.write(b"-")
            file.flush()
            os.fsync(file.fileno())
        usage = shutil.disk_usage(box.data)
        inodes = os.statvfs(box.data)
    except OSError as exc:
        fix = "make room or mend the disk; a card that turned read-only is worn out: replace it"
        return failed("disk", f"{box.data} cannot be written: {exc.strerror}", fix)
    seen = f"{usage.free / 1e9:.1f} of {usage.total / 1e9:.1f} GB free"
    facts = {"free_bytes": usage.free, "total_bytes": usage.total}
    if usage.free < _FULL_BYTES:
        return failed("disk", seen, "remove what is not needed: new models and queued results are refused", **facts)
    if inodes.f_files and inodes.f_favail < 1000:
        return failed("disk", f"only {inodes.f_favail} more files fit", "remove small files", **facts)
    if usage.free < _LOW_BYTES:
        return warned("disk", seen, "make room before the next models come: an update needs a second copy", **facts)
    return passed("disk", seen, **facts)


def memory(box: Patient) -> Check:
    """Memory that is left, against what models may take."""
    import psutil

    from devices import machine

    limit_bytes = machine.facts().memory_limit_bytes
    free_bytes = int(psutil.virtual_memory().available)
    total_bytes = min(int(psutil.virtual_memory().total), limit_bytes or 1 << 62)
    budget_bytes = box.config.session_memory_bytes
    facts = {"free_bytes": free_bytes, "limit_bytes": limit_bytes, "budget_bytes": budget_bytes}
    seen = f"{free_bytes / 2**20:.0f} MiB free, models may take {budget_bytes / 2**20:.0f} of {total_bytes / 2**20:.0f}"
    if free_bytes < _LOW_MEMORY_BYTES:
        return warned("memory", seen, "end other programs, or assign smaller models", **facts)
    if budget_bytes > 0.8 * total_bytes:
        return warned("memory", seen, "set session_memory_bytes lower: the system would end the agent first", **facts)
    return passed("memory", seen, **facts)


def heat(_box: Patient) -> Check:
    """Whether the machine is too hot for its speed."""
    found = thermal.look()
    facts = {"celsius": found.celsius, "limit_celsius": found.limit_celsius, "clock_ratio": found.clock_ratio}
    if found.celsius is None:
        return passed("heat", "this machine tells no temperature", **facts)
    seen = f"{found.celsius:.0f} °C" + (f" of {found.limit_celsius:.0f}" if found.limit_celsius is not None else "")
    fix = "give it air or a heat sink, or run fewer models: requests take longer than planned"
    if found.limit_celsius is not None and found.celsius > found.limit_celsius - _NEAR_CELSIUS:
        return warned("heat", seen, fix, **facts)
    if found.clock_ratio < _LEAST_CLOCK:
        return warned("heat", f"{seen}; the clock is held at {found.clock_ratio:.0%}", fix, **facts)
    return passed("heat", seen, **facts)


def link(box: Patient) -> Check:
    """What metering, battery and hours hold back."""
    said = network_manager_metered()
    battery = is_on_battery()
    facts = {"metered": said, "on_battery": battery}
    told = {None: "nobody says whether the link is metered", True: "the link is metered", False: "not metered"}[said]
    seen = f"{told}; {'on battery' if battery else 'on mains'}"
    held = str(box.part("link").get("held") or "")
    if held:
        return warned("link", f"{seen}; {held}", "nothing to mend if you want it so", **facts)
    hours = box.config.transfer_hours
    return passed("link", f"{seen}; models travel {'at ' + hours if windows(hours) else 'at any hour'}", **facts)


def accelerator(box: Patient) -> Check:
    """Whether the engine that was asked for is there, and computes."""
    import onnxruntime

    has = [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
    wanted = box.config.provider
    facts = {"wanted": wanted, "has": " ".join(has)}
    on_cpu = [one for one in (box.status or {}).get("problems", []) if one.get("code") == "accelerator_failed"]
    if on_cpu:
        return warned("accelerator", str(on_cpu[0].get("what")), str(on_cpu[0].get("do")), **facts)
    if wanted == "cuda" and "CUDA" not in has:
        fix = 'install onnxruntime-gpu and its driver (docs/operating.md), or set provider = "cpu"'
        return failed("accelerator", "provider is cuda, but onnxruntime here has none", fix, **facts)
    return passed("accelerator", f"models run on {wanted} (there are {', '.join(has)})", **facts)


def outbox(box: Patient) -> Check:
    """What waits for the gateway."""
    path = box.data / "outbox" / "outbox.db"
    if box.status is not None:
        said = box.part("outbox")
        n_items, n_bytes = int(said.get("n_items", 0)), int(said.get("n_bytes", 0))
    elif not path.exists():
        return passed("outbox", "nothing was queued yet", n_items=0)
    else:
        try:
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=1.0)) as database:
                [sound] = database.execute("PRAGMA quick_check(1)").fetchone()
                n_items, n_bytes = database.execute("SELECT count(*), coalesce(sum(n_bytes), 0) FROM items").fetchone()
        except sqlite3.Error as exc:
            if "locked" in str(exc):
                return passed("outbox", "held by a running agent")
            sound = str(exc)
        if sound != "ok":
            fix = "start the agent: it sets the damaged file aside, saves what can be read, and begins anew"
            return warned("outbox", f"damaged: {sound}", fix)
    seen = f"{n_items} item(s), {n_bytes / 1e6:.1f} MB wait for the gateway"
    aside = sorted(path.parent.glob("*.corrupt-*"))
    if aside:
        seen += f"; {len(aside)} damaged file(s) were set aside"
        return warned("outbox", seen, f"look at the disk, then remove {aside[0].name}", n_items=n_items)
    return passed("outbox", seen, n_items=n_items, n_bytes=n_bytes)


def models(box: Patient) -> Check:
    """The slots of every model: one answers, complete, and what was refused."""
    home = box.data / "models"
    names = sorted(path.name for path in home.iterdir() if path.is_dir()) if home.is_dir() else []
    if not names:
        return passed("models", "none is assigned yet", n_models=0)
    told, bad, refused, n_removed, is_full = [], [], [], 0, False
    for name in names:
        try:
            slots = decode(unsealed((home / name / RECORD).read_bytes()), name)
        except (OSError, HybridError) as exc:
            bad.append(f"{name}: its record cannot be read ({exc})")
            continue
        if slots.phase == "removed":  # only its sequence is kept
            n_removed += 1
            continue
        held = slots.held(slots.answers) if slots.answers else None
        if held is None:
            bad.append(f"{name}: no version answers")
        elif missing := _missing(home / name / slots.answers):
            bad.append(f"{name}: {missing} of the version that answers is missing")
        else:
            told.append(f"{name}:{held.version} ({slots.phase})")
        if slots.failure is not None and slots.wanted is not None:
            became = "is put off" if slots.phase == "deferred" else "was refused"
            refused.append(f"{name}:{slots.wanted.version} {became}: {slots.failure.code}: {slots.failure.detail}")
            is_full = is_full or slots.failure.code == DiskFull.code
    if n_removed == len(names):
        return passed("models", "none is assigned now", n_models=0)
    facts = {"n_models": len(names) - n_removed, "n_bad": len(bad), "n_refused": len(refused)}
    if bad:
        fix = "start the agent: it goes back to the other slot and fetches what is missing"
        return failed("models", "; ".join([*bad, *refused]), _NO_ROOM if is_full else fix, **facts)
    if refused:
        fix = _NO_ROOM if is_full else "assign another version, or see `hybrid explain`"
        return warned("models", "; ".join([*told, *refused]), fix, **facts)
    return passed("models", ", ".join(told), **facts)


def _missing(slot: Path) -> str:
    """A file of a slot's manifest that is not there in its size; empty when all are."""
    from hybrid.artifact.folder import open_folder

    try:
        open_folder(slot)
    except (HybridError, OSError) as exc:
        return str(exc)[:200]
    return ""


def _some_files(folder: Path) -> Iterator[Path]:
    """Files of the folder and of those just below: where commands write."""
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir() and path.name not in (ATTACHMENTS_NAME, *SLOTS):
            yield from sorted(path.iterdir())[:200]


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
