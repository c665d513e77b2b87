"""What an attempt tells the world as it goes: its stage, its machine, its end. Each is one guarded write."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from orchestrator import log
from orchestrator.artifacts import AttemptLogs
from orchestrator.domain.errors import MayflyError, PlatformError
from orchestrator.domain.outcome import Verdict
from orchestrator.domain.task import Stage
from orchestrator.runner.lease import Hold, LeaseLost
from orchestrator.runner.tools import Tools
from orchestrator.store import Claim, Finished, StageEntered, Store

FINISH_AGAIN_SECONDS = 1.0
"""How soon a verdict is written again that the database would not take."""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

Transfer = Callable[[str, int, int], None]
"""Told of bytes that went in or out: direction ("in" or "out"), bytes done, bytes in all."""


class Progress:
    """One attempt's voice. `transfer` hears of copied bytes (a progress bar); nothing is decided by it."""

    logs: AttemptLogs
    """There once `open_logs` has been called."""

    def __init__(self, store: Store, claimed: Claim, hold: Hold, transfer: Transfer | None = None) -> None:
        self.lease = claimed.lease
        self.hold = hold
        self.transfer: Transfer = transfer or (lambda direction, done, total: None)
        self._store = store
        self._pool = claimed.task.spec.pool
        self._stage: Stage | None = None

    @property
    def cancel_requested(self) -> bool:
        return self.hold.canceled.is_set()

    async def open_logs(self, tools: Tools) -> None:
        """Make room for what the attempt will write. Raises HostDiskFull, OSError."""
        limit = tools.pools[self._pool].max_log_bytes
        self.logs = await asyncio.to_thread(
            tools.artifacts.attempt, self.lease.task_id, self.lease.attempt, limit_bytes=limit
        )

    async def enter(self, stage: Stage) -> None:
        """The attempt is at `stage` now. Raises LeaseLost when it is not ours any more."""
        if stage is self._stage:
            return
        _log.info("stage %s", stage)
        if not await self._store.tasks.enter_stage(StageEntered(self.lease, stage), now=datetime.now(UTC)):
            raise LeaseLost
        self._stage = stage

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
                message, now=datetime.now(UTC), task_id=task_id, attempt=attempt, runner_id=runner_id
            )
        except (MayflyError, SQLAlchemyError, OSError) as trouble:
            _log.warning("that could not be written down: %s", trouble)

    async def finish(self, verdict: Verdict) -> Verdict | None:
        """Write the verdict, again and again while the database will not take it; None when the task is not ours."""
        _log.info("verdict %s %s", verdict.state, verdict.message)
        while not self.hold.lost.is_set():
            try:
                written = await self._store.tasks.finish(Finished.by(self.lease, verdict), now=datetime.now(UTC))
            except (MayflyError, SQLAlchemyError, OSError) as trouble:
                _log.warning("the verdict could not be written yet: %s", trouble)
                await asyncio.sleep(FINISH_AGAIN_SECONDS)
            else:
                return verdict if written else None
        return None
