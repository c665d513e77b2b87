"""A hundred tasks of one second through four machines at once; beside it a shell's loop over bare machines."""

from __future__ import annotations

import asyncio
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from bench.main_job import Place
from bench.row import Row
from bench.start.clone import cloned, fastest
from bench.start.services import client, inventory, services

POOL = "bench-many"
JOB = ("sh", "-c", "sleep 1; echo done")
AT_ONCE = 4
AIM = 0.85
MISSED = (
    "the processors are full: a life of ours has the seal tried, the unit armed and all traced, which the floor has not"
)


def many(place: Place, tasks: int, floor_tasks: int) -> list[Row]:
    """So many tasks, submitted at once, to the last one's end; and so many by the floor, which is slow to measure."""
    clones = cloned(place)
    with tempfile.TemporaryDirectory(prefix="mayfly-bench-pools-") as folder:
        pools = inventory(Path(folder), {POOL: {"min_ready": AT_ONCE, "max_vms": AT_ONCE}})
        with services(place, pools, limit=AT_ONCE) as ours:
            rate = asyncio.run(_rate(ours.environment, tasks))
    floor = _floor(place, floor_tasks)
    return [
        Row(
            f"{tasks} tasks of 1 s through {AT_ONCE} VMs at once",
            rate,
            "tasks/s",
            f"≥ {AIM:g} × floor",
            rate >= AIM * floor,
            floor,
            f"a loop over bare {'clones' if clones else 'machines'}",
            faster_is_more=True,
            samples=tasks,
            note="" if rate >= AIM * floor else MISSED,
            details={"floor_tasks": floor_tasks},
        )
    ]


async def _rate(environment: dict[str, str], tasks: int) -> float:
    async with client(environment) as ours:
        await ours.ready(POOL, AT_ONCE)
        began = time.monotonic()
        submitted = [await ours.submit(POOL, *JOB) for _ in range(tasks)]
        for each in submitted:
            await ours.finished(each.id)
        return tasks / (time.monotonic() - began)


def _floor(place: Place, tasks: int) -> float:
    numbers: SimpleQueue[int] = SimpleQueue()
    for number in range(AT_ONCE):
        numbers.put(number)

    def one() -> None:
        number = numbers.get()
        try:
            with fastest(place, number) as machine:
                machine.first_answer(" ".join(["exec", JOB[0], JOB[1], f"'{JOB[2]}'"]))
        finally:
            numbers.put(number)

    began = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as loop:
        for each in [loop.submit(one) for _ in range(tasks)]:
            each.result()
    return tasks / (time.monotonic() - began)
