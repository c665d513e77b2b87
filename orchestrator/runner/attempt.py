"""THE PAGE: one task, one VM, from claim to verdict, top to bottom.

Each verb is a stage, and lives in the file named in its import; this page says only the order, and what happens when
one of them fails: the machine is destroyed on every way out, and there is always a verdict.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack

from orchestrator.domain.errors import PlatformError, UserError
from orchestrator.domain.outcome import Reason, Verdict, failed, judge, stopped
from orchestrator.domain.task import Stage
from orchestrator.runner.lease import Canceled, LeaseLost
from orchestrator.runner.machine import boot, destroy, provision, watched
from orchestrator.runner.progress import Progress
from orchestrator.runner.tools import Tools
from orchestrator.runner.work import connect, execute, prepare, seal, stage_in, stage_out
from orchestrator.store import TaskRow

_log = logging.getLogger(__name__)


async def run_attempt(task: TaskRow, tools: Tools, progress: Progress) -> Verdict | None:
    """Run one attempt and write its verdict. None: the lease was lost, and the verdict is somebody else's to write.

    A job's end is a value; only the platform's failures arrive as exceptions, and each becomes a verdict here.
    """
    try:
        async with AsyncExitStack() as clean_up:
            await progress.open_logs(tools)
            machine = await provision(tools, tools.pools[task.spec.pool], progress)
            clean_up.push_async_callback(destroy, machine, tools, progress)
            address = await progress.during(Stage.PROVISIONING, boot(machine, tools))
            await clean_up.enter_async_context(watched(machine, tools))
            guest = await progress.during(Stage.CONNECTING, connect(machine, address, tools))
            clean_up.push_async_callback(guest.close)
            await progress.during(Stage.PREPARING, prepare(guest, tools, progress))
            await progress.during(Stage.SEALING, seal(guest, tools, progress))
            await progress.during(Stage.STAGING_IN, stage_in(guest, task, tools, progress))
            outcome = await progress.executing(execute(guest, machine, task, tools, progress))
            missing = await progress.staging_out(stage_out(guest, task, outcome, tools, progress))
            verdict = stopped(outcome) if progress.cancel_requested else judge(outcome, missing_outputs=missing)
    except LeaseLost:
        _log.warning("the lease was lost: another runner answers for this task")
        return None
    except Canceled:
        verdict = stopped(None)
    except asyncio.CancelledError:
        lost = failed(Reason.RUNNER_LOST, "the runner was stopped in the middle")
        await progress.finish(stopped(None) if progress.cancel_requested else lost)
        raise
    except UserError as wrong:
        verdict = failed(Reason.PROVISION_FAILED, str(wrong))
    except PlatformError as failure:
        verdict = failed(failure.reason, str(failure))
        await progress.keep_evidence(failure)
    except Exception as bug:
        _log.exception("the attempt failed in a way that nobody foresaw")
        verdict = failed(None, f"{type(bug).__name__}: {bug}")
    return await progress.finish(verdict)
