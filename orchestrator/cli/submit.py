"""`mayfly submit`: put a task into the queue, and come back at once."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.bootstrap import open_house
from orchestrator.cli import output
from orchestrator.cli.entry import perform
from orchestrator.cli.submission import AsJson, Submission, enqueue, prepare, taking
from orchestrator.settings import Settings


@taking(Submission)
def submit(
    submission: Submission,
    hold: Annotated[bool, typer.Option("--hold", help="Let it wait for mayfly release.")] = False,
    as_json: AsJson = False,
) -> None:
    """Queue a task; a runner (mayfly up, mayfly runner) will take it. Prints its id."""
    settings = Settings.from_environment()

    async def work() -> None:
        async with open_house(settings) as house:
            spec, pool = await prepare(house, submission)
            task = await enqueue(house, spec, pool, key=submission.key, hold=hold)
            served = await house.store.runners.serving(pool.name, now=house.store.clock.now())
        if as_json:
            output.as_json({"id": task.id, "state": task.state})
        else:
            output.say(task.id)
            if not served:
                output.note("no runner is alive for this pool: start one with mayfly up")

    perform(work())
