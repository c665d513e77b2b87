"""Whatever bytes users and guests give: kept where they matter, shown where people read them, and never a crash."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.domain.errors import InvalidTask, NotFound
from orchestrator.domain.outcome import Exited, Lost, Reason, Verdict, judge
from orchestrator.domain.task import InputSpec, Stage, TaskSpec, TaskState
from orchestrator.domain.vm import VmState
from orchestrator.store import Finished, Requeued, ScheduleRow, StageEntered, Store, VmMoved, VmRequest
from tests.conformance.queueing import DAY, T0, at, claimed, kinds, runner, spec, submit, take_one

ODD = "a\0b\udcffc\ud800d\U0001f600'\"\\x00%s:x"
SHOWN = "a\\x00b\\xffc\\ud800d\U0001f600'\"\\x00%s:x"


async def test_a_description_is_kept_to_the_last_odd_character(store: Store) -> None:
    odd = TaskSpec(
        pool="small",
        command=(ODD, "\0"),
        inputs=(InputSpec(ODD, ODD, ODD),),
        outputs=(ODD,),
        environment={ODD: ODD},
        name=ODD,
    )
    task = await submit(store, odd, now=T0)
    assert (await store.tasks.get(task.id)).spec == odd
    [same] = await store.tasks.list()
    assert same == await store.tasks.get(task.id)
    claim = await take_one(store, await runner(store), ["small"], now=at(1))
    assert claim is not None and claim.task.spec == odd
    row = ScheduleRow("s", odd, "local", None, 5.0, "UTC", False, at(5))
    assert await store.schedules.add(row, now=T0) == await store.schedules.get("s") == row
    made = await store.schedules.advance("s", at(5), odd, at(10), now=at(5), deadline_at=T0 + DAY)
    assert made is not None and made.spec == odd


async def test_a_key_that_cannot_be_kept_is_refused_and_the_same_description_is_known_again(store: Store) -> None:
    odd = TaskSpec("small", (ODD,), name=ODD)
    options = {"now": T0, "deadline_at": T0 + DAY}
    for key in ("a\0b", "\udcff", ODD):
        with pytest.raises(InvalidTask) as refused:
            await store.tasks.submit(odd, **options, idempotency_key=key)
        assert refused.value.field == "idempotency_key"
    assert await store.tasks.list() == ()
    one, two = [await store.tasks.submit(odd, **options, idempotency_key="née \U0001f600") for _ in range(2)]
    assert one.id == two.id


async def test_what_a_guest_says_is_kept_as_data_and_shown_as_text(store: Store) -> None:
    claim = await claimed(store)
    lease = claim.lease
    assert await store.attempts.record_environment(lease, {ODD: ODD, "deep": [{"x": ODD}]})
    assert await store.attempts.record_environment(lease, {"more": None})
    assert await store.attempts.record_artifacts(lease, {"stdout": ODD})
    assert await store.attempts.record_outcome(lease, Lost(ODD))
    assert await store.attempts.record_verdict(lease, Verdict(TaskState.FAILED, Reason.CONNECTION_LOST, ODD, 125))
    assert await store.attempts.record_host(lease, ODD)
    attempt = await store.attempts.get(claim.task.id, 1)
    assert attempt is not None and attempt.verdict is not None
    assert attempt.environment == {ODD: ODD, "deep": [{"x": ODD}], "more": None}
    assert (attempt.artifacts, attempt.outcome, attempt.verdict.message) == ({"stdout": ODD}, Lost(ODD), ODD)
    assert attempt.host == SHOWN
    number = await store.events.append(ODD, now=at(2), task_id=claim.task.id, data={"k": ODD})
    [event] = [each for each in await store.events.list() if each.number == number]
    assert event.data == {"message": ODD, "k": ODD}
    assert await store.tasks.finish(Finished(lease, TaskState.FAILED, Reason.INTERNAL, ODD, 125), now=at(3))
    assert (await store.tasks.get(claim.task.id)).message == SHOWN
    assert (await store.events.list())[-1].data["message"] == ODD


async def test_text_about_tasks_queues_and_machines_is_shown(store: Store) -> None:
    rejected, late = await submit(store, spec(), now=T0), await submit(store, spec(), now=T0)
    assert await store.tasks.reject(rejected.id, Reason.INTERNAL, ODD, now=at(1))
    assert await store.tasks.end_overdue(await store.tasks.get(late.id), ODD, now=T0 + DAY)
    claim = await claimed(store)
    vm = await store.vms.request(
        VmRequest("small", ODD, claim.lease.runner_id, at(60), claim.lease, ODD, ODD), now=at(2)
    )
    assert vm is not None and (vm.image_version, vm.host_key, vm.host_public_key) == (SHOWN, SHOWN, SHOWN)
    booting = VmMoved(vm.id, VmState.BOOTING, None, deadline_at=at(9), address=ODD, because=ODD)
    assert await store.vms.move(booting, now=at(3))
    assert await store.vms.move(VmMoved(vm.id, VmState.DESTROYING, None, deadline_at=at(9)), now=at(3))
    assert await store.vms.move(VmMoved(vm.id, VmState.DESTROYED, None, close_proof=ODD), now=at(4))
    closed = await store.vms.get(vm.id)
    assert closed is not None and (closed.address, closed.close_proof) == (SHOWN, SHOWN)
    requeued = Requeued(claim.lease, Reason.UNREACHABLE, ODD, None, T0 + DAY, (ODD,))
    assert await store.tasks.requeue(requeued, now=at(5)) is TaskState.QUEUED
    again = await store.tasks.get(claim.task.id)
    assert (again.message, again.avoid) == (SHOWN, (ODD,))
    for task in (rejected, late):
        assert (await store.tasks.get(task.id)).message == SHOWN
    assert await store.queues.pause("small", ODD, now=at(6))
    assert await store.queues.block("small", Reason.QUOTA, ODD, now=at(7))
    assert not await store.queues.block("small", Reason.QUOTA, ODD, now=at(8)), "the same as before"
    [queue] = await store.queues.list()
    assert (queue.paused_because, queue.blocked_message) == (SHOWN, SHOWN)


async def test_names_are_looked_for_whatever_is_in_them(store: Store) -> None:
    task = await submit(store, spec(ODD), now=T0, frontend=ODD)
    assert task.spec.pool == ODD
    assert [each.id for each in await store.tasks.list(pool=ODD)] == [task.id]
    assert await store.tasks.list(pool="\udc80") == ()
    assert await store.tasks.throughput(ODD, now=at(1)) is not None
    assert await store.tasks.unfinished(ODD) == ()
    with pytest.raises(NotFound):
        await store.tasks.get(ODD)
    for wanted in (spec(), TaskSpec("small", ("x",))):
        with pytest.raises(InvalidTask, match="no task"):
            terms = replace(wanted.terms, depends_on=(ODD,))
            await submit(store, replace(wanted, terms=terms), now=T0)
    assert await store.queues.delete("\0", now=at(2)) == 0
    assert await store.queues.delete(ODD, now=at(2)) == 1
    me = await store.runners.register(name=ODD, host=ODD, pid=1, pools=[ODD], now=T0)
    assert await store.runners.serving(ODD, now=T0)
    assert (me.name, me.host, me.pools) == (SHOWN, SHOWN, (ODD,))
    assert await store.leaders.lead(ODD, ODD, seconds=5, now=T0) == 1
    assert await store.leaders.lead(ODD, ODD, seconds=5, now=T0) == 1
    assert await store.leaders.resign(ODD, ODD)
    assert await store.events.list(task_id=ODD) == ()
    assert await store.attempts.of_task(ODD) == ()
    assert await kinds(store, task.id) == ["task.submitted", "task.canceled"]


@pytest.mark.parametrize("signal", ["\0", "\udcff", ODD])
async def test_an_end_that_a_guest_made_up_is_judged_and_kept(store: Store, signal: str) -> None:
    claim = await claimed(store)
    assert await store.tasks.enter_stage(StageEntered(claim.lease, Stage.EXECUTING), now=at(2))
    assert await store.attempts.record_outcome(claim.lease, Lost(signal))
    assert await store.tasks.finish(Finished.by(claim.lease, judge(Lost(signal))), now=at(3))
    task = await store.tasks.get(claim.task.id)
    assert "\0" not in task.message and task.message.isprintable()
    assert await store.attempts.record_outcome(claim.lease, Exited(0)) is False
