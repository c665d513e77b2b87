"""A task that finds a ready machine: to its first byte of output, to its stored end, to the end of its machine."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from bench.main_job import Place
from bench.row import Row, median, quantile
from bench.start.bare import bare
from bench.start.held import first_byte, held
from bench.start.services import Client, Times, client, inventory, services

POOL = "bench-warm"
READY = 2
AT_ONCE = 4
OURS_SECONDS, OURS_RATIO, WORST_SECONDS = 0.5, 1.5, 1.0
STORED_SECONDS, GONE_SECONDS = 1.5, 2.0


def warm(place: Place, rounds: int) -> list[Row]:
    """So many tasks, one at a time, each once two machines stand ready; and as many commands on the floor's connection,
    in turns."""
    with tempfile.TemporaryDirectory(prefix="mayfly-bench-pools-") as folder:
        pools = inventory(Path(folder), {POOL: {"min_ready": READY, "max_vms": AT_ONCE}})
        with services(place, pools, limit=AT_ONCE) as ours, bare(place) as machine, held(machine) as words:
            return asyncio.run(_measure(ours.environment, words, rounds))


async def _measure(environment: dict[str, str], words: tuple[str, ...], rounds: int) -> list[Row]:
    times: list[Times] = []
    floors: list[float] = []
    cancels: list[float] = []
    async with client(environment) as ours:
        for _ in range(rounds):
            await ours.ready(POOL, READY)
            times.append(await ours.run(POOL, "sh", "-c", "echo hello; echo hello >result", outputs=("result",)))
            floors.append(await asyncio.to_thread(first_byte, words, "echo hello"))
        for _ in range(max(3, rounds // 5)):
            await ours.ready(POOL, READY)
            cancels.append(await _canceled(ours))
    running, first = [each.running for each in times], [each.first_byte for each in times]
    p50, p99, floor = median(running), quantile(running, 0.99), median(floors)
    stored = median([each.stored for each in times])
    gone = median([each.gone - each.first_byte for each in times])
    return [
        Row(
            "warm: submit to process running",
            p50,
            "s",
            f"p50 ≤ {OURS_RATIO:g} × floor and ≤ {OURS_SECONDS:g} s, p99 ≤ {WORST_SECONDS:g} s",
            p50 <= OURS_RATIO * floor and p50 <= OURS_SECONDS and p99 <= WORST_SECONDS,
            floor,
            "exec on a held OpenSSH connection",
            samples=rounds,
            details={"p99": p99, "floor_p99": quantile(floors, 0.99)},
        ),
        Row(
            "warm: submit to the first byte of the process's output",
            median(first),
            "s",
            "–",
            None,
            floor,
            "exec on a held OpenSSH connection",
            samples=rounds,
            details={"p99": quantile(first, 0.99)},
        ),
        Row(
            "warm echo: submit to exit code, outputs, trace and report stored",
            stored,
            "s",
            f"≤ {STORED_SECONDS:g} s",
            stored <= STORED_SECONDS,
            samples=rounds,
            details={"p99": quantile([each.stored for each in times], 0.99)},
        ),
        Row(
            "process exit to VM gone",
            gone,
            "s",
            f"≤ {GONE_SECONDS:g} s",
            gone <= GONE_SECONDS,
            samples=rounds,
            details={"p99": quantile([each.gone - each.first_byte for each in times], 0.99)},
        ),
        Row(
            "cancel to VM gone",
            median(cancels),
            "s",
            f"≤ {GONE_SECONDS:g} s",
            median(cancels) <= GONE_SECONDS,
            samples=len(cancels),
            details={"worst": max(cancels)},
        ),
    ]


async def _canceled(ours: Client) -> float:
    """Seconds from the cancel of a running process to CANCELED, which is written when OpenNebula says DONE."""
    task = await ours.submit(POOL, "sh", "-c", "echo begun; exec sleep 600")
    await ours.has(task.id, "stdout")
    began = time.monotonic()
    await ours.cancel(task.id)
    return await ours.over(task.id) - began
