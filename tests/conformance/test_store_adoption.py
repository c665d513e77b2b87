"""What every database must do when a runner is silent: its attempts are taken over once, and it may write no more."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.domain.outcome import Exited, Reason, judge
from orchestrator.domain.task import Stage, TaskState
from orchestrator.domain.vm import VmState
from orchestrator.store import Claim, Finished, StageEntered, Store, VmMoved, VmRequest
from tests.conformance.queueing import at, claimed, kinds, runner


async def executing(store: Store, stage: Stage = Stage.EXECUTING) -> tuple[Claim, str]:
    """An attempt with a machine, held until at(31)."""
    claim = await claimed(store)
    request = VmRequest("small", "1", claim.lease.runner_id, at(60), claim.lease, host_public_key="ssh-ed25519 AAAA")
    vm = await store.vms.request(request, now=at(2))
    assert vm is not None and vm.host_public_key == "ssh-ed25519 AAAA"
    for state in (VmState.BOOTING, VmState.READY, VmState.IN_USE):
        moved = VmMoved(vm.id, state, claim.lease.runner_id, deadline_at=at(900))
        assert await store.vms.move(moved, now=at(3))
    assert await store.tasks.enter_stage(StageEntered(claim.lease, stage), now=at(4))
    return claim, vm.id


@pytest.mark.parametrize("stage", [Stage.EXECUTING, Stage.STAGING_OUT])
async def test_an_attempt_is_adopted_with_its_machine_under_its_number(store: Store, stage: Stage) -> None:
    claim, vm_id = await executing(store, stage)
    other = await runner(store)
    assert await store.tasks.adopt(other, ["small"], lease_seconds=30, now=at(31)) == ()
    assert await store.tasks.adopt(other, ["big"], lease_seconds=30, now=at(32)) == ()
    assert await store.tasks.adopt(claim.lease.runner_id, ["small"], lease_seconds=30, now=at(32)) == ()
    [adopted] = await store.tasks.adopt(other, ["small"], lease_seconds=30, now=at(32), up_to=5)
    assert (adopted.lease.attempt, adopted.lease.runner_id, adopted.task.stage) == (1, other, stage)
    assert adopted.task.lease_expires_at == at(62)
    vm, attempt = await store.vms.get(vm_id), await store.attempts.get(claim.task.id, 1)
    assert vm is not None and attempt is not None and (vm.runner_id, attempt.runner_id) == (other, other)
    assert (await kinds(store, claim.task.id))[-1] == "task.adopted"
    old = claim.lease
    assert await store.tasks.beat(old.runner_id, [old], lease_seconds=30, now=at(33)) == {}
    assert not await store.tasks.let_go(old, now=at(33))
    assert not await store.tasks.finish(Finished.by(old, judge(Exited(0))), now=at(33))
    assert not await store.attempts.record_verdict(old, judge(Exited(0)))
    moved = VmMoved(vm_id, VmState.DESTROYING, old.runner_id, deadline_at=at(99))
    assert not await store.vms.move(moved, now=at(33))
    assert await store.attempts.record_host(adopted.lease, "host7")
    vm = await store.vms.get(vm_id)
    assert vm is not None and vm.host == "host7"


@pytest.mark.parametrize("stage", [Stage.STAGING_IN, Stage.DESTROYING])
async def test_what_runs_no_process_is_not_adopted(store: Store, stage: Stage) -> None:
    await executing(store, stage)
    assert await store.tasks.adopt(await runner(store), ["small"], lease_seconds=30, now=at(40)) == ()


async def test_what_has_its_verdict_is_not_adopted(store: Store) -> None:
    claim, _ = await executing(store)
    assert await store.attempts.record_verdict(claim.lease, judge(Exited(3)))
    attempt = await store.attempts.get(claim.task.id, 1)
    assert attempt is not None and attempt.verdict == judge(Exited(3))
    assert await store.tasks.adopt(await runner(store), ["small"], lease_seconds=30, now=at(40)) == ()


async def test_what_is_let_go_is_adopted_at_once_and_by_one(store: Store) -> None:
    claim, _ = await executing(store)
    assert await store.tasks.let_go(claim.lease, now=at(5))
    others = [await runner(store) for _ in range(4)]
    found = await asyncio.gather(
        *(store.tasks.adopt(other, ["small"], lease_seconds=30, now=at(6)) for other in others),
    )
    assert sorted(len(each) for each in found) == [0, 0, 0, 1]


async def test_what_is_overdue_is_ended_as_it_was_read(store: Store) -> None:
    claim = await claimed(store)
    deadline = claim.task.deadline_at
    assert deadline is not None
    assert await store.tasks.overdue(now=at(2)) == ()
    [row] = await store.tasks.overdue(now=deadline)
    await store.tasks.heartbeat(claim.lease, lease_seconds=30, now=deadline)
    assert await store.tasks.end_overdue(row, "too long", now=deadline)
    assert not await store.tasks.end_overdue(row, "too long", now=deadline)
    ended = await store.tasks.get(row.id)
    assert (ended.state, ended.reason, ended.deadline_at) == (TaskState.FAILED, Reason.DEADLINE_PASSED, None)
    assert await store.tasks.heartbeat(claim.lease, lease_seconds=30, now=deadline) is None


async def test_one_leads_until_its_lease_runs_out(store: Store) -> None:
    lead = store.leaders.lead
    assert await lead("s", "a", seconds=10, now=at(0)) == 1
    assert await lead("s", "b", seconds=10, now=at(9)) is None
    assert await lead("s", "a", seconds=10, now=at(9)) == 1
    assert sorted(await asyncio.gather(*(lead("s", h, seconds=10, now=at(19)) for h in "bcd")), key=str) == [
        2, None, None
    ]  # fmt: skip
    leader = await store.leaders.get("s")
    assert leader is not None and leader.term == 2 and leader.expires_at == at(29)
    assert not await store.leaders.resign("s", "a")
    assert await store.leaders.resign("s", leader.holder)
    assert await lead("s", "a", seconds=10, now=at(20)) == 3
