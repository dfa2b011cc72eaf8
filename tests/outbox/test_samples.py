"""Samples: by rule, sealed, bounded, sparing the flash, brought to the gateway once where that is wished."""

import asyncio
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import numpy as np
import pytest

from edge_agent.disk import RealDisk
from edge_agent.outbox.outbox import Outbox
from edge_agent.outbox.place import Place
from edge_agent.samples.shelf import SampleShelf, ShelfLimits
from edge_agent.samples.store import SampleLimits, Samples
from edge_agent.samples.tpm import Tpm
from edge_agent.samples.vault import COPY_FILE, CREDENTIAL, CREDENTIALS_VARIABLE, KEY_FILE, Vault, open_vault
from hybrid.errors import BadMessage, CorruptContent, NotFound, OutboxFull, StorageError
from hybrid.fleet.messages import SampleRule
from hybrid.fleet.sample import Sample, parse_sample
from tests.outbox.lab import Gateway, in_virtual_time, outbox_of, running, until
from tests.reliability.page_cache import Image
from tests.reliability.simulated_disk import SimulatedDisk
from tests.reliability.simulated_sqlite import connecting
from tests.reliability.virtual_loop import PowerCut

DIGEST = "d" * 64
NO_RESERVE = SampleLimits(shelf=ShelfLimits(reserve_bytes=0))
SECRET_INPUT = b"a face that must not be seen"


def arrays(n: float = 1.0, size: int = 6) -> dict[str, np.ndarray]:
    return {"x": np.full((size,), n, np.float32), "note": np.array([SECRET_INPUT], dtype=object)}


def samples_of(
    folder: Path,
    outbox: Outbox,
    rule: SampleRule | Callable[[str], SampleRule] = "keep",
    *,
    limits: SampleLimits = NO_RESERVE,
    **more: object,
) -> Samples:
    rules = rule if callable(rule) else lambda model: rule
    more.setdefault("vault", Vault([("file", b"k" * 32)]))
    return Samples(Place(folder=folder, **more), outbox, rules=rules, limits=limits)  # type: ignore[arg-type]


def test_kept_sealed_and_read_again(tmp_path: Path) -> None:
    async def program() -> None:
        outbox = outbox_of(tmp_path / "outbox", None)
        samples = samples_of(tmp_path / "samples", outbox)
        async with running(outbox, samples):
            first = await samples.put(DIGEST, "int8", arrays(2.0), {"y": np.arange(3)}, {"class": "cat"}, model="pets")
            assert first is not None
            kept = await samples.read(first)
            assert (kept.model, kept.model_digest, kept.variant) == ("pets", DIGEST, "int8")
            assert kept.label == '{"class":"cat"}'
            assert np.array_equal(kept.input_arrays()["x"], arrays(2.0)["x"])
            assert kept.input_arrays()["note"].tolist() == [SECRET_INPUT]
            assert np.array_equal(kept.output_arrays()["y"], np.arange(3))
            assert [one.id for one in await samples.list("pets")] == [first]
            assert await samples.list("other") == []
            await samples.forget(first)
            with pytest.raises(NotFound):
                await samples.read(first)
            with pytest.raises(NotFound):
                await samples.forget(first)
            with pytest.raises(BadMessage):
                await samples.read("../../etc/passwd")
            with pytest.raises(BadMessage):
                await samples.put(DIGEST, "", arrays(), {}, label=object())

    in_virtual_time(program())
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or SECRET_INPUT not in path.read_bytes()


