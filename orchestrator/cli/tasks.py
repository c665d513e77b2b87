"""`mayfly list`, `show`, `logs`, `cancel`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from orchestrator.bootstrap import load_pools, open_house
from orchestrator.cli import output
from orchestrator.cli.disclosed import Unreleased, disclosure_of, require_disclosed
from orchestrator.cli.entry import perform
from orchestrator.cli.follow import POLL_SECONDS, Output
from orchestrator.cli.stage_bars import stage_bars
from orchestrator.cli.submission import AsJson
from orchestrator.domain.errors import InvalidPool
from orchestrator.domain.pool import Pool
from orchestrator.domain.task import TaskState
from orchestrator.reports.stages import as_line
from orchestrator.reports.task import report_of
from orchestrator.reports.text import sections, standing_line
from orchestrator.reports.waiting import Line, is_canceling, standing_json
from orchestrator.settings import Settings

TaskId = Annotated[str, typer.Argument(metavar="TASK", help="A task's id, or the beginning or end of it.")]


def list_(
    state: Annotated[list[TaskState] | None, typer.Option("--state", "-s", help="Only these. Repeatable.")] = None,
    pool: Annotated[str | None, typer.Option("--pool", "-p", help="Only this pool's.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Tasks, newest first."""
    settings = Settings.from_environment()

    async def work() -> None:
        async with open_house(settings) as house:
            tasks = await house.store.tasks.list(states=state, pool=pool, limit=limit)
            machines = {vm.task_id for vm in await house.store.vms.open()}
            waits = any(task.state in (TaskState.NEW, TaskState.QUEUED) for task in tasks)
            line = Line(house.store, await _pools(settings) if waits else {})
            rows: list[dict[str, Any]] = [
                {
                    "id": task.id,
                    "name": task.spec.name,
                    "pool": task.spec.pool,
                    "state": task.state,
                    "stage": task.stage,
                    "reason": task.reason,
                    "message": task.message,
                    "waits_for": standing_json(await line.standing(task)),
                    "canceling": is_canceling(task, task.id in machines),
                    "priority": task.priority,
                    "exit_code": task.exit_code,
                    "attempt": task.attempt,
                    "submitted_at": task.submitted_at,
                    "finished_at": task.finished_at,
                }
                for task in tasks
            ]
        if as_json:
            output.as_json(rows)
            return
        output.table(
            ("task", "name", "pool", "state", "stage", "message", "submitted"),
            (
                (
                    *(row["id"], row["name"], row["pool"], row["state"], row["stage"]),
                    *(_message(row), output.ago(row["submitted_at"])),
                )
                for row in rows
            ),
            empty="no task yet: mayfly run -- echo hello",
        )

    perform(work())


def _message(row: dict[str, Any]) -> str:
    if row["canceling"]:
        return "canceling: its machine is not gone yet"
    return standing_line(row["waits_for"]) if row["waits_for"] else str(row["message"])


async def _pools(settings: Settings) -> Mapping[str, Pool]:
    """Those of the inventory. One that cannot be read keeps nobody from looking at tasks: it is told instead."""
    try:
        return await load_pools(settings)
    except InvalidPool as problem:
        output.note(f"the inventory cannot be read: {problem}")
        return {}


def show(task: TaskId, as_json: AsJson = False) -> None:
    """A task's report: where the time went, seal, outputs, and the proof that its machine is gone."""
    settings = Settings.from_environment()

    async def work() -> None:
        async with open_house(settings) as house:
            row = await house.store.tasks.get(task)
            standing = await Line(house.store, await _pools(settings)).standing(row)
            disclosure = await disclosure_of(house, row)
            report = await report_of(house.store, house.artifacts, row, standing=standing, disclosure=disclosure)
            now = house.store.clock.now()
        if as_json:
            output.as_json(report)
            return
        for each in sections(report):
            if isinstance(each, str):
                output.say(output.printable(each))
            elif output.out.is_terminal:
                output.out.print(stage_bars(each, now))
            else:
                for part in each:
                    output.say(as_line(part, now))

    perform(work())


def logs(
    task: TaskId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the task is over.")] = False,
    stream: Annotated[
        str, typer.Option("--stream", help="stdout, stderr, both (each to its own), trace or console.")
    ] = "both",
    unreleased: Unreleased = False,
) -> None:
    """What the process printed, byte for byte; once it is released, where its pool asks for that."""
    settings = Settings.from_environment()

    async def work() -> None:
        wanted = ("stdout", "stderr") if stream == "both" else (stream,)
        async with open_house(settings) as house:
            row = await house.store.tasks.get(task)
            await require_disclosed(house, row, unreleased=unreleased, what=" and ".join(wanted))
            outputs = [
                Output(house, row.id, each, sys.stderr.buffer if each == "stderr" else sys.stdout.buffer)
                for each in wanted
            ]
            while True:
                for each in outputs:
                    await each.copy(row.attempt)
                if row.state.over or not follow or all(each.closed for each in outputs):
                    return
                await asyncio.sleep(POLL_SECONDS)
                row = await house.store.tasks.get(row.id)

    if stream not in ("stdout", "stderr", "both", "trace", "console"):
        raise output.fail(f"stream: no stream {stream!r} (stdout, stderr, both, trace or console)", code=2)
    perform(work())


def cancel(task: TaskId, as_json: AsJson = False) -> None:
    """Cancel a task, wherever it is. Again is fine."""
    settings = Settings.from_environment()

    async def work() -> None:
        async with open_house(settings) as house:
            found = await house.store.tasks.get(task)
            after = await house.store.tasks.request_cancel(found.id, now=house.store.clock.now())
        if as_json:
            output.as_json({"id": after.id, "state": after.state, "cancel_requested_at": after.cancel_requested_at})
        elif after.state is TaskState.CANCELED:
            output.say(f"{after.id} is canceled")
        elif after.state.over:
            output.say(f"{after.id} was over already: {after.state.lower()}")
        else:
            output.say(f"{after.id} is being canceled; its runner stops it within seconds")

    perform(work())
