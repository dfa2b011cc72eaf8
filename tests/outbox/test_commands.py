"""`hybrid agent outbox` on the files of an agent that is stopped; what it says where there is nothing, or damage."""

import asyncio
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from edge_agent.outbox.show_commands import lines
from tests.outbox.lab import outbox_of, running

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_no_folder_an_empty_one_and_a_damaged_one(hybrid_here: Run, tmp_path: Path) -> None:
    done = hybrid_here("agent", "outbox", "--data", str(tmp_path / "none"))
    assert done.returncode == 3
    assert "there is no agent data" in done.stderr
    (tmp_path / "data").mkdir()
    done = hybrid_here("agent", "outbox", "--data", str(tmp_path / "data"))
    assert done.returncode == 0
    assert "nothing waits" in done.stdout
    assert "the agent is stopped" in done.stdout
    (tmp_path / "data" / "outbox").mkdir()
    (tmp_path / "data" / "outbox" / "outbox.db").write_bytes(b"no database at all" * 100)
    done = hybrid_here("agent", "outbox", "--data", str(tmp_path / "data"))
    assert done.returncode == 1
    assert "sets a damaged outbox aside" in done.stderr


def test_counts_of_a_stopped_agent(hybrid_here: Run, tmp_path: Path) -> None:
    async def program() -> None:
        outbox = outbox_of(tmp_path / "data" / "outbox", None)
        async with running(outbox):
            await outbox.put("result", b"x" * 10)
            await outbox.put("result", b"y" * 200_000)
            await outbox.put("report", b"1", about="m")
            await outbox.put("report", b"2", about="m")
            await outbox.put("deferred", b"z", ticket="t" * 32)

    asyncio.run(program())
    done = hybrid_here("agent", "outbox", "--data", str(tmp_path / "data"), "--json")
    told = json.loads(done.stdout)["data"]
    kinds = told["outbox"]["kinds"]
    assert (kinds["result"]["n_items"], kinds["result"]["n_bytes"]) == (2, 200_010)
    assert (kinds["report"]["n_items"], kinds["report"]["n_replaced"]) == (1, 1)
    assert told["deferred"] == {"n_waiting": 1, "n_settled": 0}
    assert told["outbox"]["n_items"] == 4


def test_a_running_one_in_words() -> None:
    count = dict.fromkeys(("n_items", "n_bytes", "n_sent", "n_dropped", "n_replaced", "n_refused", "n_lost"), 1)
    kinds = dict.fromkeys(("report", "result", "deferred", "sample", "telemetry"), count)
    sender = {
        "since_answer_s": 12.0, "n_failures": 3, "last_error": "connection_lost", "held": {"result": "quota"},
    }  # fmt: skip
    told = {
        "outbox": {"kinds": kinds, "n_items": 5, "n_bytes": 5, "sender": sender},
        "deferred": {"n_waiting": 2, "n_settled": 1},
    }
    text = "\n".join(lines(told))
    assert "the gateway answered 12 s ago" in text
    assert "3 calls in a row failed, the last with connection_lost" in text
    assert "does not take stream result now: quota" in text
    assert "2 wait for their outcome, 1 outcomes wait to be fetched" in text
