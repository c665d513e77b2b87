"""What an attempt tells the world as it goes: its stage, its machine, its end. Each is one guarded write.

A write that the database would not take is asked again until it answers; one whose acknowledgement was lost is looked
for in the row before it passes for stale.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime, timedelta
from typing import Any, TypeVar

from orchestrator import log
from orchestrator.artifacts import AttemptLogs, WhenFull
from orchestrator.decide.retry import Retry
from orchestrator.domain.errors import NotFound, PlatformError
from orchestrator.domain.outcome import Outcome, Usage, Verdict, stopped
from orchestrator.domain.pool import Pool
from orchestrator.domain.task import Stage, TaskSpec, TaskState
from orchestrator.runner.launching import Order, record
from orchestrator.runner.lease import Hold, LeaseLost
from orchestrator.runner.patience import persist
from orchestrator.runner.tools import Tools
from orchestrator.store import Claim, Finished, Requeued, StageEntered, TaskRow
from orchestrator.trouble import TROUBLE

_STAGES = tuple(Stage)

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


def _in_force(spec: TaskSpec, pool: Pool) -> dict[str, Any]:
    """What the pool makes of the task, for the record: it may say otherwise by the time that somebody looks."""
    limits = spec.limits
    return {
        "limits": {
            "timeout_seconds": limits.timeout_seconds or pool.default_timeout_seconds,
            "memory_bytes": limits.memory_bytes or pool.process_memory_bytes,
            "processes": limits.processes or pool.max_processes,
            "open_files": limits.open_files or pool.max_open_files,
            "output_bytes": limits.output_bytes or pool.max_output_bytes,
            "scratch_bytes": limits.scratch_bytes or pool.max_scratch_bytes,
        },
        "disclosure": pool.disclosure.value,
    }


Transfer = Callable[[str, int, int], None]
"""Told of bytes that went in or out: direction ("in" or "out"), bytes done, bytes in all."""


class Progress:
    """One attempt's voice. `pool` is what it began with, whatever becomes of the inventory; `stage`, where it is.
    `order`: what was asked for to run it on. `transfer` hears of copied bytes (a progress bar); nothing is decided by
    it."""

    logs: AttemptLogs
    """There once `open_logs` has been called."""

    def __init__(self, tools: Tools, claimed: Claim, hold: Hold, transfer: Transfer | None = None) -> None:
        self.task = claimed.task
        self.lease = claimed.lease
        self.pool = tools.pools[claimed.task.spec.pool]
        self.stage = claimed.task.stage
        self.placed = self.stage is not None
        """OpenNebula knows of the machine."""
        self.hold = hold
        self.order = Order(self.pool, self.lease)
        self.transfer: Transfer = transfer or (lambda direction, done, total: None)
        self._tools = tools
        self._store = tools.store
        self._learned: dict[str, Any] = {} if self.placed else _in_force(claimed.task.spec, self.pool)
        self._host = ""

    @property
    def cancel_requested(self) -> bool:
        return self.hold.canceled.is_set()

    @property
    def started(self) -> bool:
        """A process may have started."""
        return self.stage is not None and _STAGES.index(self.stage) >= _STAGES.index(Stage.EXECUTING)

    @property
    def ends_at(self) -> datetime:
        """When the attempt must be over."""
        return self.task.deadline_at or self.now() + timedelta(
            seconds=self.pool.attempt_seconds(self.task.spec.limits.timeout_seconds)
        )

    def now(self) -> datetime:
        return self._store.clock.now()

    async def open_logs(self) -> None:
        """Make room for what the attempt writes. A full disk is waited for, while the process goes on, half as long as
        staging may take; a canceled task waits for none. Raises HostDiskFull, OSError."""
        self.logs = await asyncio.to_thread(
            self._tools.artifacts.attempt,
            self.lease.task_id,
            self.lease.attempt,
            limit_bytes=self.pool.max_log_bytes,
            when_full=WhenFull(self.pool.staging_timeout_seconds / 2, self.note, self.hold.canceled),
        )

    async def enter(self, stage: Stage) -> None:
        """The attempt is at `stage` now, or was before. Raises LeaseLost when it is not ours any more."""
        if self.stage is not None and _STAGES.index(stage) <= _STAGES.index(self.stage):
            return
        _log.info("stage %s", stage)
        entered = StageEntered(self.lease, stage)
        if not await persist(lambda: self._store.tasks.enter_stage(entered, now=self.now()), f"stage {stage}"):
            row = await self._row()
            if row is None or row.lease != self.lease or row.stage is not stage:
                raise LeaseLost
        self.stage = stage

    async def during(self, stage: Stage, work: Coroutine[Any, Any, _T]) -> _T:
        """`work`, as the stage: given up when the task is canceled or lost."""
        return await self._doing(stage, work, cancelable=True)

    async def executing(self, work: Coroutine[Any, Any, _T]) -> _T:
        """`work`, as the stage EXECUTING, which sees to a cancel itself and keeps the outputs."""
        return await self._doing(Stage.EXECUTING, work, cancelable=False)

    async def staging_out(self, work: Coroutine[Any, Any, _T]) -> _T:
        """`work`, as the stage STAGING_OUT: a canceled task's partial outputs are still taken."""
        return await self._doing(Stage.STAGING_OUT, work, cancelable=False)

    async def _doing(self, stage: Stage, work: Coroutine[Any, Any, _T], *, cancelable: bool) -> _T:
        try:
            await self.enter(stage)
        except BaseException:
            work.close()
            raise
        with log.bound(stage=stage):
            return await self.hold.while_held(work, cancelable=cancelable)

    def learn(self, facts: Mapping[str, Any], *, host: str = "") -> None:
        """Facts of the machine, for people; they can wait until the process runs."""
        self._learned |= facts
        self._host = host or self._host

    async def write_down(self) -> None:
        """Write what was learned, and that the machine came up. What is given up, the next call writes."""
        learned, self._learned = self._learned, {}
        host, self._host = self._host, ""
        try:
            if host:
                await self.record_host(host)
            if learned:
                record = self._store.attempts.record_environment
                await persist(lambda: record(self.lease, learned), "facts of the machine")
        except BaseException:
            self._learned, self._host = learned | self._learned, self._host or host
            raise
        if self.order.seconds is not None:
            await self._launch_went(None)

    async def launch_failed(self, failure: BaseException) -> None:
        """If the machine was still on its way."""
        if self.order.vm_id and self.order.seconds is None and not isinstance(failure, LeaseLost):
            await self._launch_went(failure)

    async def _launch_went(self, failure: BaseException | None) -> None:
        order, self.order = self.order, Order(self.pool, self.lease)
        await record(order, self._tools, failure)

    async def record_outcome(self, outcome: Outcome, usage: Usage) -> None:
        await persist(lambda: self._store.attempts.record_outcome(self.lease, outcome, usage), "the outcome")

    async def record_host(self, host: str) -> None:
        await persist(lambda: self._store.attempts.record_host(self.lease, host), "the host")

    async def record_verdict(self, verdict: Verdict) -> None:
        """What we shall say once the machine is gone: should we not live to say it, upkeep will."""
        await persist(lambda: self._store.attempts.record_verdict(self.lease, verdict), "the verdict")

    async def keep_evidence(self, failure: PlatformError) -> None:
        """What the failure left behind (a console log), beside the attempt's other logs; none when the disk is full."""
        if failure.evidence:
            try:
                await asyncio.to_thread(self.logs.keep_evidence, failure.evidence)
            except (PlatformError, OSError) as trouble:
                _log.warning("the evidence could not be kept: %s", trouble)

    async def note(self, message: str) -> None:
        """Something that people should know of, and no state tells: a line in the event log."""
        _log.warning("%s", message)
        task_id, attempt, runner_id = self.lease.task_id, self.lease.attempt, self.lease.runner_id
        try:
            await self._store.events.append(
                message, now=self.now(), task_id=task_id, attempt=attempt, runner_id=runner_id
            )
        except TROUBLE as trouble:
            _log.warning("that could not be written down: %s", trouble)

    async def asked_to_cancel(self) -> bool:
        """Whether somebody wants the cancel by now, read from the row; False too when that cannot be told."""
        if not self.cancel_requested:
            try:
                async with asyncio.timeout(1):
                    row = await self._store.tasks.get(self.lease.task_id)
            except (*TROUBLE, TimeoutError):
                return False
            if row.lease == self.lease and row.cancel_requested_at is not None:
                self.hold.canceled.set()
        return self.cancel_requested

    async def finish(self, verdict: Verdict) -> Verdict | None:
        """Write the verdict; None when the task is not ours to judge."""
        _log.info("verdict %s %s", verdict.state, verdict.message)
        finished = Finished.by(self.lease, verdict)
        if await persist(lambda: self._store.tasks.finish(finished, now=self.now()), "the verdict"):
            self._tools.telemetry.over(self.lease.task_id, self.lease.attempt)
            return verdict
        row = await self._row()
        ours = row and (row.attempt, row.state, row.message) == (self.lease.attempt, verdict.state, verdict.message)
        return verdict if ours else None

    async def requeue(self, retry: Retry, *, host: str) -> Verdict | None:
        """Back to the queue, to be tried again; `host`: where this attempt was, if it had come to one. The verdict when
        the task was canceled meanwhile, and that is its end."""
        requeued = Requeued.by(self.lease, retry, self.task, self.pool, host=host, now=self.now())
        _log.warning("to be tried again in %.1f s: %s", retry.after_seconds, retry.message)
        state = await persist(lambda: self._store.tasks.requeue(requeued, now=self.now()), "back to the queue")
        if state is not None:
            self._tools.telemetry.over(self.lease.task_id, self.lease.attempt)
        return stopped(None) if state is TaskState.CANCELED else None

    async def let_go(self) -> None:
        """Somebody else may go on with the attempt, or end it, from now on."""
        _log.info("let go")
        await self.hold.silence()
        await persist(lambda: self._store.tasks.let_go(self.lease, now=self.now()), "letting go")

    async def _row(self) -> TaskRow | None:
        try:
            return await persist(lambda: self._store.tasks.get(self.lease.task_id), "reading the task")
        except NotFound:
            return None
