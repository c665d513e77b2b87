"""How an attempt ends, whatever happened in its stages: decided, recorded, the machine destroyed, the end written.

The verdict is recorded before the machine goes, so that upkeep can say it should we not live to; the task is over, or
back in its queue, only once OpenNebula has said DONE.
"""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import assert_never

from orchestrator.decide import retry
from orchestrator.decide.retry import Failure, GiveUp, Retry
from orchestrator.domain.errors import MayflyError, PlatformError
from orchestrator.domain.outcome import Exited, Lost, Outcome, Reason, Verdict, failed, judge, stopped
from orchestrator.domain.task import Stage
from orchestrator.runner.evidence import prove
from orchestrator.runner.layers import told_why
from orchestrator.runner.lease import Canceled, LeaseLost
from orchestrator.runner.machine import Machine, destroy
from orchestrator.runner.patience import persist, see_through
from orchestrator.runner.progress import Progress
from orchestrator.runner.tools import Tools

AT_ONCE_SECONDS = 15.0
"""How long a runner that is stopped at once takes to hand over what it began."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _LetGo:
    """Another runner goes on with it; the machine stays."""


@dataclass(frozen=True, slots=True)
class _NotOurs:
    """Whoever has the task now says how it ends."""


_End = Verdict | Retry | _LetGo | _NotOurs


class Ending:
    """Around the stages: `async with Ending(…) as ending`. It takes every exception but those that end the process, and
    the cancel of a runner that is stopped.

    alone: nobody else may be there to go on with what we leave, so nothing is left.
    machine: the attempt's, set as soon as there may be one. verdict: what was written; None when the attempt had no
    verdict of ours: it goes back to the queue, on with another runner, or was not ours any more.
    """

    def __init__(self, tools: Tools, progress: Progress, *, alone: bool) -> None:
        self.machine: Machine | None = None
        self.verdict: Verdict | None = None
        self.outcome: Outcome | None = None
        """How the process ended, once that is known."""
        self._recorded: Verdict | None = None
        """What a runner before us had found, and not lived to say."""
        self._missing: tuple[str, ...] = ()
        self._tools = tools
        self._progress = progress
        self._alone = alone

    def has(self, machine: Machine) -> None:
        """There may be a machine now."""
        self.machine = machine

    def ended(self, outcome: Outcome, missing: tuple[str, ...]) -> None:
        """The process ended so, and its outputs are out. `missing`: a line for each pattern that matched nothing."""
        self.outcome, self._missing = outcome, missing

    async def known(self) -> bool:
        """What the runner before us found out counts. True: that is the verdict, and nothing is left to be done."""
        store, lease = self._tools.store, self._progress.lease
        row = await persist(lambda: store.attempts.get(lease.task_id, lease.attempt), "reading the attempt")
        if row is not None:
            self.outcome, self._recorded = row.outcome, row.verdict
        return self._recorded is not None

    async def __aenter__(self) -> Ending:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, asyncio.CancelledError):
            with suppress(TimeoutError):
                async with asyncio.timeout(AT_ONCE_SECONDS):
                    await self._tell(error)
                    await self._bring_about(await self._when_stopped())
            return False
        if error is None or isinstance(error, Exception):
            await see_through(self._end(error), seconds=AT_ONCE_SECONDS)
            await prove(self._tools, self._progress.lease)  # when all else is done: nobody waits for it
            return True
        return False

    async def _end(self, error: Exception | None) -> None:
        await self._tell(error)
        await self._bring_about(await self._decide(error))

    async def _tell(self, error: BaseException | None) -> None:
        """Write down what waited for the process to run, which it may never have."""
        await self._progress.write_down()
        if error is not None:
            await self._progress.launch_failed(error)

    async def _decide(self, error: Exception | None) -> _End:
        progress = self._progress
        match error:
            case None if self._recorded is not None:
                return self._recorded
            case None:
                return await self._of_the_process()
            case LeaseLost():
                _log.warning("the lease was lost: somebody else answers for this task")
                return _NotOurs()
            case Canceled():
                return stopped(None)
            case PlatformError():
                await progress.keep_evidence(error)
            case MayflyError():
                pass
            case _:
                _log.error("the attempt failed in a way that nobody foresaw", exc_info=error)
        if self.outcome is not None and not isinstance(self.outcome, Lost) and self.outcome != Exited(0):
            await progress.note(f"not all of the outputs were taken: {error}")
            return await self._of_the_process()
        failure = Failure.of(error, started=progress.started)
        if progress.cancel_requested:
            await progress.note(failure.message)
            return stopped(self.outcome)
        return await self._answer(failure)

    async def _of_the_process(self) -> _End:
        if self.outcome is None:
            raise AssertionError("the stages are over, and nobody said how the process ended")
        if self._progress.cancel_requested:
            return stopped(self.outcome)
        verdict = judge(self.outcome, missing_outputs=self._missing)
        return await self._answer(told_why(verdict, self._progress))

    async def _answer(self, what: Failure | Verdict) -> Verdict | Retry:
        """What a failure is answered with."""
        progress = self._progress
        attempt, rand = progress.lease.attempt, random.random()
        terms, pool = progress.task.spec.terms, progress.pool
        earlier = await self._earlier() if attempt > 1 else ()
        if isinstance(what, Failure):
            answer = retry.after(what, terms=terms, pool=pool, attempt=attempt, rand=rand, earlier=earlier)
        else:
            answer = retry.after_job(what, terms=terms, pool=pool, attempt=attempt, rand=rand, earlier=earlier)
        match answer:
            case GiveUp(verdict):
                return verdict
            case Retry():
                return answer
            case _:
                assert_never(answer)

    async def _earlier(self) -> tuple[Reason, ...]:
        """Why the task went back to its queue before."""
        store, task_id = self._tools.store, self._progress.lease.task_id
        return await persist(lambda: store.events.requeue_reasons(task_id), "reading the events")

    async def _when_stopped(self) -> _End:
        """The runner ends at once. A process that runs is left to another runner; what had not begun begins anew."""
        progress = self._progress
        if await progress.asked_to_cancel():
            return stopped(self.outcome)
        if self._alone:
            return failed(Reason.RUNNER_LOST, "the runner was stopped in the middle")
        if progress.started:
            return _LetGo()
        return Retry(0.0, Reason.RETRY, "its runner was stopped", avoid_host=False, counted=False)

    async def _bring_about(self, end: _End) -> None:
        progress = self._progress
        match end:
            case _LetGo():
                await progress.let_go()
            case _NotOurs():
                await self._clear()
            case Retry():
                if await self._clear() or self._alone:
                    self.verdict = await progress.requeue(end, host=self.machine.host if self.machine else "")
                else:
                    await progress.let_go()
            case Verdict():
                await progress.record_verdict(end)
                if await self._clear() or self._alone:
                    self.verdict = await progress.finish(end)
                else:  # upkeep ends the machine, and says what is recorded then
                    await progress.let_go()
            case _:
                assert_never(end)

    async def _clear(self) -> bool:
        """Nothing is left of the attempt. False: a machine is, or is not ours to end."""
        if self.machine is None:
            return True
        with suppress(LeaseLost):  # whether the machine is ours, its own row says
            await self._progress.enter(Stage.DESTROYING)
        return await destroy(self.machine, self._tools)
