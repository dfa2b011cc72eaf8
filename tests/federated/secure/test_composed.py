"""Box and gateway as the services compose them: the box's loop against a desk with a real database, over no socket."""

import asyncio
from collections import Counter

import msgspec
import numpy as np
import pytest

from cloud_gateway.rounds.course.course import Course
from cloud_gateway.rounds.course.masking import Masking, StageTimes
from cloud_gateway.rounds.course.papers import TaskNames
from cloud_gateway.rounds.kept.commits import Commits
from cloud_gateway.rounds.kept.spool import Spool
from cloud_gateway.rounds.kept.store import CampaignRow, RoundStore
from cloud_gateway.rounds.messages import RoundView
from edge_agent.learning.masked import Insisting, MaskedOutcome, masked
from edge_agent.trust.identity import BoxKey
from hybrid.artifact.signature import public_key_of
from hybrid.errors import BadMessage, DiskFull, Forbidden, GatewayUnreachable, StorageError
from hybrid.federated.campaign import Aggregation, Campaign, Cohort, Privacy
from hybrid.federated.layout import Layout
from hybrid.federated.messages import SecureAnswer, SecureCall, Task, Terms, Weights
from hybrid.federated.secure.device_list import listed

TIMES = StageTimes(gather_s=0.0, input_s=100.0, stage_s=100.0)


class Desk:
    """A gateway's desk with one secure campaign, which can be killed and started again."""

    def __init__(self, folder, *, goal=4, least=3, n_elements=40, roster=None, **privacy) -> None:
        order = Campaign(
            model="digits", version="3", variant="fp32", goal=goal, least=least, over_selection=1.5,
            aggregation=Aggregation(weights="uniform"), privacy=Privacy(secure=True, clip=1.0, **privacy),
            cohort=Cohort(roster=roster),
        )  # fmt: skip
        self.folder, self.names = folder, TaskNames(bytes(32))
        layout = Layout(names=("w",), shapes=((n_elements,),))
        row = CampaignRow(id="c1", order=order, base_digest="a" * 64, layout=layout, clip=1.0)
        self.course = Course(row=row, steps=None, gates=None, round=RoundView(number=1, state="open", opened_s=0.0))
        self.course.opened_s = asyncio.get_running_loop().time()
        self.terms = Terms(model="digits", artifact_digest="a" * 64, variant="fp32", layout=layout,
                           is_uniform=True, is_adaptive=order.privacy.is_adaptive)  # fmt: skip
        self.sums, self.n_calls, self.n_cuts = [], 0, 0
        self.gone, self.ahead_s = set(), 0.0
        self.store = None
        self.start()

    def start(self) -> None:
        if self.store is not None:
            self.store.close()
        self.killed = asyncio.Event()
        self.store = RoundStore(self.folder)
        self.spool = Spool(self.store, Commits(self.store.database), self.folder)
        self.masking = Masking(self.course, self.spool, self.names, clock_s=self.clock_s, times=TIMES)

    def task(self, box_id: str) -> Task:
        step = self.course.row.step
        return Task(id=self.names.name("c1", step, box_id, "secure"), campaign="c1", kind="secure",
                    weights=Weights(step=step, sha256=""), clip=1.0, secure=self.masking.invitation)  # fmt: skip

    async def run(self) -> None:
        """Ticks, until there is a sum; where only boxes that are gone are waited for, their time is over."""

        async def tick() -> bool:
            if self.gone and self.masking._round.waits_for and self.masking._round.waits_for <= self.gone:
                self.ahead_s += 200.0
            try:
                return await self.masking.tick(self.clock_s())
            except StorageError:
                return False

        await until(tick)

    def clock_s(self) -> float:
        return asyncio.get_running_loop().time() + self.ahead_s

    def next_step(self) -> None:
        self.course.row.step += 1


async def until(look) -> None:
    for _ in range(2000):
        if await look():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come to that in ten seconds")


class Calls:
    """The link of one box; `lost` says which of its calls are lost, before or after the gateway has them."""

    def __init__(self, desk: Desk, box_id: str, *, gone_after=None, ends=False, lost=()) -> None:
        self.desk, self.box_id, self.gone_after, self.ends, self.lost = desk, box_id, gone_after, ends, dict(lost)
        self.n = 0

    async def secure(self, call: SecureCall) -> SecureAnswer:
        self.n += 1
        if self.gone_after is not None and self.n > self.gone_after:
            self.desk.gone.add(self.box_id)
            if self.ends:
                raise TimeoutError
            await asyncio.sleep(3600)
        self.desk.n_calls += 1
        if self.lost.get(self.n) == "before":
            raise GatewayUnreachable("lost before")
        answer = await self.answered(call)
        if self.lost.get(self.n) == "after":
            raise GatewayUnreachable("lost after")
        return answer

    async def answered(self, call: SecureCall) -> SecureAnswer:
        """The gateway's answer, or none where it is killed meanwhile."""
        killed = asyncio.ensure_future(self.desk.killed.wait())
        answer = asyncio.ensure_future(self.desk.masking.answer(self.box_id, call))
        await asyncio.wait((killed, answer), return_when=asyncio.FIRST_COMPLETED)
        killed.cancel()
        if not answer.done():
            answer.cancel()
            await asyncio.wait((answer,))
            if not answer.cancelled():
                answer.exception()
            raise GatewayUnreachable("killed")
        return answer.result()


