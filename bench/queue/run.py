"""`python -m bench queue`: fill, measure, deeper, and print."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg

from bench.queue.measures import Effort, PickUp, Rates, measure_pick_up, measure_rates, median_rates
from bench.queue.report import LIMITS, print_flatness, print_pick_ups, print_rates
from bench.queue.system import System
from bench.queue.with_mayfly import Mayfly
from bench.queue.with_pgqueuer import PgQueuerSystem
from bench.queue.with_procrastinate import Procrastinate
from tests.postgres import Postgres, running_server

SYSTEMS = ("mayfly", "procrastinate", "pgqueuer", "sqlite")
OURS = "Mayfly, PostgreSQL"
DEPTHS, ROUNDS = (1_000, 100_000), 2
FULL_DEPTHS, FULL_ROUNDS = (1_000, 10_000, 100_000, 1_000_000), 3


def main(words: list[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench queue", description=__doc__)
    parser.add_argument("--full", action="store_true", help=f"depths {FULL_DEPTHS}, {FULL_ROUNDS} rounds")
    parser.add_argument("--depths", type=int, nargs="+", help=f"how many tasks wait: {DEPTHS} unless said")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--systems", choices=SYSTEMS, nargs="+", default=SYSTEMS)
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="mayfly-queue-") as scratch:
        folder = Path(scratch)
        with running_server(folder / "postgres", durable=True) as server:
            depths = sorted(options.depths or (FULL_DEPTHS if options.full else DEPTHS))
            rounds = options.rounds or (FULL_ROUNDS if options.full else ROUNDS)
            asyncio.run(_all(folder, server, options.systems, depths, rounds))


async def _all(folder: Path, server: Postgres, names: list[str], depths: list[int], rounds: int) -> None:
    began = time.monotonic()
    smaller = " (the smaller run: --full for the whole)" if depths[-1] < FULL_DEPTHS[-1] else ""
    print(f"bench queue: {', '.join(f'{depth:,}' for depth in depths)} waiting, {rounds} rounds{smaller}", flush=True)
    rates: dict[str, dict[int, Rates]] = defaultdict(dict)
    pick_ups: dict[str, dict[int, PickUp]] = defaultdict(dict)
    async with AsyncExitStack() as opened:
        systems = [await opened.enter_async_context(_opened(name, folder, server)) for name in names]
        for system, _ in systems:
            pick_ups[system.name][0] = await measure_pick_up(system, Effort.pick_ups)
        for depth in depths:
            measured: dict[str, list[Rates]] = defaultdict(list)
            for turn in range(rounds):
                for system, dsn in systems:
                    print(f"{time.monotonic() - began:4.0f} s: {depth:,} waiting, {system.name}", file=sys.stderr)
                    await system.fill(depth)
                    if turn == 0 and dsn:
                        await _settle(dsn)
                    measured[system.name].append(await measure_rates(system, Effort()))
            for system, _ in systems:
                rates[system.name][depth] = median_rates(measured[system.name])
                pick_ups[system.name][depth] = await measure_pick_up(system, Effort.pick_ups)
    print_rates(rates, OURS)
    print_flatness(rates)
    print_pick_ups(pick_ups)
    print(f"\n{LIMITS}\n{time.monotonic() - began:.0f} s in all")


@asynccontextmanager
async def _opened(name: str, folder: Path, server: Postgres) -> AsyncIterator[tuple[System[Any], str | None]]:
    """The system in an empty database of its own, and how to reach that."""
    if name == "sqlite":
        async with Mayfly.open(f"sqlite:///{folder / 'mayfly.db'}", "Mayfly, SQLite") as sqlite:
            yield sqlite, None
        return
    dsn = server.create(f"bench_{name}")
    async with AsyncExitStack() as stack:
        system: System[Any]
        match name:
            case "mayfly":
                system = await stack.enter_async_context(Mayfly.open(dsn, OURS))
            case "procrastinate":
                system = await stack.enter_async_context(Procrastinate.open(dsn))
            case "pgqueuer":
                system = await stack.enter_async_context(PgQueuerSystem.open(dsn))
            case _:
                raise ValueError(name)
        yield system, dsn


async def _settle(dsn: str) -> None:
    """What autovacuum would do after such a flood, done before the clock starts."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute("VACUUM ANALYZE")
        await connection.execute("CHECKPOINT")
