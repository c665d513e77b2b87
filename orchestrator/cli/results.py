"""`mayfly results`: what a task left behind."""

from __future__ import annotations

import asyncio
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
from orchestrator.reports.task import manifest_of
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


async def _with_an_attempt(house: House, task: str) -> TaskRow:
    row = await house.store.tasks.get(task)
    if row.attempt == 0:
        raise NotPossible("task", f"{row.id} has not run: it is {row.state}", "wait for it, or see mayfly show")
    return row
