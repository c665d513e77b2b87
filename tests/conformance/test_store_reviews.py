"""What is decided of results, and what is signed of attempts: once each, on every database."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.domain.errors import NotFound, NotPossible
from orchestrator.domain.outcome import Exited, Reason, Usage
from orchestrator.domain.task import TaskState
from orchestrator.domain.vm import VmState
from orchestrator.store import Decision, Finished, ReviewRow, Store, VmMoved, VmRequest
from tests.conformance.queueing import DAY, T0, at, claimed, retried, runner, spec, submit, take_one


async def over(store: Store) -> str:
    claim = await claimed(store)
    assert await store.tasks.finish(Finished(claim.lease, TaskState.FINISHED, exit_code=0), now=at(5))
    return claim.task.id


@pytest.mark.parametrize("decision", list(Decision))
async def test_somebody_decides_of_the_results_of_a_task(store: Store, decision: Decision) -> None:
    task_id = await over(store)
    assert await store.reviews.get(task_id) is None
    made = await store.reviews.decide(task_id, decision, "ada", "no names in it", now=at(9))
    assert made == ReviewRow(task_id, decision, "ada", "no names in it", at(9))
    assert await store.reviews.get(task_id) == made
    event = (await store.events.list(task_id=task_id))[-1]
    assert (event.kind, event.attempt) == (f"task.results_{decision}", 1)
    assert event.data == {"by": "ada", "why": "no names in it"}


async def test_what_was_decided_stands(store: Store) -> None:
    task_id = await over(store)
    made = await store.reviews.decide(task_id, Decision.REJECTED, "ada", "", now=at(9))
    events = await store.events.list(task_id=task_id)
    for decision in Decision:
        with pytest.raises(NotPossible, match=r"rejected by ada at 2026-03-01T12:00:09\+00:00") as refused:
            await store.reviews.decide(task_id, decision, "bob", "I know better", now=at(10))
        assert refused.value.field == "task"
    assert await store.reviews.get(task_id) == made
    assert await store.events.list(task_id=task_id) == events


async def test_what_is_not_over_cannot_be_judged(store: Store) -> None:
    waiting = await submit(store, spec(), now=T0)
    held = (await claimed(store)).task
    for task in (waiting, held):
        with pytest.raises(NotPossible, match=f"{task.id} is {task.state}"):
            await store.reviews.decide(task.id, Decision.RELEASED, "ada", "", now=at(9))
        assert await store.reviews.get(task.id) is None
    with pytest.raises(NotFound):
        await store.reviews.decide("0000000000000000", Decision.RELEASED, "ada", "", now=at(9))


async def test_of_two_who_decide_at_once_the_first_stands(store_url: str, store: Store) -> None:
    async with await Store.open(store_url) as other:
        for _ in range(5):
            task_id = await over(store)
            asked = [
                each.reviews.decide(task_id, decision, by, "", now=at(9))
                for each, decision, by in ((store, Decision.RELEASED, "ada"), (other, Decision.REJECTED, "bob"))
            ]
            answers = await asyncio.gather(*asked, return_exceptions=True)
            [made] = [each for each in answers if isinstance(each, ReviewRow)]
            [refused] = [each for each in answers if isinstance(each, NotPossible)]
            assert await store.reviews.get(task_id) == made
            assert f"{made.decision} by {made.by}" in refused.problem
            told = [event for event in await store.events.list(task_id=task_id) if "results" in event.kind]
            assert len(told) == 1


async def test_odd_text_is_kept_readable(store: Store) -> None:
    task_id = await over(store)
    made = await store.reviews.decide(task_id, Decision.RELEASED, "a\0da", "w\udcffhy ß", now=at(9))
    assert (made.by, made.why) == ("a\\x00da", "w\\xffhy ß")
    assert await store.reviews.get(task_id) == made


async def test_a_receipt_is_due_when_nothing_more_can_happen_to_the_attempt(store: Store) -> None:
    claim = await claimed(store)
    lease = claim.lease
    vm = await store.vms.request(VmRequest("small", "1", lease.runner_id, at(60), lease), now=at(2))
    assert vm is not None
    mine = (lease.task_id, 1)
    assert await store.attempts.receipt_due() == ()
    assert not await store.attempts.record_receipt(*mine, "a" * 64, now=at(3)), "it is not over"
    assert await store.tasks.finish(Finished(lease, TaskState.FINISHED, exit_code=0), now=at(4))
    assert await store.attempts.receipt_due() == ()
    assert not await store.attempts.record_receipt(*mine, "a" * 64, now=at(5)), "its machine is not gone"
    assert await store.vms.move(VmMoved(vm.id, VmState.DESTROYED, None, close_proof="DONE"), now=at(6))
    assert await store.attempts.receipt_due() == (mine,)
    assert await store.attempts.record_receipt(*mine, "a" * 64, now=at(7))
    assert await store.attempts.receipt_due() == ()
    assert not await store.attempts.record_receipt(*mine, "b" * 64, now=at(8)), "there is one"
    attempt = await store.attempts.get(*mine)
    assert attempt is not None and (attempt.receipt_sha256, attempt.receipt_at) == ("a" * 64, at(7))
    assert not await store.attempts.record_receipt("nobody", 1, "a" * 64, now=at(8))


async def test_each_attempt_is_due_also_of_a_task_that_goes_on(store: Store) -> None:
    me = await runner(store)
    found = []
    for n in range(3):
        claim = await claimed(store, me)
        assert await store.tasks.requeue(retried(claim.lease, Reason.UNREACHABLE), now=at(2)) is TaskState.QUEUED
        again = await take_one(store, me, ["small"], now=at(3), only=claim.task.id)
        assert again is not None
        found.append((claim.task.id, 1))
        if n == 0:
            assert await store.tasks.finish(Finished(again.lease, TaskState.FAILED, exit_code=1), now=at(4))
            found.append((claim.task.id, 2))
    found.sort()
    assert await store.attempts.receipt_due() == tuple(found)
    assert await store.attempts.receipt_due(2) == tuple(found[:2])
    assert await store.attempts.receipt_due(2, after=found[1]) == tuple(found[2:])
    assert await store.attempts.receipt_due(after=found[-1]) == ()


async def test_two_who_sign_at_once_one_is_recorded(store_url: str, store: Store) -> None:
    async with await Store.open(store_url) as other:
        task_id = await over(store)
        wrote = await asyncio.gather(
            store.attempts.record_receipt(task_id, 1, "a" * 64, now=at(9)),
            other.attempts.record_receipt(task_id, 1, "b" * 64, now=at(9)),
        )
        attempt = await store.attempts.get(task_id, 1)
    assert sorted(wrote) == [False, True]
    assert attempt is not None and attempt.receipt_sha256 == ("a" if wrote[0] else "b") * 64


async def test_what_a_process_read_and_wrote_is_kept(store: Store) -> None:
    lease = (await claimed(store)).lease
    used = Usage(1.5, 2**33, 2**40, 0)
    assert await store.attempts.record_outcome(lease, Exited(0), used)
    attempt = await store.attempts.get(lease.task_id, 1)
    assert attempt is not None and attempt.usage == used
    assert await store.attempts.record_outcome(lease, Exited(0))
    attempt = await store.attempts.get(lease.task_id, 1)
    assert attempt is not None and attempt.usage == used, "what is not known takes nothing away"


async def test_who_submitted_a_task_is_kept(store: Store) -> None:
    one = await store.tasks.submit(spec(), now=T0, deadline_at=T0 + DAY, submitted_by="ada")
    two, three = await store.tasks.submit_many([spec(), spec()], now=T0, deadline_at=T0 + DAY, submitted_by="b\0b")
    nobody = await submit(store, spec(), now=T0)
    told = [(await store.tasks.get(task.id)).submitted_by for task in (one, two, three, nobody)]
    assert told == ["ada", "b\\x00b", "b\\x00b", ""]
    assert one.submitted_by == "ada"
    claim = await take_one(store, await runner(store), ["small"], now=at(1), only=one.id)
    assert claim is not None and claim.task.submitted_by == "ada"
