"""`mayfly results` and `mayfly trace`: what a task left behind."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.bootstrap import House, open_house
from orchestrator.cli import output
from orchestrator.cli.entry import perform
from orchestrator.cli.submission import AsJson
from orchestrator.cli.tasks import TaskId
from orchestrator.domain.display import shown_name
from orchestrator.domain.errors import NotPossible
from orchestrator.reports.task import manifest_of, trace_summary
from orchestrator.settings import Settings
from orchestrator.store import TaskRow


def results(
    task: TaskId,
    folder: Annotated[Path, typer.Argument(help="Where the outputs go; new or empty.")],
    as_json: AsJson = False,
) -> None:
    """Copy a task's outputs into a folder."""
    settings = Settings.from_environment()

    async def work() -> None:
        async with open_house(settings) as house:
            row = await _with_an_attempt(house, task)
            tree = await asyncio.to_thread(house.artifacts.export, row.id, row.attempt, folder)
        if as_json:
            output.as_json(manifest_of(tree))
            return
        for entry in tree.files:
            output.say(f"{folder}/{shown_name(entry.path)}  {output.size(entry.size)}  {entry.media_type}")

    perform(work())


def trace(
    task: TaskId,
    raw: Annotated[bool, typer.Option("--raw", help="strace's own lines, as they are.")] = False,
    as_json: AsJson = False,
) -> None:
    """What the trace says: programs, files, and every attempt to reach a network."""
    settings = Settings.from_environment()

    async def work() -> None:
        async with open_house(settings) as house:
            row = await _with_an_attempt(house, task)
            log = house.artifacts.log(row.id, row.attempt, "trace")
            if raw:
                offset = 0
                while chunk := await asyncio.to_thread(log.read, offset):
                    sys.stdout.buffer.write(chunk)
                    offset += len(chunk)
                sys.stdout.buffer.flush()
                return
            summary = await asyncio.to_thread(trace_summary, log)
        if as_json:
            output.as_json(dataclasses.asdict(summary))
            return
        for program in summary.programs:
            output.say(output.printable(f"ran       {program.path}  {' '.join(program.argv)}"))
        for tried in summary.network:
            where = tried.address if tried.port is None else f"{tried.address} port {tried.port}"
            output.say(output.printable(f"network   {tried.call} {tried.family} {where}: {tried.result}"))
        output.say(f"{summary.files_written} files written, {summary.calls} system calls recorded")
        if summary.not_listed or summary.lines_unread:
            output.say(f"{summary.not_listed} more not listed, {summary.lines_unread} lines not understood")

    perform(work())


async def _with_an_attempt(house: House, task: str) -> TaskRow:
    row = await house.store.tasks.get(task)
    if row.attempt == 0:
        raise NotPossible("task", f"{row.id} has not run: it is {row.state}", "wait for it, or see mayfly show")
    return row