class Box:
    def __init__(self, n: int) -> None:
        self.key = BoxKey.fresh()
        self.update = np.random.default_rng(n).standard_normal(40).astype(np.float32) * 0.05
        self.n_inputs = 0
        self.root_sha256, self.must_be_listed, self.least_sequence = b"", False, 0

    def note(self) -> None:
        self.n_inputs += 1

    async def trained(self):
        return self.update, None

    async def play(self, desk: Desk, lease_s=30.0, **link) -> MaskedOutcome:
        insisting = Insisting(
            key=self.key, n_inputs_before=self.n_inputs, note_input=self.note, root_sha256=self.root_sha256,
            must_be_listed=self.must_be_listed, least_sequence=self.least_sequence,
        )  # fmt: skip
        deadline_s = asyncio.get_running_loop().time() + lease_s
        task, calls = desk.task(self.key.box_id), Calls(desk, self.key.box_id, **link)
        return await masked(
            calls, task, desk.terms, epoch="e", insisting=insisting, trained=self.trained, deadline_s=deadline_s
        )


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch) -> None:
    monkeypatch.setattr("edge_agent.learning.masked.PAUSE_S", 0.01)


def check_mean(desk: Desk, boxes) -> None:
    mean = np.mean([box.update for box in boxes], 0)
    assert desk.masking.sum.n_devices == len(boxes)
    assert sorted(desk.masking.live_box_ids) == sorted(box.key.box_id for box in boxes)
    step = 1.0 * 6 / np.sqrt(40) / 127
    np.testing.assert_allclose(desk.masking.sum.mean(), mean, atol=step)


async def test_five_boxes_come_to_a_sum_in_five_calls_each(tmp_path) -> None:
    desk, boxes = Desk(tmp_path, goal=5), [Box(n) for n in range(5)]
    *outcomes, _ = await asyncio.gather(*(box.play(desk) for box in boxes), desk.run())
    assert [outcome.state for outcome in outcomes] == ["done"] * 5
    check_mean(desk, boxes)
    assert desk.n_calls == 5 * 5, "advert, shares, input, consent, reveal: each answer brings the next stage"
    assert all(box.n_inputs == 1 for box in boxes)
    assert np.abs(outcomes[0].residual).max() < 0.01
    assert await Calls(desk, boxes[0].key.box_id).secure(SecureCall("e", "no task", "c1")) == SecureAnswer(
        state="excluded", reason="this box has no such task"
    )
    first_task = desk.task(boxes[0].key.box_id).id
    desk.next_step()
    invited = desk.masking.invitation
    assert not await desk.masking.tick(0.0)
    assert desk.masking.invitation == invited, "a box that asks between two steps is not told the last one's"
    after = await Calls(desk, boxes[0].key.box_id).secure(SecureCall("e", first_task, "c1"))
    assert after.state == "done"
    *outcomes, _ = await asyncio.gather(*(_fresh(box).play(desk) for box in boxes), desk.run())
    assert [outcome.state for outcome in outcomes] == ["done"] * 5


def _fresh(box: Box) -> Box:
    """Of the next step: nothing was masked for it yet."""
    box.n_inputs = 0
    return box


@pytest.mark.parametrize("gone_after", [1, 2, 3, 4])
async def test_a_box_is_gone_from_a_stage_on(tmp_path, gone_after) -> None:
    """After its advert, its shares, its input, its consent."""
    desk, boxes = Desk(tmp_path, goal=5), [Box(n) for n in range(5)]
    links = [{"gone_after": gone_after, "lease_s": 2.0}, {}, {}, {}, {}]
    played = [asyncio.create_task(box.play(desk, **link)) for box, link in zip(boxes, links, strict=True)]
    await desk.run()
    outcomes = await asyncio.gather(*played[1:])
    played[0].cancel()
    assert [outcome.state for outcome in outcomes] == ["done"] * 4
    check_mean(desk, boxes if gone_after >= 3 else boxes[1:])


