"""`mayfly trace`: what the process did, and whether it did as another."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from orchestrator.artifacts import Log, LogName
from orchestrator.bootstrap import House, open_house
from orchestrator.cli import output
from orchestrator.cli.disclosed import Unreleased, require_disclosed, why_withheld
from orchestrator.cli.entry import perform
from orchestrator.cli.submission import AsJson
from orchestrator.cli.tasks import TaskId
from orchestrator.domain.errors import NotPossible
from orchestrator.domain.task import TraceProfile
from orchestrator.reports.findings import findings_of
from orchestrator.reports.findings_text import comparison, details, summary
from orchestrator.settings import Settings
from orchestrator.store import TaskRow
from orchestrator.trace.compare import differences
from orchestrator.trace.findings import Findings
from orchestrator.trace.views import View, seen

DIFFERENT_EXIT = 1


class _OfATask(TyperGroup):
    """`mayfly trace TASK` is `mayfly trace show TASK`: words that are no command are the task."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        first = args[0] if args else "--help"
        if first not in self.commands and first != "--help":
            args = ["show", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_OfATask, no_args_is_help=True, help="What the process did; `mayfly trace TASK` shows it.")


@app.command()
def show(
    task: TaskId,
    view: Annotated[
        View | None,
        typer.Option(
            "--view",
            help="researcher: without names that came up in the run; steward: all. Without it: the steward's where the "
            "results are released or need no release, else the researcher's.",
        ),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="strace's own lines, as they are.")] = False,
    unreleased: Unreleased = False,
    as_json: AsJson = False,
) -> None:
    """What the process did: programs, files, and every attempt to reach a network."""
    settings = Settings.from_environment()

    async def work() -> None:
        async with open_house(settings) as house:
            row = await _traced(house, task)
            wanted = view
            if raw or unreleased or view is View.STEWARD:
                await require_disclosed(house, row, unreleased=unreleased, what="the trace")
                wanted = view or View.STEWARD
            if raw:
                await asyncio.to_thread(_copy, house.artifacts.log(row.id, row.attempt, LogName.TRACE))
                return
            if wanted is None:
                wanted = View.RESEARCHER if await why_withheld(house, row) else View.STEWARD
            findings = await _findings(house, row)
        shown = seen(findings, wanted)
        if as_json:
            output.as_json(shown)
            return
        for line in summary(shown):
            output.say(output.printable(line))
        output.say("")
        for line in details(shown):
            output.say(output.printable(line))

    perform(work())


@app.command()
def diff(
    approved: Annotated[str, typer.Argument(metavar="TASK", help="The run that was approved.")],
    other: Annotated[str, typer.Argument(metavar="TASK", help="The run that is to have behaved as it did.")],
    as_json: AsJson = False,
) -> None:
    """Whether a run behaved as one that was approved: exit status 0 if it did, 1 if not. Shows no name of the data."""
    settings = Settings.from_environment()

    async def work() -> bool:
        async with open_house(settings) as house:
            pair = [await _findings(house, await _traced(house, task)) for task in (approved, other)]
        found = differences(*pair)
        same = not any(each.matters for each in found)
        if as_json:
            told = [{"matters": each.matters, "what": each.what, "said": each.said} for each in found]
            output.as_json(
                {"approved": pair[0]["task"]["id"], "other": pair[1]["task"]["id"], "same": same, "differences": told}
            )
            return same
        for line in comparison(found):
            output.say(output.printable(line))
        return same

    if not perform(work()):
        raise SystemExit(DIFFERENT_EXIT)


async def _traced(house: House, task: str) -> TaskRow:
    row = await house.store.tasks.get(task)
    if row.attempt == 0:
        raise NotPossible("task", f"{row.id} has not run: it is {row.state}", "wait for it, or see mayfly show")
    if row.spec.trace is TraceProfile.NONE:
        raise NotPossible("task", f"{row.id} ran without a tracer", "its trace profile is none")
    return row


async def _findings(house: House, row: TaskRow) -> Findings:
    attempt = (await house.store.attempts.of_task(row.id))[-1]
    findings = await asyncio.to_thread(findings_of, house.artifacts, row, attempt)
    if findings is None:
        raise NotPossible("task", f"{row.id} has no trace: its process never began", "see mayfly show for why")
    return findings


def _copy(log: Log) -> None:
    offset = 0
    while chunk := log.read(offset):
        sys.stdout.buffer.write(chunk)
        offset += len(chunk)
    sys.stdout.buffer.flush()
