"""`mayfly events`: the log of every change of state, in order, a line each."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Annotated

import typer

from orchestrator.bootstrap import open_house
from orchestrator.cli import output
from orchestrator.cli.entry import perform
from orchestrator.domain.errors import DatabaseUnavailable
from orchestrator.settings import Settings
from orchestrator.store import EventRow

POLL_SECONDS = 0.2
AGAIN_SECONDS = 2.0
PAGE = 1000


def events(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with those to come, until Ctrl-C.")] = False,
    task: Annotated[str | None, typer.Option("--task", "-t", metavar="TASK", help="Only this task's.")] = None,
    after: Annotated[int, typer.Option("--after", min=0, metavar="NUMBER", help="Only those after this one.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, an event a line.")] = False,
) -> None:
    """What happened, oldest first. Each event has a number: whoever remembers the last one misses nothing."""
    settings = Settings.from_environment()

    async def work() -> None:
        async with open_house(settings) as house:
            task_id = None if task is None else (await house.store.tasks.get(task)).id
            last, gone = after, False
            while True:
                try:
                    page = await house.store.events.list(after=last, task_id=task_id, limit=PAGE)
                except DatabaseUnavailable as trouble:
                    if not follow:
                        raise
                    if not gone:
                        output.note(f"the database does not answer, and is asked again: {trouble}")
                    gone = True
                    await asyncio.sleep(AGAIN_SECONDS)
                    continue
                gone = False
                for event in page:
                    last = event.number
                    _tell(event, as_json)
                if not page:
                    if not follow:
                        return
                    await asyncio.sleep(POLL_SECONDS)

    perform(work())


def _tell(event: EventRow, as_json: bool) -> None:
    if as_json:
        output.json_line(dataclasses.asdict(event))
        return
    ids = {"task": event.task_id, "attempt": event.attempt, "vm": event.vm_id, "runner": event.runner_id}
    fields = {**{name: value for name, value in ids.items() if value is not None}, **event.data}
    told = " ".join(f"{name}={_word(value)}" for name, value in fields.items())
    output.say(f"{event.number} {event.at:%Y-%m-%dT%H:%M:%S.%f}Z {event.kind} {told}".rstrip())


def _word(value: object) -> str:
    """A value, in quotes when it has spaces or is empty."""
    text = output.printable(str(value))
    return repr(text) if not text or " " in text else text