async def test_lost_calls_are_made_again_and_count_once(tmp_path) -> None:
    desk, boxes = Desk(tmp_path), [Box(n) for n in range(4)]
    lost = [
        dict.fromkeys(range(1, 12, 2), "before"),
        dict.fromkeys(range(1, 12, 2), "after"),
        {2: "after", 4: "before"},
        {},
    ]
    played = (box.play(desk, lost=each) for box, each in zip(boxes, lost, strict=True))
    *outcomes, _ = await asyncio.gather(*played, desk.run())
    assert [outcome.state for outcome in outcomes] == ["done"] * 4
    check_mean(desk, boxes)


async def test_the_gateway_is_killed_again_and_again(tmp_path) -> None:
    """A new one from the disk alone every few milliseconds; boxes ask again."""
    desk, boxes = Desk(tmp_path), [Box(n) for n in range(4)]

    async def kill() -> None:
        for _ in range(12):
            await asyncio.sleep(0.004)
            async with desk.masking._lock:
                desk.killed.set()
                desk.start()

    *outcomes, _, _ = await asyncio.gather(*(box.play(desk) for box in boxes), desk.run(), kill())
    assert {outcome.state for outcome in outcomes} == {"done"}
    check_mean(desk, boxes)


async def test_too_few_dealt_and_the_round_begins_anew_with_the_others(tmp_path) -> None:
    desk, boxes = Desk(tmp_path, goal=5), [Box(n) for n in range(5)]
    links = [{"gone_after": 1}, {"gone_after": 1}, {}, {}, {}]
    played = [asyncio.create_task(box.play(desk, **link)) for box, link in zip(boxes, links, strict=True)]
    ticking = asyncio.create_task(desk.run())
    await until(lambda: asyncio.sleep(0, desk.masking._round.task.attempt == 2))
    desk.course.opened_s = -1e9  # the round's time is over: three are enough
    await ticking
    outcomes = await asyncio.gather(*played[2:])
    for task in played[:2]:
        task.cancel()
    assert [outcome.state for outcome in outcomes] == ["done"] * 3
    check_mean(desk, boxes[2:])


async def test_a_full_disk_loses_nothing(tmp_path, monkeypatch) -> None:
    desk, boxes = Desk(tmp_path), [Box(n) for n in range(4)]
    write, n_failed = desk.spool.commits.write, 0

    async def failing(work):
        nonlocal n_failed
        if desk.n_calls % 5 == 3 and n_failed < 6:
            n_failed += 1
            raise DiskFull("full")
        return await write(work)

    monkeypatch.setattr(desk.spool.commits, "write", failing)

    *outcomes, _ = await asyncio.gather(*(box.play(desk) for box in boxes), desk.run())
    assert n_failed
    assert [outcome.state for outcome in outcomes] == ["done"] * 4
    check_mean(desk, boxes)


async def test_large_inputs_lie_in_files_until_the_next_step(tmp_path) -> None:
    n_elements = 60_000
    desk, boxes = Desk(tmp_path, n_elements=n_elements), [Box(n) for n in range(4)]
    for box in boxes:
        box.update = np.full(n_elements, 1e-4, np.float32)
    await asyncio.gather(*(box.play(desk) for box in boxes), desk.run())
    assert abs(float(desk.masking.sum.mean().mean()) - 1e-4) < 1e-5
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name == "updates"]
    assert len(files) == 4
    desk.next_step()
    await desk.masking.tick(0.0)
    assert not any(path.exists() for path in files)


async def test_a_box_that_masked_sits_the_step_out_and_a_wrong_invitation_is_refused(tmp_path) -> None:
    desk, box = Desk(tmp_path), Box(0)
    box.n_inputs = 1
    outcome = await box.play(desk)
    assert (outcome.state, outcome.residual) == ("refused", None)
    assert "before" in outcome.reason
    box.n_inputs = 0
    desk.terms = Terms(model="other", artifact_digest="a" * 64, variant="fp32", layout=desk.terms.layout)
    with pytest.raises(Exception, match="another task"):
        await box.play(desk)
    desk = Desk(tmp_path / "another scale")
    task = desk.task
    desk.task = lambda box_id: msgspec.structs.replace(task(box_id), clip=2.0)
    with pytest.raises(BadMessage, match="another task"):
        await box.play(desk)


async def test_a_box_whose_lease_ended_while_it_waited_comes_again(tmp_path) -> None:
    """Nothing of it was masked: it is in the same attempt with fresh keys, and with its old ones it would be lost."""
    desk, boxes = Desk(tmp_path), [Box(n) for n in range(4)]
    first = await boxes[0].play(desk, lease_s=0.05)
    assert (first.state, first.reason, first.has_masked) == ("excluded", "the lease ended", False)
    assert desk.masking.has_room
    *outcomes, _ = await asyncio.gather(*(box.play(desk) for box in boxes), desk.run())
    assert [(outcome.state, outcome.has_masked) for outcome in outcomes] == [("done", True)] * 4
    assert not desk.masking.has_room
    check_mean(desk, boxes)


