"""Many tasks through a warm pool: how many different boot ids and host keys, machines used twice, machines left."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from pathlib import Path

from bench.main_job import Place
from bench.row import Row
from bench.start.services import client, inventory, services
from orchestrator.store import VmRow

POOL = "bench-fresh"
READY, AT_ONCE = 2, 4
REQUESTS_A_VM = 6
OF_ONE = ("vm.", "template.")
"""Requests about one VM, or for one; others are about all of them."""
BOOT_ID = "/proc/sys/kernel/random/boot_id"


def fresh(place: Place, tasks: int) -> list[Row]:
    """So many tasks, each of which tells the boot id that it sees; then the services are stopped, and what is left is
    counted."""
    with tempfile.TemporaryDirectory(prefix="mayfly-bench-pools-") as folder:
        pools = inventory(Path(folder), {POOL: {"min_ready": READY, "max_vms": AT_ONCE}})
        with services(place, pools, limit=AT_ONCE) as ours:
            boot_ids, machines, seconds = asyncio.run(_run(ours.environment, tasks))
            asked = ours.requests()
        left = asyncio.run(_left(ours.environment))
    keys = {each.host_key for each in machines}
    used = Counter(each.cloud_id for each in machines)
    twice = sum(count - 1 for count in used.values())
    met = len(boot_ids) == len(keys) == len(machines) == tasks and not twice and not left
    aim = f"{tasks} boot ids, {tasks} host keys, none used twice, none left"
    details = {
        "host_keys": float(len(keys)),
        "used_twice": float(twice),
        "left": float(left),
        "tasks_per_second": tasks / seconds,
    }
    return [
        Row(f"{tasks} tasks, a warm pool: boot ids", len(boot_ids), "", aim, met, samples=tasks, details=details),
        _requests(asked, len(machines) + READY, seconds),
    ]


def _requests(asked: Counter[str], machines: int, seconds: float) -> Row:
    """machines: those that were used, and those that stand ready when it is over."""
    single = sum(count for method, count in asked.items() if method.startswith(OF_ONE))
    each = single / machines
    rest = sum(asked.values()) - single
    note = f"beside them {rest / seconds:.2f} pool calls and the like a second"
    return Row("OpenNebula requests per VM life", each, "", f"≤ {REQUESTS_A_VM}", each <= REQUESTS_A_VM, note=note)


async def _run(environment: dict[str, str], tasks: int) -> tuple[set[bytes], list[VmRow], float]:
    async with client(environment) as ours:
        await ours.ready(POOL, READY)
        began = time.monotonic()
        submitted = [await ours.submit(POOL, "cat", BOOT_ID) for _ in range(tasks)]
        for each in submitted:
            await ours.finished(each.id)
        seconds = time.monotonic() - began
        boot_ids = {ours.house.artifacts.log(each.id, 1, "stdout").read() for each in submitted}
        machines = [vm for each in submitted for vm in await ours.house.store.vms.of_task(each.id)]
        return boot_ids, machines, seconds


async def _left(environment: dict[str, str]) -> int:
    async with client(environment) as ours:
        return len(await ours.house.store.vms.open())
