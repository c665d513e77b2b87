"""The `mayfly` command and its table of commands. A command's module is imported only when it is wanted."""

from __future__ import annotations

import importlib
import logging
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from orchestrator import __version__, log
from orchestrator.cli import output
from orchestrator.cli.entry import USER_ERROR_EXIT
from orchestrator.domain.outcome import PLATFORM_EXIT

_COMMANDS = {
    "run": "run:run",
    "submit": "submit:submit",
    "release": "review:release",
    "reject": "review:reject",
    "list": "tasks:list_",
    "show": "tasks:show",
    "logs": "tasks:logs",
    "cancel": "tasks:cancel",
    "results": "results:results",
    "trace": "trace:app",
    "verify": "verify:verify",
    "hash": "hash:hash_",
    "keys": "keys:app",
    "events": "events:events",
    "queue": "queue:app",
    "schedule": "schedule:app",
    "up": "services:up",
    "runner": "services:runner",
    "scheduler": "services:scheduler",
    "chore": "services:chore",
    "vm": "vm:app",
    "pool": "pool:app",
    "image": "image:app",
    "cloud": "cloud:app",
    "doctor": "doctor:doctor",
}
"""Name → module of this package and what it is there: a function, or a group of further commands."""

_TAKES_A_COMMAND = ("run", "submit")


class _Run(TyperCommand):
    """Options that are wrong end `mayfly run` as its other refusals do: 2 may be the job's own exit status."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as refusal:
            if getattr(refusal, "exit_code", 0) == USER_ERROR_EXIT:
                vars(refusal)["exit_code"] = PLATFORM_EXIT
            raise


class _Commands(TyperGroup):
    """The table, looked up when needed: `mayfly list` does not wait for what `mayfly run` imports."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        found = getattr(importlib.import_module(f"orchestrator.cli.{module}"), name)
        if isinstance(found, typer.Typer):
            command: Any = typer.main.get_group(found)
        else:
            alone = typer.Typer(add_completion=False)
            settings = {"allow_interspersed_args": False} if cmd_name in _TAKES_A_COMMAND else {}
            kind = _Run if cmd_name == "run" else TyperCommand
            alone.command(cmd_name, cls=kind, context_settings=settings)(found)
            command = typer.main.get_command(alone)
        command.name = cmd_name
        return command


app = typer.Typer(
    name="mayfly",
    cls=_Commands,
    help="Run every process in a virtual machine of its own, sealed and traced, destroyed when it ends.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        output.say(f"mayfly {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens, on stderr.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    log.configure(logging.INFO if verbose else logging.ERROR)
