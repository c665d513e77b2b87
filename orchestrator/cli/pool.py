"""`mayfly pool`: what the inventory says."""

from __future__ import annotations

import dataclasses

import typer

from orchestrator.bootstrap import load_pools, make_home
from orchestrator.cli import output
from orchestrator.cli.entry import perform
from orchestrator.cli.submission import AsJson
from orchestrator.settings import Settings

app = typer.Typer(no_args_is_help=True, help="The pools of the inventory.")


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """The pools, as the inventory describes them."""
    settings = Settings.from_environment()

    async def work() -> None:
        make_home(settings)
        pools = await load_pools(settings)
        if as_json:
            output.as_json([dataclasses.asdict(pool) for pool in pools.values()])
            return
        output.table(
            ("pool", "image", "cpus", "memory", "network", "max vms", "time limit"),
            (
                (
                    *(pool.name, pool.image, pool.cpus, output.size(pool.memory_bytes), pool.network, pool.max_vms),
                    f"{pool.default_timeout_seconds:g} s",
                )
                for pool in pools.values()
            ),
            empty="the inventory has no pool: see inventories/local",
        )

    perform(work())
