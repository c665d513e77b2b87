"""What every database must do with queues: who is next, who must wait, and why."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta

import pytest

from orchestrator.domain.errors import InvalidTask, NotPossible
from orchestrator.domain.outcome import Reason
from orchestrator.domain.task import TaskSpec, TaskState, Terms
from orchestrator.store import MAX_SPEC_BYTES, Finished, QueuePlace, Requeued, Store
from tests.conformance.queueing import DAY, T0, at, claimed, kinds, retried, runner, spec, submit, take, take_one


async def test_the_higher_priority_goes_first_and_within_it_the_older(store: Store) -> None:
    me = await runner(store)
    wanted = [(0, 1), (5, 2), (-3, 3), (5, 4), (0, 5)]
    rows = {n: await submit(store, spec(terms=Terms(priority=p)), now=at(n)) for p, n in wanted}
    claims = await take(store, me, ["small"], now=at(9), up_to=9)
    assert [c.task.id for c in claims] == [rows[n].id for n in (2, 4, 1, 5, 3)]
    assert [c.task.priority for c in claims] == [5, 5, 0, 0, -3]
    assert {c.task.deadline_at for c in claims} == {at(9) + DAY}


@pytest.mark.parametrize("at_once", [1, 4])
async def test_frontends_that_wait_share_what_is_held(store: Store, at_once: int) -> None:
    me = await runner(store)
    for n in range(30):
        await submit(store, spec(), now=at(n), frontend="greedy")
    for n in range(6):
        await submit(store, spec(), now=at(100 + n), frontend="modest")
    held = []
    for n in range(12 // at_once):
        held += await take(store, me, ["small"], now=at(200 + n), up_to=at_once)
    assert Counter(c.task.frontend for c in held) == {"greedy": 6, "modest": 6}
    for one in (c for c in held if c.task.frontend == "greedy"):
        await store.tasks.finish(Finished(one.lease, TaskState.FINISHED, exit_code=0), now=at(300))
    # modest holds six, greedy none: the next are greedy's until both hold as many
    more = await take(store, me, ["small"], now=at(301), up_to=6)
    assert Counter(c.task.frontend for c in more) == {"greedy": 6}


async def test_of_frontends_that_hold_as_many_the_one_served_longest_ago_is_next(store: Store) -> None:
    me = await runner(store)
    served = []
    for n, frontend in enumerate("abcabcabc"):
        await submit(store, spec(), now=at(n), frontend=frontend)
    for n in range(9):
        [claim] = await take(store, me, ["small"], now=at(50), up_to=1)  # even when the clock stands still
        served.append(claim.task.frontend)
        await store.tasks.finish(Finished(claim.lease, TaskState.FINISHED, exit_code=0), now=at(60 + n))
    assert served == list("abcabcabc")


async def test_several_pools_get_an_even_part_and_the_rest_goes_to_who_has_more(store: Store) -> None:
    me = await runner(store, "a", "b")
    for n in range(9):
        await submit(store, spec("a"), now=at(n))
    for n in range(2):
        await submit(store, spec("b"), now=at(20 + n))
    counts = Counter(c.task.spec.pool for c in await take(store, me, ["a", "b", "none"], now=at(30), up_to=8))
    assert counts == {"a": 6, "b": 2}


async def test_no_more_are_claimed_than_there_is_room_for(store: Store) -> None:
    me = await runner(store)
    for n in range(5):
        await submit(store, spec(), now=at(n))
    options = {"max_vms": {}, "lease_seconds": 30, "now": at(9), "deadline": lambda _: at(99), "up_to": 9}
    assert await store.tasks.claim(me, {"small": 0}, **options) == ()
    assert len(await store.tasks.claim(me, {"small": 2}, **options)) == 2
    assert len(await store.tasks.claim(me, {"small": 9}, **options | {"max_vms": {"small": 4}})) == 2


async def test_a_paused_queue_gives_nothing_until_it_is_resumed(store: Store) -> None:
    me = await runner(store)
    task = await submit(store, spec(), now=T0)
    assert await store.queues.pause("small", "maintenance", now=at(1))
    assert not await store.queues.pause("small", "again", now=at(2))
    assert await take_one(store, me, ["small"], now=at(3)) is None
    assert await take_one(store, me, ["small"], now=at(3), only=task.id) is None
    [queue] = await store.queues.list()
    assert (queue.paused_at, queue.paused_because, queue.waiting, queue.held) == (at(1), "maintenance", 1, 0)
    assert await store.queues.resume("small", now=at(4))
    assert not await store.queues.resume("small", now=at(5))
    assert await take_one(store, me, ["small"], now=at(6)) is not None
    assert [e.kind for e in await store.events.list() if e.kind.startswith("queue")] == [
        "queue.paused", "queue.resumed"
    ]  # fmt: skip
    assert await store.queues.pause("nobody's yet", "", now=at(7))


async def test_a_drained_queue_is_paused_too_and_both_end_together(store: Store) -> None:
    me = await runner(store)
    await submit(store, spec(), now=T0)
    assert await store.queues.drain("small", "a new image", now=at(1))
    assert not await store.queues.drain("small", "again", now=at(2))
    assert not await store.queues.pause("small", "again", now=at(2))
    assert await take_one(store, me, ["small"], now=at(3)) is None
    [queue] = await store.queues.list()
    assert (queue.drained_at, queue.drained_because) == (at(1), "a new image")
    assert (queue.paused_at, queue.paused_because) == (at(1), "a new image")
    assert await store.queues.resume("small", now=at(4))
    assert not await store.queues.resume("small", now=at(5))
    [queue] = await store.queues.list()
    assert (queue.drained_at, queue.drained_because, queue.paused_at, queue.paused_because) == (None, "", None, "")
    assert await take_one(store, me, ["small"], now=at(6)) is not None
    assert await store.queues.drain("nobody's yet", "", now=at(7))
    told = [(e.kind, e.data) for e in await store.events.list() if e.kind.startswith("queue")]
    assert told == [
        ("queue.drained", {"pool": "small", "because": "a new image"}),
        ("queue.resumed", {"pool": "small"}),
        ("queue.drained", {"pool": "nobody's yet", "because": ""}),
    ]


async def test_a_queue_that_was_paused_keeps_its_reason_when_it_is_drained(store: Store) -> None:
    assert await store.queues.pause("small", "lunch", now=at(1))
    assert await store.queues.drain("small", "a new image", now=at(2))
    [queue] = await store.queues.list()
    assert (queue.paused_at, queue.paused_because) == (at(1), "lunch")
    assert (queue.drained_at, queue.drained_because) == (at(2), "a new image")


async def test_a_rotation_is_written_down_each_time(store: Store) -> None:
    for seconds in (1, 2):
        await store.queues.rotate("small", now=at(seconds))
        [queue] = await store.queues.list()
        assert (queue.rotated_at, queue.paused_at) == (at(seconds), None)
    assert [e.data for e in await store.events.list() if e.kind == "queue.rotated"] == [{"pool": "small"}] * 2


async def test_what_waits_is_counted_only_where_that_is_asked_for(store: Store) -> None:
    held = await claimed(store)
    for _ in range(3):
        await submit(store, spec(), now=at(2))
    await submit(store, spec("big"), now=at(2))
    await submit(store, spec(terms=Terms(depends_on=(held.task.id,))), now=at(2))
    await submit(store, spec(), now=at(2), hold=True)
    counted = {queue.pool: (queue.waiting, queue.held) for queue in await store.queues.list()}
    assert counted == {"big": (1, 0), "small": (4, 1)}
    assert [(queue.waiting, queue.held) for queue in await store.queues.list(counts=False)] == [(0, 0), (0, 0)]
    assert await store.tasks.waiting(["small", "big", "none"]) == {"small": 3, "big": 1, "none": 0}
    assert await store.tasks.waiting(["small"], up_to=2) == {"small": 2}
    assert await store.tasks.waiting([]) == {}


async def test_what_blocks_a_queue_is_written_when_it_changes(store: Store) -> None:
    assert await store.queues.block("small", Reason.QUOTA, "2 of 2 VMs", now=at(1))
    assert not await store.queues.block("small", Reason.QUOTA, "2 of 2 VMs", now=at(2))
    [queue] = await store.queues.list()
    assert (queue.blocked_reason, queue.blocked_message, queue.blocked_at) == (Reason.QUOTA, "2 of 2 VMs", at(1))
    assert await store.queues.unblock("small")
    assert not await store.queues.unblock("small")
    assert (await store.queues.list())[0].blocked_reason is None


async def test_deleting_a_queue_cancels_what_is_in_it(store: Store) -> None:
    held = await claimed(store)
    new, queued = await submit(store, spec(), now=at(2), hold=True), await submit(store, spec(), now=at(2))
    other = await submit(store, spec("other"), now=at(2))
    assert await store.queues.delete("small", now=at(3)) == 3
    for task in (new, queued):
        row = await store.tasks.get(task.id)
        assert (row.state, row.exit_code, row.deadline_at) == (TaskState.CANCELED, 130, None)
        assert (await kinds(store, task.id))[-1] == "task.canceled"
    assert await store.tasks.canceling(held.lease.runner_id) == {held.lease}
    assert (await store.tasks.get(other.id)).state is TaskState.QUEUED
    assert await store.queues.delete("small", now=at(4)) == 0


async def test_what_is_to_be_delivered_later_is_ready_when_it_is_due(store: Store) -> None:
    me = await runner(store)
    task = await submit(store, spec(terms=Terms(not_before=at(60))), now=T0)
    assert (task.admitted_at, task.not_before) == (None, at(60))
    assert await store.tasks.admit(now=at(59)) == ()
    assert await take_one(store, me, ["small"], now=at(59)) is None
    assert await store.tasks.admit(now=at(60)) == (task.id,)
    assert await store.tasks.admit(now=at(61)) == ()
    assert (await store.tasks.get(task.id)).admitted_at == at(60)
    assert await take_one(store, me, ["small"], now=at(61)) is not None
    past = await submit(store, spec(terms=Terms(not_before=at(1))), now=at(2))
    assert past.admitted_at == at(2)


async def test_a_dependency_is_waited_for_and_its_failure_cascades(store: Store) -> None:
    me = await runner(store)
    first = await submit(store, spec(), now=T0)
    second = await submit(store, spec(terms=Terms(depends_on=(first.id,))), now=at(1))
    third = await submit(store, spec(terms=Terms(depends_on=(first.id, second.id))), now=at(2))
    assert await store.tasks.unfinished(third.id) == (first.id, second.id) == await store.tasks.depends_on(third.id)
    assert await store.tasks.admit(now=at(3)) == ()
    claim = await take_one(store, me, ["small"], now=at(3))
    assert claim is not None and claim.task.id == first.id
    assert await take_one(store, me, ["small"], now=at(3)) is None
    await store.tasks.finish(Finished(claim.lease, TaskState.FINISHED, exit_code=0), now=at(4))
    assert await store.tasks.admit(now=at(5)) == (second.id,)
    await store.tasks.request_cancel(second.id, now=at(6))
    assert await store.tasks.admit(now=at(7)) == (third.id,)
    row = await store.tasks.get(third.id)
    assert (row.state, row.reason, row.exit_code) == (TaskState.FAILED, Reason.DEPENDENCY_FAILED, 125)
    after = await submit(store, spec(terms=Terms(depends_on=(first.id,))), now=at(8))
    assert after.admitted_at == at(8)


async def test_a_dependency_that_cannot_be_waited_for_is_refused(store: Store) -> None:
    theirs = await submit(store, spec(), now=T0, frontend="them")
    ended = await submit(store, spec(), now=T0)
    await store.tasks.request_cancel(ended.id, now=T0)
    told = {}
    for other in (theirs.id, "0000000000000000"):
        with pytest.raises(InvalidTask) as refused:
            await submit(store, spec(terms=Terms(depends_on=(other,))), now=at(1))
        assert refused.value.field == "depends_on"
        told[other] = str(refused.value).replace(other, "")
    assert len(set(told.values())) == 1, "nobody learns whether others have such a task"
    with pytest.raises(InvalidTask, match="CANCELED already"):
        await submit(store, spec(terms=Terms(depends_on=(ended.id,))), now=at(1))
    assert len(await store.tasks.list()) == 2


async def test_a_cycle_is_refused_also_by_two_at_once(store: Store) -> None:
    one, two, three = [await submit(store, spec(), now=at(n), hold=True) for n in range(3)]
    await store.tasks.depend(two.id, [one.id], now=at(4))
    await store.tasks.depend(three.id, [two.id], now=at(4))
    with pytest.raises(InvalidTask, match=f"a cycle: {one.id}"):
        await store.tasks.depend(one.id, [three.id], now=at(5))
    with pytest.raises(InvalidTask, match="cycle"):
        await store.tasks.depend(one.id, [one.id], now=at(5))
    assert await store.tasks.unfinished(one.id) == ()
    a, b = [await submit(store, spec(), now=at(n), hold=True) for n in range(2)]
    results = await asyncio.gather(
        store.tasks.depend(a.id, [b.id], now=at(6)), store.tasks.depend(b.id, [a.id], now=at(6)), return_exceptions=True
    )
    assert sorted(type(result).__name__ for result in results) == ["InvalidTask", "NoneType"]
    assert await store.tasks.release(two.id, now=at(7))
    assert (await store.tasks.get(two.id)).admitted_at is None
    with pytest.raises(NotPossible, match="QUEUED"):
        await store.tasks.depend(two.id, [one.id], now=at(8))


async def test_a_key_gives_the_task_that_there_is(store: Store) -> None:
    options = {"now": T0, "deadline_at": T0 + DAY, "idempotency_key": "k"}
    rows = await asyncio.gather(*(store.tasks.submit(spec(), **options) for _ in range(6)))
    assert len({row.id for row in rows}) == 1 == len(await store.tasks.list())
    with pytest.raises(NotPossible) as refused:
        await store.tasks.submit(spec(name="other"), **options)
    assert refused.value.field == "idempotency_key"
    other = await store.tasks.submit(spec(name="other"), **options, frontend="them")
    assert other.id != rows[0].id
    await store.tasks.request_cancel(rows[0].id, now=at(1))
    assert (await store.tasks.submit(spec(), **options)).state is TaskState.CANCELED


async def test_a_queue_that_is_full_and_a_task_that_is_too_large_are_refused(store: Store) -> None:
    options = {"now": T0, "deadline_at": T0 + DAY, "max_waiting": 3}
    for _ in range(3):
        await store.tasks.submit(spec(), **options)
    with pytest.raises(NotPossible, match="3 of 3 tasks wait") as refused:
        await store.tasks.submit(spec(), **options)
    assert refused.value.field == "pool"
    await store.tasks.submit(spec("other"), **options)
    with pytest.raises(NotPossible):
        await store.tasks.submit_many([spec("third")] * 4, **options)
    assert await store.tasks.list(pool="third") == ()
    with pytest.raises(InvalidTask, match=f"at most {MAX_SPEC_BYTES}"):
        await submit(store, TaskSpec("small", ("x" * MAX_SPEC_BYTES,)), now=T0)


async def test_many_are_submitted_in_order_or_not_at_all(store: Store) -> None:
    me = await runner(store)
    names = [f"n{n}" for n in range(50)]
    rows = await store.tasks.submit_many([spec(name=n) for n in names], now=T0, deadline_at=T0 + DAY)
    assert [row.spec.name for row in rows] == names
    assert [c.task.spec.name for c in await take(store, me, ["small"], now=at(1), up_to=50)] == names
    with pytest.raises(InvalidTask):
        bad = spec(terms=Terms(depends_on=("0000000000000000",)))
        await store.tasks.submit_many([spec(), bad], now=T0, deadline_at=T0 + DAY)
    assert len(await store.tasks.list(limit=100)) == 50
    assert await store.tasks.submit_many([], now=T0, deadline_at=T0 + DAY) == ()


async def test_what_is_tried_again_later_waits_for_its_time(store: Store) -> None:
    claim = await claimed(store)
    requeued = Requeued(claim.lease, Reason.UNREACHABLE, "no ssh", at(60), at(900), ("host7",))
    assert await store.tasks.requeue(requeued, now=at(2)) is TaskState.QUEUED
    row = await store.tasks.get(claim.task.id)
    assert (row.admitted_at, row.not_before, row.deadline_at, row.avoid) == (None, at(60), at(900), ("host7",))
    assert row.reason is Reason.UNREACHABLE
    assert await take_one(store, claim.lease.runner_id, ["small"], now=at(3)) is None
    assert await store.tasks.admit(now=at(60)) == (row.id,)
    again = await take_one(store, claim.lease.runner_id, ["small"], now=at(61))
    assert again is not None and again.lease.attempt == 2 and again.task.avoid == ("host7",)
    await store.tasks.requeue(retried(again.lease, Reason.RETRY), now=at(62))
    assert (await store.tasks.get(row.id)).admitted_at == at(62)


async def test_the_place_in_the_queue_is_counted(store: Store) -> None:
    for n in range(3):
        await submit(store, spec(terms=Terms(priority=9)), now=at(n))
    for n in range(2):
        await submit(store, spec(), now=at(10 + n))
    for n in range(4):
        await submit(store, spec(), now=at(20 + n), frontend="them")
    mine = await submit(store, spec(), now=at(30))
    await submit(store, spec(), now=at(40))
    assert await store.tasks.ahead_of(mine.id) == QueuePlace(3, 2, (4,), bounded=False)
    waits = await submit(store, spec(terms=Terms(not_before=at(999))), now=at(50))
    assert await store.tasks.ahead_of(waits.id) is None


async def test_throughput_is_measured_from_what_ended(store: Store) -> None:
    me = await runner(store)
    for n in range(3):
        claim = await claimed(store, me)
        await store.tasks.finish(Finished(claim.lease, TaskState.FINISHED, exit_code=0), now=at(11 + 10 * n))
    found = await store.tasks.throughput("small", now=at(40))
    assert (found.ended, found.window_seconds, found.mean_seconds) == (3, 3600, 20)
    late = await store.tasks.throughput("small", now=at(31) + timedelta(hours=1))
    assert (late.ended, late.mean_seconds) == (0, None)
