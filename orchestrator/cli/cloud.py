"""`mayfly cloud`: the embedded local cloud of this home."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.bootstrap import ensure_cloud, find_cloud, make_home, saved_states, stop_cloud
from orchestrator.cli import output
from orchestrator.cli.entry import perform
from orchestrator.cli.submission import AsJson
from orchestrator.settings import Settings

if TYPE_CHECKING:
    from orchestrator.localcloud.daemon import Endpoint


class Behind(StrEnum):
    """What the cloud's machines are."""

    QEMU = "qemu"
    SIMULATED = "simulated"


app = typer.Typer(no_args_is_help=True, help="The embedded local cloud of this home.")


def _facts(endpoint: Endpoint) -> dict[str, object]:
    return {
        "url": endpoint.url,
        "one_auth": str(endpoint.auth_path),
        "one_zmq": endpoint.events,
        "pid": endpoint.pid,
    }


@app.command()
def start(
    hypervisor: Annotated[Behind, typer.Option(help="simulated: no machines, for tests of the client.")] = Behind.QEMU,
    as_json: AsJson = False,
) -> None:
    """Start it, in the background. Running already is fine."""
    settings = Settings.from_environment()

    async def work() -> None:
        make_home(settings)
        endpoint = await asyncio.to_thread(ensure_cloud, settings.cloud_home, hypervisor)
        if as_json:
            output.as_json(_facts(endpoint))
        else:
            output.say(f"the local cloud answers at {endpoint.url} (pid {endpoint.pid})")
            output.say(
                f"for other OpenNebula clients: ONE_XMLRPC={endpoint.url} ONE_AUTH={endpoint.auth_path} "
                f"ONE_ZMQ={endpoint.events}"
            )

    perform(work())


@app.command()
def status(as_json: AsJson = False) -> None:
    """Say whether it runs, and which machines it has saved; exit status 3 when it does not run."""
    settings = Settings.from_environment()

    async def work() -> int:
        endpoint = await asyncio.to_thread(find_cloud, settings.cloud_home)
        states = await asyncio.to_thread(saved_states, settings.cloud_home)
        if as_json:
            running = {"running": False} if endpoint is None else {"running": True, **_facts(endpoint)}
            output.as_json(running | {"states": states})
        elif endpoint is None:
            output.say("the local cloud does not run: start it with mayfly cloud start")
        else:
            output.say(f"the local cloud answers at {endpoint.url} (pid {endpoint.pid})")
            output.say(f"it publishes events at {endpoint.events}")
        for state in states if not as_json else ():
            output.say(
                f"saved state {state['key']}: {state['cpus']} CPUs, {state['memory_mb']} MB, {state['accelerator']}, "
                f"{state['bytes'] >> 20} MB on the disk, made {state['made_at']} in {state['seconds']} s, "
                f"used {state['uses']} times, last {state['last_used']}"
            )
        return 0 if endpoint else 3

    raise SystemExit(perform(work()))


@app.command()
def stop(as_json: AsJson = False) -> None:
    """Stop it. Machines that run go on running, and are found again at the next start."""
    settings = Settings.from_environment()

    async def work() -> None:
        stopped = await asyncio.to_thread(stop_cloud, settings.cloud_home)
        if as_json:
            output.as_json({"running": False, "stopped": stopped})
        else:
            output.say("the local cloud stopped" if stopped else "the local cloud was not running")

    perform(work())
