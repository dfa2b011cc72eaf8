"""A damaged store: the box starts all the same, what can be read is taken over, the rest is set aside and counted."""

import asyncio
from pathlib import Path
from random import Random

import pytest

from edge_agent.outbox.place import Place
from edge_agent.samples.vault import Vault
from tests.outbox.lab import Gateway, in_virtual_time, outbox_of, running, sequence, until

N_ITEMS = 40


def zeros(content: bytearray, rng: Random) -> bytearray:
    at = rng.randrange(0, len(content) - 2048)
    content[at : at + 2048] = bytes(2048)
    return content


def all_zeros(content: bytearray, rng: Random) -> bytearray:
    return bytearray(len(content))


def truncation(content: bytearray, rng: Random) -> bytearray:
    return content[: rng.randrange(1, len(content))]


def random_bytes(content: bytearray, rng: Random) -> bytearray:
    at = rng.randrange(0, len(content) - 4096)
    content[at : at + 4096] = rng.randbytes(4096)
    return content


def emptied(content: bytearray, rng: Random) -> bytearray:
    return bytearray()


def no_database(content: bytearray, rng: Random) -> bytearray:
    return bytearray(b"this is a letter, not a database\n" * 100)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("damage", [zeros, all_zeros, truncation, random_bytes, emptied, no_database])
def test_a_box_starts_with_whatever_is_there(tmp_path: Path, damage, seed: int) -> None:
    """At most what was damaged is missing; nothing arrives twice, nothing that arrives is damaged, new things work."""
    rng = Random(f"{damage.__name__} {seed}")
    bodies = {n: b"%d:" % n + rng.randbytes(rng.choice([30, 900, 4000, 120_000])) for n in range(N_ITEMS)}

    async def program() -> None:
        gateway = Gateway(tmp_path / "gateway")
        lane = gateway.lane()
        outbox = outbox_of(tmp_path / "box", None)
        async with running(outbox):
            for body in bodies.values():
                await outbox.put("result", body)
        path = tmp_path / "box" / "outbox.db"
        path.write_bytes(damage(bytearray(path.read_bytes()), rng))
        outbox = outbox_of(tmp_path / "box", lane, seed=2)
        async with running(outbox):
            await outbox.put("result", b"%d:new" % N_ITEMS)
            await until(lambda: not outbox.store.ledger.n_items, within_s=300)
        arrived = gateway.bodies()
        numbers = sequence(arrived)
        assert numbers[-1] == N_ITEMS
        assert len(set(numbers)) == len(numbers)
        assert all(body == bodies[n] for n, body in zip(numbers[:-1], arrived[:-1], strict=True))
        if len(numbers) <= N_ITEMS:
            lost = outbox.store.ledger.counts["result"].n_lost
            assert lost or damage in (emptied, no_database) or list((tmp_path / "box").glob("outbox.db.corrupt-*"))

    in_virtual_time(program())


def test_damage_that_shows_while_it_runs_is_survived_too(tmp_path: Path) -> None:
    async def program() -> None:
        gateway = Gateway(tmp_path / "gateway")
        lane = gateway.lane()
        lane.is_up = False
        outbox = outbox_of(tmp_path / "box", lane)
        async with running(outbox):
            for n in range(0, 600, 60):
                await asyncio.gather(*(outbox.put("result", b"%d:" % (n + k) + bytes(3000)) for k in range(60)))
            await asyncio.to_thread(outbox.store.database.checkpoint)
            path = tmp_path / "box" / "outbox.db"
            content = bytearray(path.read_bytes())
            for at in range(200 * 1024, len(content) - 1024, 64 * 1024):
                content[at : at + 1024] = bytes(1024)
            path.write_bytes(content)
            lane.is_up = True
            await outbox.put("result", b"600:new")
            await until(lambda: not outbox.store.ledger.n_items, within_s=600)
            codes = [problem.code for problem in outbox.problems()]
            assert outbox.store.n_begun_anew or outbox.store.ledger.counts["result"].n_lost
            assert ("outbox_begun_anew" in codes) == bool(outbox.store.n_begun_anew)
        numbers = sequence(gateway.bodies())
        assert numbers[-1] == 600
        assert len(set(numbers)) == len(numbers)
        assert len(numbers) > 100, "what was not damaged arrived"

    in_virtual_time(program())


def test_what_arrived_before_the_damage_does_not_arrive_again(tmp_path: Path) -> None:
    """Sent, acknowledged, and still in the damaged file: taken over with its first number, which the gateway knows."""

    async def program() -> None:
        gateway = Gateway(tmp_path / "gateway")
        lane = gateway.lane()
        outbox = outbox_of(tmp_path / "box", lane)
        async with running(outbox):
            for n in range(5):
                await outbox.put("result", b"%d:" % n)
            await until(lambda: not outbox.store.ledger.n_items)
            outbox.store.ledger.settled.clear()  # as when the power goes before they left
        content = bytearray((tmp_path / "box" / "outbox.db").read_bytes())
        content[28:32] = b"\xff\xff\xff\x00"  # the file's own length: no whole check passes, every row can be read
        (tmp_path / "box" / "outbox.db").write_bytes(content)
        outbox = outbox_of(tmp_path / "box", lane, seed=2)
        async with running(outbox):
            await outbox.put("result", b"5:")
            await until(lambda: not outbox.store.ledger.n_items, within_s=300)
        assert sequence(gateway.bodies()) == list(range(6))

    in_virtual_time(program())


