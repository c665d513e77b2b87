"""The `mayfly` command: its groups, and the one place where errors become messages and exit statuses."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from orchestrator import __version__, log
from orchestrator.cli import cloud, doctor, output, pool, results, run, services, submit, tasks, vm

app = typer.Typer(
    name="mayfly",
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
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    log.configure(logging.INFO if verbose else logging.ERROR)


app.command("up")(services.up)
app.command("runner")(services.runner)
app.command("scheduler")(services.scheduler)
app.command("chore")(services.chore)
app.command("run", context_settings={"allow_interspersed_args": False})(run.run)
app.command("submit", context_settings={"allow_interspersed_args": False})(submit.submit)
app.command("list")(tasks.list_)
app.command("show")(tasks.show)
app.command("logs")(tasks.logs)
app.command("cancel")(tasks.cancel)
app.command("results")(results.results)
app.command("trace")(results.trace)
app.command("doctor")(doctor.doctor)
app.add_typer(vm.app, name="vm", help="The virtual machines that Mayfly made.")
app.add_typer(pool.app, name="pool", help="The pools of the inventory.")
# app.add_typer(image.app, name="image", help="Base images: build, promote, roll back.")
app.add_typer(cloud.app, name="cloud", help="The embedded local cloud of this home.")
