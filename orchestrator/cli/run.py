"""`mayfly run`: one task from the command line to its end. Exits as the job did, 125 when Mayfly could not."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated

import typer

from orchestrator import bootstrap
from orchestrator.cli import output
from orchestrator.cli.bars import StageLine
from orchestrator.cli.disclosed import disclosure_of, sizes, why_withheld
from orchestrator.cli.entry import perform
from orchestrator.cli.follow import POLL_SECONDS, follow
from orchestrator.cli.submission import AsJson, Submission, enqueue, prepare, taking
from orchestrator.decide.deadlines import overdue
from orchestrator.domain.errors import MayflyError, RunnerLost
from orchestrator.domain.outcome import PLATFORM_EXIT, Reason
from orchestrator.domain.task import TaskState
from orchestrator.reports.task import report_of
from orchestrator.reports.waiting import Line
from orchestrator.runner.beside import beside
from orchestrator.runner.loop import claim, work_on
from orchestrator.runner.tools import Tools
from orchestrator.scheduler import layers
from orchestrator.settings import Settings
from orchestrator.store import TaskRow

ROOM_POLL_SECONDS = 0.5
CONSOLE_LINES = 30
SETTLE_SECONDS = 10.0
"""Between the runner's last write and what a reader sees."""

Results = Annotated[
    Path | None, typer.Option("--results", "-d", metavar="FOLDER", help="Where the outputs go; new or empty.")
]


@taking(Submission)
def run(submission: Submission, results: Results = None, as_json: AsJson = False) -> None:
    """Run one process in a fresh, sealed, traced machine, and wait for it. Ctrl-C cancels it and cleans up."""
    settings = Settings.from_environment()

    async def work() -> int:
        async with bootstrap.open_house(settings) as house:
            if results is not None:
                await asyncio.to_thread(house.artifacts.check_target, results)
            spec, pool = await prepare(house, submission)
            with StageLine(quiet=as_json) as line:
                async with AsyncExitStack() as opened:
                    served = await _served(house, pool.name)
                    tools = None if served else await opened.enter_async_context(_our_tools(house, line))
                    task = await enqueue(house, spec, pool, key=submission.key)
                    seen = not await why_withheld(house, task)
                    with _cancel_on_interrupt(house, task.id, line):
                        task = await _to_its_end(house, task, tools, line, copy=seen and not as_json)
            if seen and results is not None and house.artifacts.outputs(task.id, task.attempt) is not None:
                await asyncio.to_thread(house.artifacts.export, task.id, task.attempt, results)
            if as_json:
                disclosure = await disclosure_of(house, task)
                output.as_json(await report_of(house.store, house.artifacts, task, disclosure=disclosure))
            else:
                if task.reason is Reason.UNREACHABLE:
                    await _show_console(house, task)
                output.note(f"{task.id}: {task.state.lower()}: {task.message}")
                if not seen:
                    told = await asyncio.to_thread(sizes, house, task)
                    output.note(f"what it printed and made is withheld until somebody releases it: {told}")
            return PLATFORM_EXIT if task.exit_code is None else task.exit_code

    raise SystemExit(perform(work(), failure_exit=PLATFORM_EXIT))


async def _show_console(house: bootstrap.House, task: TaskRow) -> None:
    """The last lines that a machine which never answered wrote to its console."""
    text = await asyncio.to_thread(house.artifacts.log(task.id, task.attempt, "console").read)
    lines = output.printable_lines(text.decode(errors="replace")).strip().split("\n")[-CONSOLE_LINES:]
    if lines != [""]:
        output.note("\n".join(["the machine's console:", *lines]))


async def _served(house: bootstrap.House, pool: str) -> bool:
    """Whether a living runner serves the pool."""
    return await house.store.runners.serving(pool, now=house.store.clock.now())


@asynccontextmanager
async def _our_tools(house: bootstrap.House, line: StageLine) -> AsyncIterator[Tools]:
    """What it takes to run the task ourselves (docs/decisions/0006)."""
    if house.settings.uses_local_cloud:
        line.show("no runner is alive: this command is the runner, on the local cloud")
    async with bootstrap.open_tools(house, start_cloud=True, serves=False) as tools:
        yield tools


async def _to_its_end(
    house: bootstrap.House, task: TaskRow, tools: Tools | None, line: StageLine, *, copy: bool
) -> TaskRow:
    work = _step_in(house, task, line) if tools is None else _work(tools, task.id, line)
    working = asyncio.create_task(work, name="the inline runner")
    following = asyncio.create_task(follow(house, task.id, line, copy=copy), name="follow")
    try:
        await asyncio.wait({working, following}, return_when=asyncio.FIRST_COMPLETED)
        if await working:
            await _settled(house, task.id)
        return await following  # which may take as long as the reader of our stdout does
    finally:
        for each in (working, following):
            each.cancel()
        await asyncio.gather(working, following, return_exceptions=True)


