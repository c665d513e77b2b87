"""THE PAGE: one task, one VM, from claim to verdict, top to bottom; and how one goes on that another runner began.

Each verb is a stage, and lives in the file named in its import; this page says only the order. What happens when one
of them fails is in `ending`: the machine is destroyed on every way out, and there is always an end.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

from orchestrator.domain.outcome import Verdict
from orchestrator.domain.task import Stage
from orchestrator.runner.ending import Ending
from orchestrator.runner.machine import adopted, watched
from orchestrator.runner.progress import Progress
from orchestrator.runner.spare import Spare
from orchestrator.runner.tools import Tools
from orchestrator.runner.work import (
    boot,
    connect,
    execute,
    prepare,
    provision,
    reconnect,
    seal,
    see,
    stage_in,
    stage_out,
    take_up,
    taken,
)


async def run_attempt(tools: Tools, progress: Progress, spare: Spare | None = None, *, alone: bool) -> Verdict | None:
    """Run one attempt and write its verdict. None: it goes back to the queue, or is another's to end.

    A job's end is a value; only the platform's failures arrive as exceptions, and each becomes an end in `Ending`.
    `spare`: the ready machine that was taken with the task. `alone`: nobody else may be there to go on with what is
    left.
    """
    async with Ending(tools, progress, alone=alone) as ending, AsyncExitStack() as around:
        if spare is None:
            await progress.open_logs()
            machine = await provision(progress, tools, ending.has)
            await progress.during(Stage.PROVISIONING, boot(machine, progress, tools))
            await around.enter_async_context(watched(machine, tools))
            guest = await progress.during(Stage.CONNECTING, connect(machine, progress, tools))
            around.push_async_callback(guest.close)
            probes = await progress.during(Stage.PREPARING, prepare(guest, progress, tools))
            await progress.during(Stage.SEALING, seal(probes, machine, progress, tools))
        else:
            guest = await around.enter_async_context(taken(spare, progress, ending.has))
            await progress.open_logs()
            await see(spare, guest, progress, tools)
        if spare is None or progress.task.spec.inputs or progress.task.spec.packages:
            await progress.during(Stage.STAGING_IN, stage_in(guest, progress, tools))
        outcome = await progress.executing(execute(guest, progress))
        missing = await progress.staging_out(stage_out(guest, outcome, progress))
        ending.ended(outcome, missing)
    return ending.verdict


async def resume_attempt(tools: Tools, progress: Progress, *, alone: bool) -> Verdict | None:
    """Go on with an attempt whose process may run, or have ended, without its runner. Nothing is run again."""
    async with Ending(tools, progress, alone=alone) as ending, AsyncExitStack() as around:
        await progress.open_logs()
        machine = await adopted(progress.lease, tools)
        ending.has(machine)
        if not await ending.known():
            await around.enter_async_context(watched(machine, tools))
            guest = await progress.executing(reconnect(machine, progress, tools))
            around.push_async_callback(guest.close)
            outcome = await progress.executing(take_up(guest, progress))
            missing = await progress.staging_out(stage_out(guest, outcome, progress))
            ending.ended(outcome, missing)
    return ending.verdict
