"""So many faults, drawn from a seed, on a world that works all the while; then everything heals, and is counted."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.domain.task import TaskState
from orchestrator.localcloud import daemon
from orchestrator.localcloud.hypervisors.runs import read_runs
from tests.chaos.counts import Counts, count, runs_by_task
from tests.chaos.faults import Fault
from tests.chaos.load import TROUBLE, Load
from tests.chaos.world import POOL, World

AT_ONCE = 4
"""So many faults may be under way at the same time."""

PAUSE_SECONDS = 0.25
"""Between one fault and the next."""

FAULTS_PER_END = 4
"""After so many faults one more task must be FINISHED before the next."""

STANDSTILL_SECONDS = 300.0
TELL_EVERY = 50
REVIVE_SECONDS = 0.3
LEAVE_SECONDS = 1.0


@dataclass(frozen=True)
class Result:
    """`faults`: how many of each kind were injected. `seconds`: of the campaign, and until all was over after it."""

    counts: Counts
    faults: Counter[str]
    seconds: float
    settling_seconds: float

    @property
    def injected(self) -> int:
        return sum(self.faults.values())


async def run_campaign(
    world: World,
    kinds: Mapping[str, tuple[int, Fault]],
    *,
    faults: int,
    seed: int,
    in_flight: int,
    settle_seconds: float,
    pause_seconds: float = PAUSE_SECONDS,
) -> Result:
    """Inject until `faults` have been injected; the order of their kinds depends on the seed alone."""
    began = time.monotonic()
    load = Load(world.house.store, random.Random(seed + 1), POOL, in_flight, world.scale.process_seconds)
    injected: Counter[str] = Counter()
    async with asyncio.TaskGroup() as group:
        beside = [group.create_task(_keep_busy(load)), group.create_task(_revive(world))]
        await _more_ended(world, 0)
        await _inject(world, kinds, faults, random.Random(seed), injected, pause_seconds)
        for each in beside:
            each.cancel()
    ended = time.monotonic()
    await world.fault({"kind": "clear"})
    world.heal()
    await _settled(world, load, settle_seconds)
    counts = await count(world, load.wanted, await runs_of(world, load))
    return Result(counts, injected, ended - began, time.monotonic() - ended)


async def runs_of(world: World, load: Load) -> dict[str, list[int]]:
    """Of each task the VMs in which its process began, in order, as the processes say: simulated ones into a file of
    the cloud, real ones with their first line of output."""
    if world.owns_cloud:
        return runs_by_task(await asyncio.to_thread(read_runs, world.cloud_home / "runs.jsonl"))
    began: dict[str, list[int]] = {}
    for task_id in load.wanted:
        for vm in await world.house.store.vms.of_task(task_id):
            said = world.house.artifacts.log(task_id, vm.attempt or 0, "stdout").read()
            if vm.cloud_id is not None:
                began.setdefault(task_id, []).extend([vm.cloud_id] * said.count(b"begin "))
    return began


async def _inject(
    world: World,
    kinds: Mapping[str, tuple[int, Fault]],
    faults: int,
    rand: random.Random,
    injected: Counter[str],
    pause_seconds: float,
) -> None:
    names, weights = list(kinds), [weight for weight, _ in kinds.values()]
    room = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> None:
        async with room:
            try:
                done = await kinds[name][1](world)
            except (*TROUBLE, daemon.CloudNotStarted):  # another fault took what this one needs
                done = False
            if done:
                injected[name] += 1
                if (so_far := injected.total()) % TELL_EVERY == 0:
                    print(f"  {so_far} faults", flush=True)

    async with asyncio.TaskGroup() as going:
        while sum(injected.values()) < faults:
            ended = await _ended(world)
            for _ in range(FAULTS_PER_END):
                await room.acquire()
                room.release()
                going.create_task(one(rand.choices(names, weights)[0]))
                await asyncio.sleep(pause_seconds)
            await _more_ended(world, ended)


async def _ended(world: World) -> int:
    try:
        counts = await world.house.store.tasks.counts()
    except TROUBLE:  # the database is down, as it may be
        return 0
    return sum(many for (_, state), many in counts.items() if state is TaskState.FINISHED)


async def _more_ended(world: World, before: int) -> None:
    """Until one more task is FINISHED: faults that follow each other too fast would only break what stands still."""
    async with asyncio.timeout(STANDSTILL_SECONDS):
        while await _ended(world) <= before:
            await asyncio.sleep(0.1)


async def _keep_busy(load: Load) -> None:
    while True:
        try:
            await load.top_up()
        except TROUBLE as trouble:  # the database is down, as it may be
            print(f"  cannot submit now: {trouble}", flush=True)
        await asyncio.sleep(0.2)


async def _revive(world: World) -> None:
    """What was killed comes back after a while, as a new process."""
    while True:
        await asyncio.sleep(REVIVE_SECONDS)
        for service in world.services:
            if service.pid is None:
                await asyncio.sleep(world.rand.uniform(0, LEAVE_SECONDS))
                service.start()


async def _settled(world: World, load: Load, seconds: float) -> None:
    """Until every task is over and every VM closed, or the time is up."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        world.keep_going()
        counts = await world.house.store.tasks.counts()
        over = all(state.over for _, state in counts) and not await world.house.store.vms.open()
        if over and not await world.cloud.vms(world.house.store.installation_id):
            return
        await asyncio.sleep(0.5)
