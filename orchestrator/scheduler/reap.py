"""Close what nobody answers for: leases that ran out, VMs whose attempt is over, machines that no row knows.

The decisions are `decide.reap`'s; what merely looks lost is touched at its second sighting only, so the suspects of one
round are kept for the next.
"""

from __future__ import annotations

import asyncio
import random
from datetime import datetime, timedelta
from typing import assert_never

from orchestrator.decide import retry
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
from orchestrator.decide.retry import Failure, GiveUp, Retry
from orchestrator.domain.errors import CloudDenied, CloudWrongState, NotDestroyed
from orchestrator.domain.outcome import Verdict
from orchestrator.domain.pool import Pool
from orchestrator.domain.proof import CloseProof
from orchestrator.domain.task import Stage, TaskState
from orchestrator.domain.vm import VmState
from orchestrator.opennebula import Phase
from orchestrator.scheduler.upkeep import Upkeep
from orchestrator.store import Finished, Lease, Requeued, TaskRow, VmMoved
from orchestrator.trouble import TROUBLE

TERMINATE_SECONDS = 25.0
"""Longer than it takes for a VM on its way to DONE to count as stuck (20 s), so that it is recovered at once."""
AGAIN_SECONDS = 60.0
LONGEST_INTERVAL_SECONDS = 20.0
EVERYTHING = 1_000_000


