"""`mayfly vm`: the machines that Mayfly made."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from orchestrator.bootstrap import open_house
from orchestrator.cli import output
from orchestrator.cli.entry import perform
from orchestrator.cli.submission import AsJson
from orchestrator.settings import Settings

app = typer.Typer(no_args_is_help=True, help="The virtual machines that Mayfly made.")


@app.command("list")
def list_(
    every: Annotated[bool, typer.Option("--all", "-a", help="Those that are destroyed, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Machines that are not destroyed yet, newest first."""
    settings = Settings.from_environment()

    async def work() -> None:
        async with open_house(settings) as house:
            vms = await house.store.vms.list() if every else (await house.store.vms.open())[::-1]
        if as_json:
            output.as_json([dataclasses.asdict(vm) for vm in vms])
            return
        output.table(
            ("vm", "opennebula", "pool", "state", "image", "address", "task", "since"),
            (
                (
                    vm.id,
                    vm.cloud_id,
                    vm.pool,
                    vm.state,
                    vm.image_version,
                    vm.address,
                    vm.task_id,
                    output.ago(vm.moved_at),
                )
                for vm in vms
            ),
            empty="no machine" if every else "no machine: every one that was made is destroyed",
        )

    perform(work())