async def _settled(house: bootstrap.House, task_id: str) -> None:
    """Wait for the verdict to be seen. Raises RunnerLost when there is none: another runner has the task now."""
    until = asyncio.get_running_loop().time() + SETTLE_SECONDS
    while not (await house.store.tasks.get(task_id)).state.over:
        if asyncio.get_running_loop().time() > until:
            raise RunnerLost(f"task {task_id} is not over, and this runner lost its lease: see mayfly show")
        await asyncio.sleep(POLL_SECONDS)


async def _step_in(house: bootstrap.House, task: TaskRow, line: StageLine) -> bool:
    """Run the task ourselves if every runner of its pool is gone before one has taken it. False: one has."""
    while (await house.store.tasks.get(task.id)).state is TaskState.QUEUED:
        if not await _served(house, task.spec.pool):
            async with _our_tools(house, line) as tools:
                return await _work(tools, task.id, line)
        await asyncio.sleep(ROOM_POLL_SECONDS)
    return False


async def _work(tools: Tools, task_id: str, line: StageLine) -> bool:
    """Claim the task, once it is due and its pool has room, and run it, again if need be. False: another runner has
    taken it, or nobody wants it. We do for it what a scheduler would, as there may be none."""
    tasks, clock, told = tools.store.tasks, tools.store.clock, ""
    while True:
        await _lay(tools, task_id, line)
        await tasks.admit(now=clock.now())
        claimed = await claim(tools, only=task_id)
        if claimed is not None:
            await work_on(claimed, tools, line.transfer)
        task = await tasks.get(task_id)
        if task.state is not TaskState.QUEUED:
            return claimed is not None
        if claimed is not None:
            line.show(f"attempt {task.attempt} did not do it, and another follows: {task.message}")
            continue
        standing = await Line(tools.store, tools.pools).standing(task)
        if task.deadline_at is not None and task.deadline_at <= clock.now():
            waiting = "" if standing is None else standing.waiting.message
            verdict = overdue(task.state, task.stage, None, waiting)
            return await tasks.end_overdue(task, verdict.message, now=clock.now())
        if (
            standing is not None
            and standing.waiting.message != told
            and standing.waiting.reason is not Reason.NO_RUNNER
        ):
            told = standing.waiting.message
            line.show(f"waiting: {told}")
        await asyncio.sleep(ROOM_POLL_SECONDS)


async def _lay(tools: Tools, task_id: str, line: StageLine) -> None:
    """Have the packages of the task installed, if it brings any: as a scheduler would, and its runner. What builds them
    is canceled with the task."""
    if not (await tools.store.tasks.get(task_id)).spec.packages:
        return
    _, problems = await layers.advance(tools)
    layer = await tools.store.layers.of_task(task_id)
    if layer is None:
        for problem in problems:
            line.show(problem)
        return
    if layer.ready_at is None and (claimed := await claim(tools, only=layer.task_id)) is not None:
        line.show(f"installing packages, once for all that bring the same: task {layer.task_id}")
        async with beside(_end_with(tools, task_id, layer.task_id), "end the builder with the task"):
            await work_on(claimed, tools, line.transfer)
        await layers.advance(tools)


async def _end_with(tools: Tools, task_id: str, builder_id: str) -> None:
    """Ask for the cancel of the builder once the task is over."""
    task = await tools.store.tasks.get(task_id)
    while not task.state.over:
        await asyncio.sleep(ROOM_POLL_SECONDS)
        task = await tools.store.tasks.get(task_id)
    await tools.store.tasks.request_cancel(builder_id, now=tools.store.clock.now())


@contextlib.contextmanager
def _cancel_on_interrupt(house: bootstrap.House, task_id: str, line: StageLine) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks for the cancel; the second gives up waiting for it."""
    loop = asyncio.get_running_loop()
    current = asyncio.current_task()
    asked: list[asyncio.Task[None]] = []

    async def ask() -> None:
        try:
            await house.store.tasks.request_cancel(task_id, now=house.store.clock.now())
        except MayflyError as trouble:
            line.show(f"the cancel could not be written down: {trouble}")

    def told() -> None:
        if asked and current is not None:
            current.cancel()
            return
        line.show("canceling; once more to leave at once")
        asked.append(asyncio.ensure_future(ask()))

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
