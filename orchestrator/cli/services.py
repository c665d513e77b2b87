"""`mayfly up`, `runner`, `scheduler`, `chore`: the services. SIGTERM and Ctrl-C drain; a second one stops at once."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

import typer

from orchestrator import bootstrap, log
from orchestrator.cli import output
from orchestrator.cli.entry import perform
from orchestrator.cli.submission import parse
from orchestrator.domain.errors import CloudUnreachable, DatabaseUnavailable, NotFound
from orchestrator.provisioning.quantities import time_in_seconds
from orchestrator.runner.loop import DRAIN_SECONDS
from orchestrator.runner.loop import serve as serve_runner
from orchestrator.runner.patience import back_off
from orchestrator.scheduler.loop import CHORES
from orchestrator.scheduler.loop import serve as serve_chores
from orchestrator.settings import Settings
from orchestrator.telemetry import Telemetry, read_address

_T = TypeVar("_T")

_log = logging.getLogger(__name__)

Limit = Annotated[int, typer.Option("--limit", min=1, help="Attempts at once; ready machines count as well.")]
Drain = Annotated[
    str,
    typer.Option(
        "--drain-seconds", metavar="TIME", help="How long attempts may go on after a SIGTERM, before others take over."
    ),
]
MetricsAt = Annotated[
    str | None,
    typer.Option(
        "--metrics",
        metavar="HOST:PORT",
        help="Serve Prometheus metrics there; a port alone is on 127.0.0.1. [MAYFLY_METRICS, else nowhere]",
    ),
]


def up(limit: Limit = 2, drain_seconds: Drain = f"{DRAIN_SECONDS:g}", metrics: MetricsAt = None) -> None:
    """Everything for one machine: the local cloud (unless ONE_XMLRPC is set), the scheduler and one runner."""
    settings = Settings.from_environment()

    async def work() -> None:
        seconds = _drain(drain_seconds)
        with _signals() as told:
            async with AsyncExitStack() as opened:
                opened.enter_context(bootstrap.only_one(settings, "up"))
                house, telemetry = await _opened(opened, settings, metrics)
                tools = await _when_there(
                    opened, lambda: bootstrap.open_tools(house, start_cloud=True, telemetry=telemetry)
                )
                upkeep = await _when_there(
                    opened, lambda: bootstrap.open_upkeep(house, cloud=tools.cloud, telemetry=telemetry)
                )
                output.note(f"up: home {settings.home}, cloud {tools.cloud.client.endpoint}; Ctrl-C to stop")
                stop = told.begin()
                await _together(
                    serve_runner(tools, stop, limit=limit, drain_seconds=seconds), serve_chores(upkeep, stop)
                )

    perform(work())


def runner(
    name: Annotated[
        str | None, typer.Option("--name", help="The runner's name, which no other living one may have. [HOST-PID]")
    ] = None,
    pool: Annotated[
        list[str] | None, typer.Option("--pool", "-p", help="Serve only this pool. Repeatable. [all of the inventory]")
    ] = None,
    limit: Limit = 2,
    drain_seconds: Drain = f"{DRAIN_SECONDS:g}",
    metrics: MetricsAt = None,
) -> None:
    """One runner: claims tasks and drives their machines. Run as many as you like, on any hosts."""
    settings = Settings.from_environment()

    async def work() -> None:
        seconds = _drain(drain_seconds)
        with _signals() as told:
            async with AsyncExitStack() as opened:
                house, telemetry = await _opened(opened, settings, metrics)
                tools = await _when_there(
                    opened, lambda: bootstrap.open_tools(house, name=name, pools=pool, telemetry=telemetry)
                )
                await serve_runner(tools, told.begin(), limit=limit, drain_seconds=seconds)

    perform(work())


def scheduler(metrics: MetricsAt = None) -> None:
    """The periodic chores. Of several schedulers, one acts."""
    settings = Settings.from_environment()

    async def work() -> None:
        with _signals() as told:
            async with AsyncExitStack() as opened:
                house, telemetry = await _opened(opened, settings, metrics)
                upkeep = await _when_there(opened, lambda: bootstrap.open_upkeep(house, telemetry=telemetry))
                await serve_chores(upkeep, told.begin())

    perform(work())


def chore(name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of {', '.join(CHORES)}.")]) -> None:
    """Run one chore now, whoever leads. Those that act on a second sighting only run twice, with their interval
    between."""
    settings = Settings.from_environment()

    async def work() -> None:
        if name not in CHORES:
            raise NotFound("chore", f"no chore {name!r}", f"one of {', '.join(CHORES)}")
        async with bootstrap.open_house(settings) as house, bootstrap.open_upkeep(house) as upkeep:
            chosen = CHORES[name](upkeep)
            for line in await chosen.run_once():
                output.say(line)
            if chosen.looks_twice:
                await asyncio.sleep(chosen.interval_seconds)
                for line in await chosen.run_once():
                    output.say(line)

    perform(work())


async def _opened(
    opened: AsyncExitStack, settings: Settings, metrics_at: str | None
) -> tuple[bootstrap.House, Telemetry]:
    """What every service has. A port that is taken is told at once; metrics are served while the database is waited
    for."""
    named, text = ("metrics", metrics_at) if metrics_at is not None else ("MAYFLY_METRICS", settings.metrics)
    address = parse(named, read_address, text) if text else None
    metrics = await opened.enter_async_context(bootstrap.open_metrics(address, output.note))
    house = await _when_there(opened, lambda: bootstrap.open_house(settings))
    return house, await opened.enter_async_context(bootstrap.open_telemetry(house, metrics))


def _drain(text: str) -> float:
    """Seconds; 0: let go at once."""
    return 0.0 if text == "0" else parse("drain-seconds", time_in_seconds, text)


async def _together(*services: Coroutine[Any, Any, None]) -> None:
    """Until all of them end. When one fails or is canceled, the others are canceled, and seen to their end."""
    running = [asyncio.ensure_future(each) for each in services]
    try:
        await asyncio.gather(*running)
    finally:
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _when_there(opened: AsyncExitStack, what: Callable[[], AbstractAsyncContextManager[_T]]) -> _T:
    """Open it, again and again while the database or OpenNebula does not answer; that is told whenever it is news."""
    known = ""
    for pause in back_off():
        try:
            entered = await opened.enter_async_context(what())
        except (CloudUnreachable, DatabaseUnavailable) as trouble:
            if str(trouble) != known:
                _log.warning("not started yet, and tried again until it answers: %s", trouble)
            known = str(trouble)
        else:
            if known:
                _log.info("it answers now")
            return entered
        await asyncio.sleep(pause)
    raise AssertionError("back_off never ends")


@dataclass
class _Told:
    """What a service makes of signals: before it has begun, the first one ends it."""

    stop: asyncio.Event = field(default_factory=asyncio.Event)
    begun: bool = False

    def begin(self) -> asyncio.Event:
        """From here on the first signal sets the event, and the second cancels."""
        self.begun = True
        return self.stop


@contextmanager
def _signals() -> Iterator[_Told]:
    """Around a service: SIGTERM and SIGINT are heeded, trouble is told. One that is stopped before it has begun ends
    well."""
    log.at_least(logging.WARNING)
    told = _Told()
    loop = asyncio.get_running_loop()
    current = asyncio.current_task()

    def heed() -> None:
        if current is not None and (told.stop.is_set() or not told.begun):
            current.cancel()
        elif told.begun:
            output.note("stopping: what runs comes to its end first; once more to stop at once")
        told.stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, heed)
    try:
        yield told
    except asyncio.CancelledError:
        if told.begun:
            raise
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
