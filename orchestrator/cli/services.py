"""`mayfly up`, `runner`, `scheduler`, `chore`: the services. SIGTERM and Ctrl-C drain; a second one stops at once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from orchestrator import bootstrap
from orchestrator.cli import output
from orchestrator.cli.entry import perform
from orchestrator.domain.errors import NotFound
from orchestrator.runner.loop import serve as serve_runner
from orchestrator.scheduler.loop import CHORES
from orchestrator.scheduler.loop import serve as serve_chores
from orchestrator.settings import Settings

SECOND_SIGHTING_SECONDS = 2.0

Limit = Annotated[int, typer.Option("--limit", min=1, help="Attempts at once.")]


def up(limit: Limit = 2) -> None:
    """Everything for one machine: the local cloud (unless ONE_XMLRPC is set), the scheduler and one runner."""
    settings = Settings.from_environment()

    async def work() -> None:
        with bootstrap.only_one(settings, "up"):
            async with bootstrap.open_house(settings) as house, bootstrap.open_tools(house, start_cloud=True) as tools:
                output.note(f"up: home {settings.home}, cloud {tools.cloud.client.endpoint}; Ctrl-C to stop")
                with _stop_on_signals() as stop:
                    await asyncio.gather(
                        serve_runner(tools, stop, limit=limit), serve_chores(tools.store, tools.cloud, stop)
                    )

    perform(work())


def runner(limit: Limit = 2) -> None:
    """One runner: claims tasks and drives their machines. Run as many as you like on this home."""
    settings = Settings.from_environment()

    async def work() -> None:
        async with bootstrap.open_house(settings) as house, bootstrap.open_tools(house) as tools:
            with _stop_on_signals() as stop:
                await serve_runner(tools, stop, limit=limit)

    perform(work())


def scheduler() -> None:
    """The periodic chores."""
    settings = Settings.from_environment()

    async def work() -> None:
        async with bootstrap.open_house(settings) as house, bootstrap.open_cloud(settings) as cloud:
            with _stop_on_signals() as stop:
                await serve_chores(house.store, cloud, stop)

    perform(work())


def chore(name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of {', '.join(CHORES)}.")]) -> None:
    """Run one chore now: two rounds, as what merely looks lost is touched at its second sighting only."""
    settings = Settings.from_environment()

    async def both() -> None:
        if name not in CHORES:
            raise NotFound("chore", f"no chore {name!r}", f"one of {', '.join(CHORES)}")
        async with bootstrap.open_house(settings) as house, bootstrap.open_cloud(settings) as cloud:
            chosen = CHORES[name]()
            for again in (True, False):
                for line in await chosen.run_once(house.store, cloud):
                    output.say(line)
                if again:
                    await asyncio.sleep(SECOND_SIGHTING_SECONDS)

    perform(both())


@contextmanager
def _stop_on_signals() -> Iterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set; the second of them cancels the task that waits."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    current = asyncio.current_task()

    def told() -> None:
        if stop.is_set() and current is not None:
            current.cancel()
        elif not stop.is_set():
            output.note("stopping: what runs comes to its end first; once more to stop at once")
            stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