class Reap:
    """The chore. `suspects`: what the last round saw and did not touch yet."""

    looks_twice = True

    def __init__(self, upkeep: Upkeep) -> None:
        self._upkeep = upkeep
        self._metrics = upkeep.telemetry.metrics
        self.suspects: frozenset[str] = frozenset()
        self._stays: dict[int, datetime] = {}
        """Machines that were asked to end and did not, and when each is asked again."""

    @property
    def interval_seconds(self) -> float:
        """Two heartbeats of a runner: the lease of a living one has moved in between."""
        return min(LONGEST_INTERVAL_SECONDS, self._upkeep.lease_seconds / 3)

    async def run_once(self) -> list[str]:
        """Load, decide, apply; a line for each thing done. Raises CloudError when OpenNebula cannot be asked."""
        store = self._upkeep.store
        now = store.clock.now()
        told = await self._put_right(now)
        found = reap(await self._load(now), self.suspects, now)
        self.suspects = found.suspects
        done = await asyncio.gather(*(self._carry_out(plan) for plan in found.plans))
        return told + [line for lines in done for line in lines]

    async def _put_right(self, now: datetime) -> list[str]:
        """What was written at a time that the clock has been put back from."""
        tasks, pools = self._upkeep.store.tasks, self._upkeep.pools
        leases = await tasks.shorten_leases(now=now, longest_seconds=2 * self._upkeep.lease_seconds)
        longest = {name: pool.retry_backoff_max_seconds for name, pool in pools.items()}
        waits = await tasks.shorten_waits(now=now, longest_seconds=longest)
        cut = {"leases": leases, "waits for another attempt": waits}
        return [f"{many} {what} reached too far ahead: the clock was put back" for what, many in cut.items() if many]

    async def _load(self, now: datetime) -> Facts:
        # The machines first: one that is made between the readings then has its row, and is no orphan.
        store, cloud = self._upkeep.store, self._upkeep.cloud
        seen = [
            SeenVm(
                vm.id, vm.tags.get("MAYFLY_VM", ""), vm.phase is Phase.DONE, off=vm.phase in (Phase.OFF, Phase.FAILED)
            )
            for vm in await cloud.vms(store.installation_id)
        ]
        vms = [
            OpenVm(vm.id, vm.cloud_id, vm.state, vm.deadline_at or now, vm.task_id, vm.attempt, vm.runner_id)
            for vm in await store.vms.open()
        ]
        self._metrics.overdue(sum(vm.deadline_at <= now for vm in vms))
        held = await store.tasks.list(states=(TaskState.RUNNING, TaskState.WAITING), limit=EVERYTHING)
        holders = [each for task in held if (each := await self._held(task, now))]
        return Facts(holders, vms, seen, alive=[runner.id for runner in await store.runners.alive(now=now)])

    async def _held(self, task: TaskRow, now: datetime) -> HeldTask | None:
        if task.runner_id is None or task.lease_expires_at is None or task.deadline_at is None:
            return None
        expired = task.lease_expires_at <= now
        attempt = await self._upkeep.store.attempts.get(task.id, task.attempt) if expired else None
        return HeldTask(
            task_id=task.id,
            attempt=task.attempt,
            runner_id=task.runner_id,
            lease_expires_at=task.lease_expires_at,
            deadline_at=task.deadline_at,
            stage=task.stage,
            started=attempt is None or Stage.EXECUTING in attempt.timings,
            cancel_requested=task.cancel_requested_at is not None,
            verdict=None if attempt is None else attempt.verdict,
        )

    async def _carry_out(self, plan: Plan) -> list[str]:
        """Do its steps, beside the other plans: a machine that will not go keeps none of them from being done. A line
        for each step that was done; the first that was not ends the plan."""
        done: list[str] = []
        try:
            for step in plan:
                line = await self._apply(step)
                if not line:
                    break
                done.append(line)
        except TROUBLE as trouble:
            done.append(f"not done yet: {trouble}")
        return done

    async def _apply(self, decision: Decision) -> str:
        """Do it; say what was done, or nothing when it came too late."""
        store = self._upkeep.store
        now = store.clock.now()
        match decision:
            case Expire(task, failure):
                return await self._expire(task, failure)
            case Conclude(task, verdict):
                return await self._finish(task, verdict)
            case Adopt(vm_id, cloud_id):
                done = await store.vms.set_cloud_id(vm_id, cloud_id, now=now)
                return f"vm {vm_id} is OpenNebula's {cloud_id}" if done else ""
            case Destroy(vm_id, cloud_id, because, spare):
                again = now + timedelta(seconds=AGAIN_SECONDS)
                moved = VmMoved(vm_id, VmState.DESTROYING, None, deadline_at=again, because=because, if_spare=spare)
                if not await store.vms.move(moved, now=now) and spare and await self._was_taken(vm_id):
                    return ""
                proof = await self._terminated(cloud_id)
                if proof is None:
                    return ""
                self._metrics.leaked(orphan=False)
                return await self._close(vm_id, proof)
            case DestroyOrphan(cloud_id, because):
                if await self._terminated(cloud_id) is None:
                    return ""
                self._metrics.leaked(orphan=True)
                return f"OpenNebula's VM {cloud_id} is destroyed: {because}"
            case Close(vm_id, because, known_as, spare):
                return await self._close(vm_id, await self._proof(because, known_as), spare=spare)
            case _:
                assert_never(decision)

    async def _was_taken(self, vm_id: str) -> bool:
        """A claim was faster: it is for a task now."""
        row = await self._upkeep.store.vms.get(vm_id)
        return row is not None and not row.spare

    async def _terminated(self, cloud_id: int) -> CloseProof | None:
        """End it. None: it stayed when it was asked not long ago. Raises CloudError."""
        now = self._upkeep.store.clock.now()
        if self._stays.get(cloud_id, now) > now:
            return None
        self._stays.pop(cloud_id, None)
        try:
            return await self._upkeep.cloud.terminate(cloud_id, within=TERMINATE_SECONDS)
        except NotDestroyed:
            self._stays[cloud_id] = self._upkeep.store.clock.now() + timedelta(seconds=AGAIN_SECONDS)
            raise

    async def _proof(self, because: str, cloud_id: int | None) -> CloseProof:
        """Raises CloudWrongState when the VM is there: what it was missed in was wrong."""
        if cloud_id is None:
            return CloseProof(because)
        try:
            proof = await self._upkeep.cloud.ended(cloud_id)
        except CloudDenied:
            return CloseProof(because, cloud_id)  # it may not even be shown to us
        if proof is None:
            raise CloudWrongState(f"VM {cloud_id} is there: {because}, but that is not so")
        return proof

    async def _expire(self, held: HeldTask, failure: Failure) -> str:
        """Another attempt, or the end, as `decide.retry` says."""
        store = self._upkeep.store
        task = await store.tasks.get(held.task_id)
        pool = self._upkeep.pools.get(task.spec.pool) or Pool(name=task.spec.pool, image="")
        answer = retry.after(
            failure,
            terms=task.spec.terms,
            pool=pool,
            attempt=held.attempt,
            rand=random.random(),
            earlier=await store.events.requeue_reasons(task.id),
        )
        match answer:
            case GiveUp(verdict):
                return await self._finish(held, verdict)
            case Retry():
                return await self._requeue(held, task, pool, answer)
            case _:
                assert_never(answer)

    async def _requeue(self, held: HeldTask, task: TaskRow, pool: Pool, answer: Retry) -> str:
        store = self._upkeep.store
        now = store.clock.now()
        attempt = await store.attempts.get(task.id, held.attempt) if answer.avoid_host else None
        requeued = Requeued.by(_lease(held), answer, task, pool, host=attempt.host if attempt else None, now=now)
        went = await store.tasks.requeue(requeued, now=now, if_expired=True)
        if went is None:
            return ""
        self._over(held, requeued=went is TaskState.QUEUED)
        return f"task {task.id} is {went.lower()} again: {answer.message}"

    async def _finish(self, held: HeldTask, verdict: Verdict) -> str:
        store = self._upkeep.store
        finished = Finished.by(_lease(held), verdict)
        if not await store.tasks.finish(finished, now=store.clock.now(), if_expired=True):
            return ""
        self._over(held, requeued=False)
        return f"task {held.task_id} {verdict.state.lower()}: {verdict.message}"

    def _over(self, held: HeldTask, *, requeued: bool) -> None:
        """The attempt of a runner that was silent for too long is."""
        self._metrics.lease_expired(requeued=requeued)
        self._upkeep.telemetry.over(held.task_id, held.attempt)

    async def _close(self, vm_id: str, proof: CloseProof, *, spare: bool = False) -> str:
        """A machine that ended unasked is DESTROYING for a moment first: no other move leads to DESTROYED."""
        vms, now = self._upkeep.store.vms, self._upkeep.store.clock.now()
        again = now + timedelta(seconds=AGAIN_SECONDS)
        ends = VmMoved(vm_id, VmState.DESTROYING, None, deadline_at=again, because=proof.text, if_spare=spare)
        closed = VmMoved(vm_id, VmState.DESTROYED, None, close_proof=proof.encode(), because=proof.text, if_spare=spare)
        if not await vms.move(closed, now=now):
            await vms.move(ends, now=now)
            if not await vms.move(closed, now=now):
                return ""
        return f"vm {vm_id} is closed: {proof.text}"


def _lease(held: HeldTask) -> Lease:
    return Lease(held.task_id, held.attempt, held.runner_id)
