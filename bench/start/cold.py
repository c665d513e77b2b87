"""A task that finds no ready machine: beside it a bare QEMU that restores the same saved state, and plain `ssh`."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from bench.main_job import Place
from bench.row import Row, median, quantile
from bench.start.clone import cloned, fastest
from bench.start.services import Client, Times, client, inventory, services

POOL = "bench-cold"
AIM = 1.3
STAGES = ("PROVISIONING", "CONNECTING", "PREPARING", "SEALING")


def cold(place: Place, rounds: int) -> list[Row]:
    """So many tasks, and so many times the floor, in turns."""
    clones = cloned(place)
    with tempfile.TemporaryDirectory(prefix="mayfly-bench-pools-") as folder:
        pools = inventory(Path(folder), {POOL: {"max_vms": 2}})
        with services(place, pools, limit=2) as ours:
            return asyncio.run(_measure(place, ours.environment, rounds, clones=clones))


async def _measure(place: Place, environment: dict[str, str], rounds: int, *, clones: bool) -> list[Row]:
    times: list[Times] = []
    floors: list[float] = []
    stages: dict[str, list[float]] = {}
    async with client(environment) as ours:
        await ours.serving(POOL)
        await ours.run(POOL, "echo", "hello")  # what a size costs that is seen for the first time is not counted
        for _ in range(rounds):
            times.append(await ours.run(POOL, "echo", "hello"))
            for stage, seconds in (await _stages(ours, times[-1].task_id)).items():
                stages.setdefault(stage, []).append(seconds)
            floors.append(await asyncio.to_thread(_floor, place))
    running, floor = [each.running for each in times], median(floors)
    where = ", ".join(f"{stage} {median(seconds):.2f}" for stage, seconds in stages.items() if stage in STAGES)
    met = median(running) <= AIM * floor
    return [
        Row(
            "no warm VM: submit to process running",
            median(running),
            "s",
            f"≤ {AIM:g} × floor",
            met,
            floor,
            "bare QEMU restore + plain ssh" if clones else "bare QEMU boot + plain ssh",
            samples=rounds,
            note="" if met else f"stages in seconds: {where}",
            details={"p99": quantile(running, 0.99), **{stage: median(seconds) for stage, seconds in stages.items()}},
        )
    ]


async def _stages(ours: Client, task_id: str) -> dict[str, float]:
    attempt = await ours.house.store.attempts.get(task_id, 1)
    if attempt is None:
        raise RuntimeError(f"task {task_id} has no attempt")
    return {
        stage.value: (end - start).total_seconds() for stage, (start, end) in attempt.timings.items() if end is not None
    }


def _floor(place: Place) -> float:
    with fastest(place) as machine:
        return machine.first_answer("echo hello") - machine.began
