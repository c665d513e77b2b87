"""Runners in processes of their own, on a house: to be killed, stopped and set going again."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

from tests.driver import Mayfly
from tests.journeys.house import POOL, House, until

INVENTORY = f"""
pools:
  hosts:
    {POOL.name}:
      mayfly_image: {POOL.image}
      mayfly_memory: 256M
      mayfly_max_vms: {POOL.max_vms}
      mayfly_launch_timeout: 5
      mayfly_max_attempts: 3
      mayfly_retry_backoff: 0.1
      ansible_port: {POOL.ssh_port}
"""


def command_line(house: House, *, lease_seconds: float = 60.0, **variables: object) -> Mayfly:
    """The command line on this house, with its pools and its cloud. `variables`: more of the pool's."""
    inventory = house.settings.home / "pools.yml"
    said = {"disclosure": "open", **variables}
    inventory.write_text(INVENTORY + "".join(f"      mayfly_{name}: {value}\n" for name, value in said.items()))
    return Mayfly(
        {
            "MAYFLY_HOME": str(house.settings.home),
            "MAYFLY_DATABASE_URL": house.settings.database_url,
            "MAYFLY_INVENTORY": str(inventory),
            "MAYFLY_LEASE_SECONDS": str(lease_seconds),
            "ONE_XMLRPC": house.far.url,
            "ONE_AUTH": str(house.far.auth_path),
        }
    )


@asynccontextmanager
async def runner_process(
    house: House, *words: str, lease_seconds: float = 60.0, **variables: object
) -> AsyncIterator[subprocess.Popen[str]]:
    """`mayfly runner` in a process of its own, registered; killed at the end if it still runs. `variables`: of its
    pool."""
    mayfly = command_line(house, lease_seconds=lease_seconds, **variables)
    process = mayfly.start("runner", "--limit", "20", *words)
    try:

        async def there() -> bool:
            assert process.poll() is None, process.stderr and process.stderr.read()
            return any(runner.pid == process.pid for runner in await house.store.runners.alive(now=house.now()))

        await until("the runner is there", there)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        await asyncio.to_thread(process.communicate)


async def killed(process: subprocess.Popen[str]) -> None:
    """As by a power cut."""
    process.send_signal(signal.SIGKILL)
    await asyncio.to_thread(process.wait)


async def stopped(house: House, process: subprocess.Popen[str]) -> bool:
    """Stop the process; not in the middle of a write, for then nobody else could write to SQLite's file."""
    process.send_signal(signal.SIGSTOP)
    try:
        with closing(sqlite3.connect(house.settings.home / "mayfly.db", timeout=0.1, isolation_level=None)) as probe:
            probe.execute("BEGIN IMMEDIATE")
            probe.execute("ROLLBACK")
    except sqlite3.OperationalError:
        process.send_signal(signal.SIGCONT)
        return False
    return True