def test_a_damaged_file_of_a_body_is_lost_alone_and_counted(tmp_path: Path) -> None:
    async def program() -> None:
        gateway = Gateway(tmp_path / "gateway")
        outbox = outbox_of(tmp_path / "box", None)
        async with running(outbox):
            for n in range(3):
                await outbox.put("result", b"%d:" % n + Random(n).randbytes(150_000))
            files = sorted((tmp_path / "box" / "blobs").iterdir())
            damaged = files[0].read_bytes()
            files[0].write_bytes(damaged[:-1] + bytes([damaged[-1] ^ 1]))
            outbox.sender.calls = gateway.lane()
            outbox.sender.wake()
            await until(lambda: not outbox.store.ledger.n_items)
            assert outbox.store.ledger.counts["result"].n_lost == 1
        assert len(gateway.bodies()) == 2
        assert not list((tmp_path / "box" / "blobs").iterdir())

    in_virtual_time(program())


def test_what_another_key_sealed_is_kept_aside_untouched(tmp_path: Path) -> None:
    """A box started without its credential must not throw away what only that credential opens."""

    async def program() -> None:
        gateway = Gateway(tmp_path / "gateway")
        right, wrong = Vault([("credential", b"r" * 32)]), Vault([("file", b"w" * 32)])
        outbox = outbox_of(tmp_path / "box", None, vault=right)
        async with running(outbox):
            await outbox.put("result", b"0:secret")
            await outbox.put("result", b"1:" + bytes(200_000))
        outbox = outbox_of(tmp_path / "box", None, vault=wrong)
        async with running(outbox):
            await outbox.put("result", b"2:")
        (aside,) = (path for path in (tmp_path / "box").glob("outbox.db.otherkey-*") if path.is_file())
        (files,) = (path for path in (tmp_path / "box").glob("outbox.db.otherkey-*") if path.is_dir())
        again = tmp_path / "again"
        again.mkdir()
        aside.rename(again / "outbox.db")
        files.rename(again / "blobs")
        outbox = outbox_of(again, gateway.lane(), vault=right)
        async with running(outbox):
            await until(lambda: len(gateway.bodies()) == 2)
        assert sequence(gateway.bodies()) == [0, 1]

    in_virtual_time(program())


def test_a_box_that_gets_a_better_key_still_sends_what_the_old_one_sealed(tmp_path: Path) -> None:
    async def program() -> None:
        gateway = Gateway(tmp_path / "gateway")
        outbox = outbox_of(tmp_path / "box", None, vault=Vault([("file", b"w" * 32)]))
        async with running(outbox):
            await outbox.put("result", b"0:")
        both = Vault([("credential", b"r" * 32), ("file", b"w" * 32)])
        outbox = outbox_of(tmp_path / "box", gateway.lane(), vault=both)
        async with running(outbox):
            await outbox.put("result", b"1:")
            await until(lambda: not outbox.store.ledger.n_items)
        assert sequence(gateway.bodies()) == [0, 1]
        assert not any(b"secret" in path.read_bytes() for path in (tmp_path / "box").rglob("*") if path.is_file())

    in_virtual_time(program())


def test_the_seal_is_bound_to_what_it_is_about(tmp_path: Path) -> None:
    vault = Vault([("file", b"w" * 32)])
    sealed = vault.seal(b"content", b"one")
    assert vault.unseal(sealed, b"one") == b"content"
    from hybrid.errors import CorruptContent

    for at in range(len(sealed)):
        changed = bytearray(sealed)
        changed[at] ^= 1
        with pytest.raises(CorruptContent):
            vault.unseal(bytes(changed), b"one")
    with pytest.raises(CorruptContent):
        vault.unseal(sealed, b"two")
    assert Place(folder=tmp_path).vault.unseal(b"plain", b"") == b"plain"


def test_any_changed_byte_of_the_header_is_survived(tmp_path: Path) -> None:
    """SQLite has many words for a header that it does not know; none of them may keep a box from starting."""

    async def program() -> None:
        outbox = outbox_of(tmp_path / "box", None)
        async with running(outbox):
            await outbox.put("result", b"0:")
        whole = (tmp_path / "box" / "outbox.db").read_bytes()
        for at in (*range(29), 44, 47, 56, 59, 64, 95, 99):
            changed = bytearray(whole)
            changed[at] ^= 0xFF
            folder = tmp_path / f"changed{at}"
            folder.mkdir()
            (folder / "outbox.db").write_bytes(changed)
            outbox = outbox_of(folder, None, seed=at + 2)
            async with running(outbox):
                kept = await outbox.put("result", b"1:")
                assert kept.seq in (0, 1)

    in_virtual_time(program())


def test_a_gateway_with_a_damaged_database_goes_on_and_knows(tmp_path: Path) -> None:
    """Boxes tell it from where it knows; nothing is stuck, and people are told."""

    async def program() -> None:
        gateway = Gateway(tmp_path / "gateway")
        assert not gateway.ingest.store.was_begun_anew
        outbox = outbox_of(tmp_path / "box", gateway.lane())
        async with running(outbox):
            for n in range(5):
                await outbox.put("result", b"%d:" % n)
            await until(lambda: not outbox.store.ledger.n_items)
            gateway.ingest.close()
            path = tmp_path / "gateway" / "ingest.db"
            path.write_bytes(bytes(path.stat().st_size))
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            again = Gateway(tmp_path / "gateway")
            assert again.ingest.store.was_begun_anew
            outbox.sender.calls = again.lane()
            await outbox.put("result", b"5:")
            await until(lambda: not outbox.store.ledger.n_items, within_s=300)
        assert sequence(again.bodies()) == [5]

    in_virtual_time(program())
