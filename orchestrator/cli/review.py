"""`mayfly release` and `reject`: let a held task into the queue; decide of what a task that is over has left."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.bootstrap import House, open_house
from orchestrator.cli import output
from orchestrator.cli.disclosed import disclosure_of
from orchestrator.cli.entry import perform
from orchestrator.cli.submission import AsJson, whole_id
from orchestrator.cli.tasks import TaskId
from orchestrator.cli.who import me
from orchestrator.decide.disclosure import why_not_by
from orchestrator.domain.errors import NotPossible
from orchestrator.settings import Settings
from orchestrator.store import Decision, ReviewRow, TaskRow

LONGEST_WHY = 2000

Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="Why, for those who read the record.")]


def release(
    task: TaskId,
    after: Annotated[
        list[str] | None, typer.Option("--after", metavar="TASK", help="Only once this one has FINISHED. Repeatable.")
    ] = None,
    why: Why = "",
    as_json: AsJson = False,
) -> None:
    """Queue a task that was submitted with --hold; of one that is over, release the results."""
    settings = Settings.from_environment()

    async def work() -> None:
        async with open_house(settings) as house:
            found = await house.store.tasks.get(task)
            if found.state.over:
                if after:
                    raise NotPossible("after", f"{found.id} is over: it waits for nobody", "leave it out")
                _tell(await _decide(house, found, Decision.RELEASED, why), as_json)
                return
            released = await _into_the_queue(house, found, after or [])
        if as_json:
            output.as_json({"id": released.id, "state": released.state})
        else:
            output.say(f"{released.id} is released")

    perform(work())


def reject(task: TaskId, why: Why = "", as_json: AsJson = False) -> None:
    """Withhold the results of a task that is over, for good. Needs --why."""
    settings = Settings.from_environment()

    async def work() -> None:
        if not why.strip():
            raise NotPossible("why", "is empty", "say why, with --why")
        async with open_house(settings) as house:
            found = await house.store.tasks.get(task)
            _tell(await _decide(house, found, Decision.REJECTED, why), as_json)

    perform(work())


async def _into_the_queue(house: House, found: TaskRow, after: list[str]) -> TaskRow:
    tasks, now = house.store.tasks, house.store.clock.now()
    if after:
        await tasks.depend(found.id, [await whole_id(house, each) for each in after], now=now)
    if not await tasks.release(found.id, now=now):
        raise NotPossible("task", f"{found.id} is not on hold: it is {found.state}", "see mayfly show")
    return await tasks.get(found.id)


async def _decide(house: House, task: TaskRow, decision: Decision, why: str) -> ReviewRow:
    if len(why) > LONGEST_WHY or not why.isprintable():
        raise NotPossible("why", "is too long or not plain text", f"at most {LONGEST_WHY} characters")
    by = me()
    problem = why_not_by(await disclosure_of(house, task), submitted_by=task.submitted_by, by=by)
    if problem:
        raise NotPossible("task", f"{task.id}: {problem}", "ask somebody else")
    return await house.store.reviews.decide(task.id, decision, by, why, now=house.store.clock.now())


def _tell(review: ReviewRow, as_json: bool) -> None:
    if as_json:
        output.as_json(
            {"id": review.task_id, "decision": review.decision, "by": review.by, "why": review.why, "at": review.at}
        )
    else:
        output.say(f"the results of {review.task_id} are {review.decision} by {review.by}")
