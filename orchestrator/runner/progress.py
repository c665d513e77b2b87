"""What an attempt tells the world as it goes: its stage, its machine, its end. Each is one guarded write."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, TypeVar

from orchestrator import log
from orchestrator.artifacts import AttemptLogs
from orchestrator.domain.errors import PlatformError
from orchestrator.domain.outcome import Verdict
from orchestrator.domain.task import Stage
from orchestrator.runner.lease import Hold, LeaseLost
from orchestrator.store import Finished, Lease, StageEntered, Store

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

Transfer = Callable[[str, int, int], None]
"""Told of bytes that went in or out: direction ("in" or "out"), bytes done, bytes in all."""


class Progress:
    """One attempt's voice. `transfer` hears of copied bytes (a progress bar); nothing is decided by it."""

    def __init__(
        self, store: Store, lease: Lease, hold: Hold, logs: AttemptLogs, transfer: Transfer | None = None
    ) -> None:
        self.lease = lease
        self.hold = hold
        self.logs = logs
        self.transfer: Transfer = transfer or (lambda direction, done, total: None)
        self._store = store
        self._stage: Stage | None = None

    @property
    def cancel_requested(self) -> bool:
        return self.hold.canceled.is_set()

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
        """What the failure left behind (a console log), beside the attempt's other logs."""
        if failure.evidence:
            await asyncio.to_thread(self.logs.keep_evidence, failure.evidence)

    async def finish(self, verdict: Verdict) -> Verdict | None:
        """Write the verdict; None when somebody else already has."""
        _log.info("verdict %s %s", verdict.state, verdict.message)
        written = await self._store.tasks.finish(Finished.by(self.lease, verdict), now=datetime.now(UTC))
        return verdict if written else None
