"""Runners with machines that stand ready, on a house."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from orchestrator.domain.pool import Warm
from orchestrator.domain.vm import VmState
from orchestrator.runner.loop import serve
from orchestrator.runner.tools import Tools
from orchestrator.store import TaskRow, VmRow
from tests.journeys.house import POOL, House, until

MANY = 1000.0
"""Launches a minute."""


def warm_tools(house: House, min_ready: int, **pool: Any) -> Tools:
    """The runner's tools, so many machines standing ready. Its pools may be changed, as the inventory is."""
    numbers = pool.pop("warm", {})
    policy = Warm(min_ready=min_ready, launch_rate=MANY, launch_burst=50, **numbers)
    tools = house.with_pool(warm=policy, **pool)
    return dataclasses.replace(tools, pools=dict(tools.pools))


def change(tools: Tools, **warm_policy: Any) -> None:
    """As the inventory's next reading would."""
    assert isinstance(tools.pools, dict)
    pool = tools.pools[POOL.name]
    tools.pools[POOL.name] = dataclasses.replace(pool, warm=dataclasses.replace(pool.warm, **warm_policy))


@asynccontextmanager
async def serving(tools: Tools, limit: int = 20) -> AsyncIterator[asyncio.Event]:
    """A runner, for as long as the block runs; it must end well."""
    stop = asyncio.Event()
    working = asyncio.create_task(serve(tools, stop, limit=limit))
    try:
        yield stop
        stop.set()
        await working
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def ready(house: House, count: int, runner_id: str | None = None) -> tuple[VmRow, ...]:
    """Wait until so many stand ready, and there are no others without a task."""

    async def there() -> tuple[VmRow, ...] | None:
        rows = await house.store.vms.spares(runner_id)
        up = [row for row in rows if row.state is VmState.READY and row.launch == "ok"]  # which its runner wrote last
        return rows if len(up) == len(rows) == count else None

    if not count:

        async def empty() -> bool:
            return not await house.store.vms.spares(runner_id)

        await until("none stands ready", empty)
        return ()
    return tuple(await until(f"{count} stand ready", there))


async def vm_of(house: House, task: TaskRow) -> VmRow:
    [vm] = await house.store.vms.of_task(task.id)
    return vm