def test_rules_decide(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """off: nothing; keep: on the box alone; upload: on both, once, sealed on the way through the outbox's disk."""

    async def program() -> None:
        gateway = Gateway(tmp_path / "gateway")
        lane = gateway.lane()
        lane.is_up = False
        vault = Vault([("file", b"k" * 32)])
        outbox = outbox_of(tmp_path / "outbox", lane, vault=vault)
        samples = samples_of(tmp_path / "samples", outbox, lambda model: model, vault=vault)  # type: ignore[arg-type,return-value]
        async with running(outbox, samples):
            found = {
                model: await samples.put(DIGEST, "", arrays(), {}, model=model) for model in ("off", "keep", "upload")
            }
            assert found["off"] is None
            assert not samples.offer("off", DIGEST, inputs=arrays(), outputs={})
            await until(lambda: outbox.store.ledger.counts["sample"].n_items == 1)
            assert samples.status()["n_items"] == 2
            for path in (tmp_path / "outbox").rglob("*"):
                assert path.is_dir() or SECRET_INPUT not in path.read_bytes()
            lane.is_up = True
            await until(lambda: not outbox.store.ledger.n_items, within_s=300)
        (body,) = gateway.bodies()
        brought = parse_sample(body)
        assert brought.id == found["upload"]
        assert brought.input_arrays()["note"].tolist() == [SECRET_INPUT]
        assert SECRET_INPUT.decode() not in caplog.text

    in_virtual_time(program())


def test_what_requests_leave_spares_the_flash(tmp_path: Path) -> None:
    async def program() -> None:
        outbox = outbox_of(tmp_path / "outbox", None)
        samples = samples_of(tmp_path / "samples", outbox)
        async with running(outbox, samples):
            taken = 0
            for n in range(300):  # one request a second, for five minutes
                inputs = arrays(float(n))
                taken += samples.offer("a", DIGEST, inputs=inputs, outputs={})
                inputs["x"][:] = -1.0  # the caller goes on with its arrays
                await asyncio.sleep(1.0)
            assert taken == 5
            for one in await samples.list():
                assert (await samples.read(one.id)).input_arrays()["x"][0] >= 0
            assert samples.offer("a", DIGEST, inputs=arrays(), outputs={}, label="right")
            await asyncio.sleep(1.0)
            assert samples.status()["n_items"] == 6

    in_virtual_time(program())


def test_a_day_has_so_many_bytes(tmp_path: Path) -> None:
    async def program() -> None:
        outbox = outbox_of(tmp_path / "outbox", None)
        limits = SampleLimits(shelf=ShelfLimits(reserve_bytes=0), day_bytes=240_000)
        samples = samples_of(tmp_path / "samples", outbox, limits=limits)
        async with running(outbox, samples):
            large = {"x": np.zeros(2000, np.float32)}
            assert await samples.put(DIGEST, "", large, {}) is not None
            assert await samples.put(DIGEST, "", large, {}) is None, "a start begins with an hour's share"
            await asyncio.sleep(6 * 3600.0)
            n = 0
            while await samples.put(DIGEST, "", large, {}) is not None:
                n += 1
            assert 5 <= n <= 8

    in_virtual_time(program())


def test_bounds_of_number_bytes_and_age(tmp_path: Path) -> None:
    async def program() -> None:
        outbox = outbox_of(tmp_path / "outbox", None)
        shelf = ShelfLimits(reserve_bytes=0, n_items=5, n_bytes=20_000, age_s=3600.0)
        samples = samples_of(tmp_path / "samples", outbox, limits=SampleLimits(shelf=shelf))
        async with running(outbox, samples):
            ids = [await samples.put(DIGEST, "", arrays(), {}) for _ in range(8)]
            assert [one.id for one in await samples.list()] == ids[:2:-1]
            await samples.put(DIGEST, "", {"x": np.zeros(4500, np.float32)}, {})
            assert samples.shelf.n_bytes <= 20_000
            await asyncio.sleep(7200.0)
            last = await samples.put(DIGEST, "", arrays(), {})
            assert [one.id for one in await samples.list()] == [last]
        assert len(list((tmp_path / "samples" / "files").iterdir())) == 1
        samples = samples_of(tmp_path / "samples", outbox)
        outbox = outbox_of(tmp_path / "outbox", None)
        async with running(outbox, samples):
            after = await samples.put(DIGEST, "", arrays(), {})
            assert after is not None
            assert last is not None
            assert after > last, "ids are never used again"

    in_virtual_time(program())


def test_a_nearly_full_disk_keeps_none_and_says_so(tmp_path: Path) -> None:
    async def program() -> None:
        outbox = outbox_of(tmp_path / "outbox", None)
        limits = SampleLimits(shelf=ShelfLimits(reserve_bytes=1 << 60))
        samples = samples_of(tmp_path / "samples", outbox, limits=limits)
        async with running(outbox, samples):
            with pytest.raises(OutboxFull):
                await samples.put(DIGEST, "", arrays(), {})
            assert samples.offer("m", DIGEST, inputs=arrays(), outputs={})
            await until(samples.problems)
            assert samples.problems()[0].code == "samples_not_kept"
            assert not samples.problems()[0].blocks

    in_virtual_time(program())


@pytest.mark.parametrize("damage", ["gone", "zeros", "text"])
def test_a_lost_index_is_made_again(tmp_path: Path, damage: str) -> None:
    async def program() -> None:
        outbox = outbox_of(tmp_path / "outbox", None)
        samples = samples_of(tmp_path / "samples", outbox)
        async with running(outbox, samples):
            ids = [await samples.put(DIGEST, "", arrays(float(n)), {}, model=f"m{n}") for n in range(4)]
        index = tmp_path / "samples" / "index.db"
        if damage == "gone":
            index.unlink()
        else:
            index.write_bytes(bytes(index.stat().st_size) if damage == "zeros" else b"no database " * 500)
        file = tmp_path / "samples" / "files" / f"{ids[1]}.sample"
        file.write_bytes(file.read_bytes()[:-1])
        samples = samples_of(tmp_path / "samples", outbox)
        outbox = outbox_of(tmp_path / "outbox", None)
        async with running(outbox, samples):
            assert [(one.id, one.model) for one in await samples.list()] == [
                (ids[3], "m3"),
                (ids[2], "m2"),
                (ids[0], "m0"),
            ]

    in_virtual_time(program())


@pytest.mark.parametrize("seed", range(4))
def test_power_cuts_leave_whole_samples_or_none(seed: int) -> None:
    rng = Random(f"samples {seed}")
    image = Image()
    vault = Vault([("file", b"k" * 32)])
    promised: set[str] = set()
    n_cuts = 0
    for life in range(12):
        disk = SimulatedDisk(image, Random(f"disk {seed} {life}"))
        with connecting(disk) as connect:
            place = Place(folder=Path("/data/samples"), disk=disk, connect=connect, vault=vault, wall_s=lambda: 0.0)
            shelf = SampleShelf(place, ShelfLimits(reserve_bytes=0))
            try:
                shelf.open(0.0)
                there = {one.id: one for one in shelf.list("", 10_000)}
                assert promised <= set(there)
                for one in there.values():
                    assert parse_sample(shelf.read(one.id)).id == one.id
                disk.cut_after = rng.randrange(1, 60)
                for _ in range(20):
                    made = [sample(shelf.next_id()) for _ in range(rng.randrange(1, 4))]
                    shelf.put(made, {made[0].id}, 0.0)
                    promised |= {one.id for one in made}
                    if rng.random() < 0.3:
                        shelf.uploaded(shelf.to_upload(2))
            except PowerCut:
                n_cuts += 1
        image.cut_power(rng)
    assert n_cuts > 8
    assert len(promised) > 10


def sample(sample_id: str) -> Sample:
    return Sample(
        id=sample_id, model="m", model_digest=DIGEST, variant="", made_s=0.0, label="", inputs=b"i" * 300, output=b"o"
    )


# Where the key comes from.


def test_a_credential_of_systemd_seals(tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / CREDENTIAL).write_bytes(os.urandom(32))
    environment = {CREDENTIALS_VARIABLE: str(credentials)}
    vault = open_vault(tmp_path / "samples", RealDisk(), environment=environment, tpm=Tpm(tmp_path / "none"))
    assert vault.source == "credential"
    assert vault.problems() == ()
    assert not (tmp_path / "samples").exists(), "no key on the disk"
    sealed = vault.seal(b"content", b"about")
    again = open_vault(tmp_path / "samples", RealDisk(), environment=environment, tpm=Tpm(tmp_path / "none"))
    assert again.unseal(sealed, b"about") == b"content"
    (credentials / CREDENTIAL).write_bytes(b"short")
    with pytest.raises(StorageError, match="at least 16"):
        open_vault(tmp_path / "samples", RealDisk(), environment=environment, tpm=Tpm(tmp_path / "none"))


def test_without_any_place_the_key_lies_beside_and_that_is_said(tmp_path: Path) -> None:
    vault = open_vault(tmp_path, RealDisk(), environment={}, tpm=Tpm(tmp_path / "none"))
    assert vault.source == "file"
    (problem,) = vault.problems()
    assert problem.code == "vault_key_on_disk"
    assert "a stolen disk is readable" in problem.what
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600
    sealed = vault.seal(b"content", b"about")
    assert open_vault(tmp_path, RealDisk(), environment={}).unseal(sealed, b"about") == b"content"
    for name in (KEY_FILE, COPY_FILE):  # damaged in any way: the other one mends it
        whole = (tmp_path / name).read_bytes()
        for damaged in (b"", bytes(len(whole)), whole[:-1], bytes([whole[0] ^ 4]) + whole[1:]):
            (tmp_path / name).write_bytes(damaged)
            assert open_vault(tmp_path, RealDisk(), environment={}).unseal(sealed, b"about") == b"content"
            assert (tmp_path / name).read_bytes() == whole
    (tmp_path / KEY_FILE).unlink()
    (tmp_path / COPY_FILE).unlink()
    with pytest.raises(CorruptContent):
        open_vault(tmp_path, RealDisk(), environment={}, tpm=Tpm(tmp_path / "none")).unseal(sealed, b"about")


def test_a_tpm_that_does_not_answer_is_no_reason_not_to_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is there, the tools are there, and they fail: a key beside, and the reason is told."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("tpm2_createprimary", "tpm2_create", "tpm2_load", "tpm2_unseal"):
        (tools / name).write_text("#!/bin/sh\necho 'ERROR: the TPM is in lockout' >&2\nexit 7\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    device = tmp_path / "tpmrm0"
    device.touch()
    vault = open_vault(tmp_path / "samples", RealDisk(), environment={}, tpm=Tpm(device))
    assert vault.source == "file"
    assert "lockout" in vault.problems()[0].what


class WithoutManager(Tpm):
    """A TPM that is reached without the kernel's resource manager: what a tool loads has to be let go."""

    def _ask(self, tool: str, folder: Path, *words: str, given: bytes = b"", quiet: bool = True) -> bytes:
        answer = super()._ask(tool, folder, *words, given=given, quiet=quiet)
        subprocess.run(["tpm2_flushcontext", "-t", "-T", self._tcti], capture_output=True, check=True)
        return answer


@pytest.mark.skipif(
    shutil.which("swtpm") is None or shutil.which("tpm2_create") is None, reason="needs swtpm and tpm2-tools"
)
def test_a_tpm_gives_the_key_to_its_own_machine_alone(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    @contextmanager
    def machine(name: str) -> Iterator[Tpm]:
        (tmp_path / name).mkdir(exist_ok=True)
        command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={tmp_path / name}"]
        command += ["--server", f"type=tcp,port={port}", "--ctrl", f"type=tcp,port={port + 1}"]
        with subprocess.Popen([*command, "--flags", "not-need-init,startup-clear"]) as process:
            time.sleep(0.5)
            try:
                yield WithoutManager(tmp_path / "none", tcti=f"swtpm:host=127.0.0.1,port={port}")
            finally:
                process.terminate()

    with machine("mine") as tpm:
        vault = open_vault(tmp_path / "samples", RealDisk(), environment={}, tpm=tpm)
        assert vault.source == "tpm"
        assert vault.problems() == ()
        sealed = vault.seal(b"content", b"about")
    with machine("mine") as tpm:
        again = open_vault(tmp_path / "samples", RealDisk(), environment={}, tpm=tpm)
        assert again.unseal(sealed, b"about") == b"content"
    with machine("another") as tpm:
        stolen = open_vault(tmp_path / "samples", RealDisk(), environment={}, tpm=tpm)
        assert stolen.source == "file"
        with pytest.raises(CorruptContent):
            stolen.unseal(sealed, b"about")


def test_hard_requests_do_not_wait_behind_ordinary_ones(tmp_path: Path) -> None:
    async def program() -> None:
        outbox = outbox_of(tmp_path / "outbox", None)
        samples = samples_of(tmp_path / "samples", outbox)
        async with running(outbox, samples):
            for n in range(120):  # an ordinary one a second, and every tenth is hard
                samples.offer("a", DIGEST, inputs=arrays(1.0), outputs={})
                if n % 10 == 5:
                    samples.offer("a", DIGEST, inputs=arrays(2.0), outputs={}, is_hard=True)
                await asyncio.sleep(1.0)
            kept = [(await samples.read(one.id)).input_arrays()["x"][0] for one in await samples.list()]
            assert sorted(kept) == [1.0, 1.0, 2.0, 2.0], "one of each kind a minute"

    in_virtual_time(program())