async def test_after_its_last_attempt_a_round_may_begin_anew(tmp_path, monkeypatch) -> None:
    """Who masked nothing comes again; before that nobody is asked to train in vain."""
    monkeypatch.setattr("cloud_gateway.rounds.course.masking.MOST_ATTEMPTS", 1)
    desk, boxes = Desk(tmp_path, goal=5), [Box(n) for n in range(5)]
    played = [asyncio.create_task(box.play(desk, gone_after=1 if n < 2 else None)) for n, box in enumerate(boxes)]
    ticking = asyncio.create_task(desk.run())
    outcomes = await asyncio.gather(*played[2:])
    assert [(outcome.state, outcome.has_masked) for outcome in outcomes] == [("excluded", False)] * 3
    assert "3 devices came through stage share" in outcomes[0].reason
    await until(lambda: asyncio.sleep(0, desk.masking.trouble == outcomes[0].reason))
    assert not desk.masking.has_room
    desk.course.opened_s = -1e9
    await desk.masking.begin_anew()
    assert desk.masking.has_room
    outcomes = await asyncio.gather(*(box.play(desk) for box in boxes[2:]))
    assert [outcome.state for outcome in outcomes] == ["done"] * 3
    await ticking
    for task in played[:2]:
        task.cancel()
    check_mean(desk, boxes[2:])


async def test_a_box_that_waits_looks_once_a_stage(tmp_path, monkeypatch) -> None:
    """Were it woken by each message of each other one, a thousand boxes would keep the loop for minutes."""
    n_looks, look = Counter(), Masking._next

    def counted(masking, box_id, attempt):
        n_looks[box_id] += 1
        return look(masking, box_id, attempt)

    monkeypatch.setattr(Masking, "_next", counted)
    desk, boxes = Desk(tmp_path, goal=12), [Box(n) for n in range(12)]
    await asyncio.gather(*(box.play(desk) for box in boxes), desk.run())
    assert max(n_looks.values()) <= 3 * 5


async def test_what_was_masked_in_vain_is_said_again(tmp_path) -> None:
    """Four masked, then three are gone: the round begins anew, and the fourth sits it out with all it had to say."""
    desk, boxes = Desk(tmp_path), [Box(n) for n in range(4)]
    links = [{"gone_after": 3}, {"gone_after": 3}, {"gone_after": 3}, {}]
    played = [asyncio.create_task(box.play(desk, **link)) for box, link in zip(boxes, links, strict=True)]
    ticking = asyncio.create_task(desk.run())
    outcome = await played[3]
    for task in (*played[:3], ticking):
        task.cancel()
    assert outcome.state == "refused"
    assert "began anew after this box had masked" in outcome.reason
    np.testing.assert_allclose(outcome.residual, boxes[3].update, atol=1e-6)
    assert boxes[3].n_inputs == 1


async def test_where_the_lease_ends_a_masked_input_counts_as_sent(tmp_path) -> None:
    desk, boxes = Desk(tmp_path), [Box(n) for n in range(4)]
    played = [asyncio.create_task(box.play(desk)) for box in boxes[1:]]
    short = asyncio.create_task(boxes[0].play(desk, gone_after=3, ends=True))
    await desk.run()
    assert [outcome.state for outcome in await asyncio.gather(*played)] == ["done"] * 3
    outcome = await short
    assert (outcome.state, outcome.reason) == ("excluded", "the lease ended")
    assert np.abs(outcome.residual).max() < 0.01
    check_mean(desk, boxes)


async def test_only_listed_boxes_are_in_a_round_with_a_roster(tmp_path) -> None:
    root, boxes, stranger = b"\x05" * 32, [Box(n) for n in range(4)], Box(9)
    envelope = listed(root, [box.key.box_id for box in boxes], 1)
    desk = Desk(tmp_path, roster=envelope, is_adaptive=True)
    from hashlib import sha256

    for box in boxes:
        box.root_sha256 = sha256(public_key_of(root)).digest()
    strange = asyncio.create_task(stranger.play(desk, lease_s=30.0))
    *outcomes, _ = await asyncio.gather(*(box.play(desk) for box in boxes), desk.run())
    assert [outcome.state for outcome in outcomes] == ["done"] * 4
    assert (await strange).state == "excluded"
    check_mean(desk, boxes)
    assert desk.masking.sum.bits == 4
    boxes[0].n_inputs, boxes[0].least_sequence = 0, 2
    with pytest.raises(Forbidden, match="sequence 1, 2 was seen"):
        await boxes[0].play(desk)
    without = Desk(tmp_path / "without")
    boxes[0].must_be_listed, boxes[0].n_inputs = True, 0
    outcome = await boxes[0].play(without)
    assert (outcome.state, outcome.n_bytes) == ("refused", 0)
    assert "no list of devices" in outcome.reason
