"""`mayfly schedule`: tasks that come again, by a cron line or an interval."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated

import typer

from orchestrator.bootstrap import open_house
from orchestrator.cli import output
from orchestrator.cli.entry import perform
from orchestrator.cli.submission import AsJson, Work, parse, prepare, taking
from orchestrator.domain.errors import InvalidTask
from orchestrator.provisioning.quantities import time_in_seconds
from orchestrator.scheduler.recurrence import Recurrence
from orchestrator.settings import Settings
from orchestrator.store import ScheduleRow
from orchestrator.store.schedules import Schedules

app = typer.Typer(no_args_is_help=True, help="Tasks that come again: by a cron line, or every so often.")
ScheduleName = Annotated[str, typer.Argument(metavar="NAME", help="The schedule's name.")]

LONGEST_NAME = 100
FRONTEND = "local"


@app.command()
@taking(Work)
def add(
    work: Work,
    schedule: ScheduleName,
    cron: Annotated[
        str | None, typer.Option("--cron", metavar="LINE", help="Minute, hour, day, month, weekday: '30 2 * * 1-5'.")
    ] = None,
    every: Annotated[str | None, typer.Option("--every", metavar="TIME", help="An interval, as 15m or 6h.")] = None,
    time_zone: Annotated[
        str, typer.Option("--time-zone", metavar="ZONE", help="In which the cron line is read, as Europe/Amsterdam.")
    ] = "UTC",
    catch_up: Annotated[
        bool,
        typer.Option("--catch-up/--skip", help="After an outage: a task for each instant missed, or for the newest."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Submit this task at every instant that the schedule names. What it is made of is read now, and kept."""
    settings = Settings.from_environment()

    async def adding() -> None:
        if not (0 < len(schedule) <= LONGEST_NAME and schedule.isprintable()):
            raise InvalidTask("schedule", f"{schedule[:LONGEST_NAME]!r} is no name", "use 1 to 100 plain characters")
        seconds = None if every is None else parse("every", time_in_seconds, every)
        recurrence = Recurrence(cron, seconds, time_zone)
        async with open_house(settings) as house:
            spec, _ = await prepare(house, work)
            now = house.store.clock.now()
            row = await house.store.schedules.add(
                ScheduleRow(
                    name=schedule,
                    spec=spec,
                    frontend=FRONTEND,
                    cron=cron,
                    interval_seconds=seconds,
                    time_zone=time_zone,
                    catch_up=catch_up,
                    next_at=recurrence.after(now),
                ),
                now=now,
            )
        if as_json:
            output.as_json(_plain(row))
        else:
            output.say(f"schedule {row.name}: next at {_at(row)}")

    perform(adding())


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """The schedules, with their next instant and their last task."""
    settings = Settings.from_environment()

    async def work() -> None:
        async with open_house(settings) as house:
            rows = await house.store.schedules.list()
        if as_json:
            output.as_json([_plain(row) for row in rows])
            return
        output.table(
            ("schedule", "pool", "when", "after an outage", "next", "last task"),
            (
                (
                    *(row.name, row.spec.pool, _when(row), "catch up" if row.catch_up else "skip"),
                    *("paused" if row.paused_at else _at(row), row.last_task_id),
                )
                for row in rows
            ),
            empty="no schedule: mayfly schedule add NAME --every 6h -- CMD…",
        )

    perform(work())


@app.command()
def remove(schedule: ScheduleName, as_json: AsJson = False) -> None:
    """Forget a schedule. Its tasks stay."""

    async def work(schedules: Schedules, row: ScheduleRow, now: datetime) -> None:
        await schedules.remove(row.name)

    _change(schedule, work, "removed", as_json)


@app.command()
def pause(schedule: ScheduleName, as_json: AsJson = False) -> None:
    """Submit nothing until it is resumed. Again is fine."""

    async def work(schedules: Schedules, row: ScheduleRow, now: datetime) -> None:
        await schedules.pause(row.name, now=now)

    _change(schedule, work, "paused", as_json)


@app.command()
def resume(schedule: ScheduleName, as_json: AsJson = False) -> None:
    """Submit again, from its next instant on: nothing is submitted for the time of the pause. Again is fine."""

    async def work(schedules: Schedules, row: ScheduleRow, now: datetime) -> None:
        recurrence = Recurrence(row.cron, row.interval_seconds, row.time_zone)
        await schedules.resume(row.name, next_at=recurrence.after(now, anchor=row.next_at))

    _change(schedule, work, "resumed", as_json)


def _change(
    name: str, work: Callable[[Schedules, ScheduleRow, datetime], Awaitable[None]], done: str, as_json: bool
) -> None:
    settings = Settings.from_environment()

    async def change() -> None:
        async with open_house(settings) as house:
            row = await house.store.schedules.get(name)
            await work(house.store.schedules, row, house.store.clock.now())
        if as_json:
            output.as_json({"name": name, "state": done})
        else:
            output.say(f"schedule {name} is {done}")

    perform(change())


def _when(row: ScheduleRow) -> str:
    return f"every {row.interval_seconds:g} s" if row.cron is None else f"{row.cron} ({row.time_zone})"


def _at(row: ScheduleRow) -> str:
    return row.next_at.isoformat(timespec="seconds")


def _plain(row: ScheduleRow) -> dict[str, object]:
    fields = {each.name: getattr(row, each.name) for each in dataclasses.fields(row) if each.name != "spec"}
    return {**fields, "pool": row.spec.pool, "command": list(row.spec.command)}
