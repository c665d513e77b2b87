"""`mayfly results`: what a task left behind."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.artifacts import Tree
from orchestrator.bootstrap import House, open_house, receipt_keys
from orchestrator.cli import output
from orchestrator.cli.disclosed import Unreleased, require_disclosed, why_withheld
from orchestrator.cli.entry import USER_ERROR_EXIT, perform
from orchestrator.cli.submission import AsJson
from orchestrator.cli.tasks import TaskId
from orchestrator.domain.display import shown_name
from orchestrator.domain.errors import NotPossible
from orchestrator.receipts import issue
from orchestrator.receipts.crate import Exported, export_crate
from orchestrator.reports.task import manifest_of
from orchestrator.settings import Settings
from orchestrator.store import TaskRow


def results(
    task: TaskId,
    folder: Annotated[
        Path | None, typer.Argument(help="Where the outputs go; new or empty.", show_default=False)
    ] = None,
    crate: Annotated[
        Path | None,
        typer.Option("--crate", metavar="FOLDER|FILE.zip", help="The whole run, with its receipt, as an RO-Crate."),
    ] = None,
    unreleased: Unreleased = False,
    as_json: AsJson = False,
) -> None:
    """Copy a task's outputs into a folder, or its whole run into a crate."""
    settings = Settings.from_environment()
    if (folder is None) is (crate is None):
        raise output.fail("folder: give one of FOLDER and --crate", code=USER_ERROR_EXIT)

    async def outputs(target: Path) -> Tree:
        async with open_house(settings) as house:
            row = await _with_an_attempt(house, task)
            await require_disclosed(house, row, unreleased=unreleased, what="the outputs")
            return await asyncio.to_thread(house.artifacts.export, row.id, row.attempt, target)

    if crate is not None:
        _tell_of_crate(perform(_crate(settings, task, crate, unreleased)), as_json)
    elif folder is not None:
        tree = perform(outputs(folder))
        if as_json:
            output.as_json(manifest_of(tree))
            return
        for entry in tree.files:
            output.say(f"{folder}/{shown_name(entry.path)}  {output.size(entry.size)}  {entry.media_type}")


async def _crate(settings: Settings, task: str, target: Path, unreleased: bool) -> Exported:
    """As far as it may be seen."""
    keys = receipt_keys(settings)
    async with open_house(settings) as house:
        row = await _with_an_attempt(house, task)
        for attempt in await house.store.attempts.of_task(row.id):
            await issue(house.store, house.artifacts, keys, row.id, attempt.number)
        if unreleased:
            await require_disclosed(house, row, unreleased=True, what="the whole run")
        why = "" if unreleased else await why_withheld(house, row)
        return await asyncio.to_thread(export_crate, house.artifacts, keys, row.id, target, withheld=why)


def _tell_of_crate(crate: Exported, as_json: bool) -> None:
    if as_json:
        output.as_json({"files": crate.files, "withheld": crate.withheld})
        return
    output.say(f"{len(crate.files)} files, signed; mayfly verify checks them")
    if crate.withheld:
        output.note(f"{len(crate.withheld)} files are withheld: {crate.why}")


async def _with_an_attempt(house: House, task: str) -> TaskRow:
    row = await house.store.tasks.get(task)
    if row.attempt == 0:
        raise NotPossible("task", f"{row.id} has not run: it is {row.state}", "wait for it, or see mayfly show")
    return row
