"""Close what nobody answers for: leases that ran out, VMs whose attempt is over, machines that no row knows.

The decisions are `decide.reap`'s; a machine that merely looks lost is touched at its second sighting only, so the
suspects of one round are kept for the next.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import assert_never

from sqlalchemy.exc import SQLAlchemyError

from orchestrator.decide.reap import (
    Adopt,
    Close,
    Conclude,
    Decision,
    Destroy,
    DestroyOrphan,
    Expire,
    Facts,
    HeldTask,
    OpenVm,
    Plan,
    SeenVm,
    reap,
)
from orchestrator.domain.errors import MayflyError
from orchestrator.domain.outcome import Verdict, failed
from orchestrator.domain.task import TaskState
from orchestrator.domain.vm import VmState
from orchestrator.opennebula import Cloud, Phase
from orchestrator.store import Finished, Lease, Store, VmMoved

TERMINATE_SECONDS = 30.0
AGAIN_SECONDS = 60.0


class Reap:
    """The chore. `suspects`: what the last round saw and did not touch yet."""

    interval_seconds = 10.0

    def __init__(self) -> None:
        self.suspects: frozenset[str] = frozenset()

    async def run_once(self, store: Store, cloud: Cloud) -> list[str]:
        """Load, decide, apply; a line for each thing done. Raises CloudError when OpenNebula cannot be asked."""
        now = datetime.now(UTC)
        found = reap(await _load(store, cloud, now), self.suspects, now)
        self.suspects = found.suspects
        done = await asyncio.gather(*(_carry_out(plan, store, cloud) for plan in found.plans))
        return [line for lines in done for line in lines]


async def _load(store: Store, cloud: Cloud, now: datetime) -> Facts:
    # The machines first: one that is made between the two readings then has its row, and is no orphan.
    seen = [
        SeenVm(vm.id, vm.tags.get("MAYFLY_VM", ""), vm.phase is Phase.DONE)
        for vm in await cloud.vms(store.installation_id)
    ]
    vms = [
        OpenVm(vm.id, vm.cloud_id, vm.state, vm.deadline_at or now, vm.task_id, vm.attempt)
        for vm in await store.vms.open()
    ]
    # No runner adopts yet: without its stage, an attempt that was executing is ended as any other.
    held = [
        HeldTask(task.id, task.attempt, task.runner_id, task.lease_expires_at, datetime.max.replace(tzinfo=UTC))
        for task in await store.tasks.list(states=(TaskState.RUNNING, TaskState.WAITING), limit=100_000)
        if task.runner_id is not None and task.lease_expires_at is not None
    ]
    return Facts(held, vms, seen)


async def _carry_out(plan: Plan, store: Store, cloud: Cloud) -> list[str]:
    """Do its steps, beside the other plans: a machine that will not go keeps none of them from being done. A line for
    each step that was done; the first that was not ends the plan."""
    done: list[str] = []
    try:
        for step in plan:
            line = await _apply(step, store, cloud)
            if not line:
                break
            done.append(line)
    except (MayflyError, SQLAlchemyError, OSError) as trouble:
        done.append(f"not done yet: {trouble}")
    return done


async def _apply(decision: Decision, store: Store, cloud: Cloud) -> str:
    """Do it; say what was done, or nothing when it came too late."""
    now = datetime.now(UTC)
    match decision:
        case Expire(task, failure):
            return await _finish(store, task, failed(failure.reason, failure.message), now)
        case Conclude(task, verdict):
            return await _finish(store, task, verdict, now)
        case Adopt(vm_id, cloud_id):
            done = await store.vms.set_cloud_id(vm_id, cloud_id, now=now)
            return f"vm {vm_id} is OpenNebula's {cloud_id}" if done else ""
        case Destroy(vm_id, cloud_id, because):
            again = now + timedelta(seconds=AGAIN_SECONDS)
            moved = VmMoved(vm_id, VmState.DESTROYING, None, deadline_at=again, because=because)
            await store.vms.move(moved, now=now)
            await cloud.terminate(cloud_id, within=TERMINATE_SECONDS)
            return await _close(store, vm_id, f"OpenNebula says DONE of VM {cloud_id}")
        case DestroyOrphan(cloud_id, because):
            await cloud.terminate(cloud_id, within=TERMINATE_SECONDS)
            return f"OpenNebula's VM {cloud_id} is destroyed: {because}"
        case Close(vm_id, proof):
            return await _close(store, vm_id, proof)
        case _:
            assert_never(decision)


async def _finish(store: Store, task: HeldTask, verdict: Verdict, now: datetime) -> str:
    lease = Lease(task.task_id, task.attempt, task.runner_id)
    done = await store.tasks.finish(Finished.by(lease, verdict), now=now, if_expired=True)
    return f"task {task.task_id} {verdict.state.lower()}: {verdict.message}" if done else ""


async def _close(store: Store, vm_id: str, proof: str) -> str:
    """A machine that ended unasked is DESTROYING for a moment first: no other move leads to DESTROYED."""
    now = datetime.now(UTC)
    ends = VmMoved(vm_id, VmState.DESTROYING, None, deadline_at=now + timedelta(seconds=AGAIN_SECONDS), because=proof)
    closed = VmMoved(vm_id, VmState.DESTROYED, None, close_proof=proof)
    if not await store.vms.move(closed, now=now):
        await store.vms.move(ends, now=now)
        if not await store.vms.move(closed, now=now):
            return ""
    return f"vm {vm_id} is closed: {proof}"
