"""A short campaign, and the queue with several runners: real processes, PostgreSQL, simulated machines."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from pathlib import Path

from orchestrator.domain.task import TaskSpec, TaskState, Terms
from orchestrator.localcloud.hypervisors.runs import read_runs
from tests.chaos.campaign import run_campaign
from tests.chaos.counts import runs_by_task
from tests.chaos.faults import SIMULATED_FAULTS
from tests.chaos.load import FRONTENDS
from tests.chaos.world import POOL, SIMULATED, World, make_world

TASKS = 500
DEADLINE = 400.0


async def test_a_short_campaign_breaks_no_promise(tmp_path: Path):
    async with make_world(tmp_path, SIMULATED, seed=7) as world:
        result = await run_campaign(world, SIMULATED_FAULTS, faults=40, seed=7, in_flight=12, settle_seconds=360)
    counts = result.counts
    assert result.injected >= 40
    assert (counts.lost, counts.twice, counts.leaked, counts.stuck) == ([], [], [], [])
    assert counts.starts > 0


async def test_a_scheduler_goes_on_when_its_clock_was_ahead_for_a_while(tmp_path: Path):
    async with make_world(tmp_path, SIMULATED, seed=1, start=False) as world:
        store, scheduler = world.house.store, world.schedulers[0]
        scheduler.start()
        for ahead in (7200.0, 0.0):
            scheduler.clock.jump(ahead)
            now = store.clock.now()
            terms = Terms(not_before=now + timedelta(seconds=1))
            spec = TaskSpec(pool=POOL, command=("true",), terms=terms)
            task = await store.tasks.submit(spec, now=now, deadline_at=now + timedelta(days=1))
            async with asyncio.timeout(120):
                while (await store.tasks.get(task.id)).admitted_at is None:
                    await asyncio.sleep(0.1)


async def _over(world: World, tasks: int) -> None:
    async with asyncio.timeout(DEADLINE):
        while sum(many for (_, state), many in (await world.house.store.tasks.counts()).items() if state.over) < tasks:
            await asyncio.sleep(0.5)


async def test_three_runners_share_500_tasks_evenly_between_two_frontends(tmp_path: Path):
    async with make_world(tmp_path, SIMULATED, seed=1, start=False) as world:
        store = world.house.store
        now = store.clock.now()
        spec = TaskSpec(pool=POOL, command=("sh", "-c", "echo done"))
        for frontend in FRONTENDS:  # all of the first before any of the second
            await store.tasks.submit_many(
                [spec] * (TASKS // 2), now=now, deadline_at=now + timedelta(days=1), frontend=frontend
            )
        world.keep_going()
        await _over(world, TASKS)
        tasks = await store.tasks.list(limit=TASKS + 1)
        assert Counter(task.state for task in tasks) == {TaskState.FINISHED: TASKS}
        began = runs_by_task(await asyncio.to_thread(read_runs, world.cloud_home / "runs.jsonl"))
        assert {task.id for task in tasks} == set(began)
        assert all(len(vms) == 1 for vms in began.values())
        claimed = [event.task_id for event in await store.events.list(limit=100_000) if event.kind == "task.claimed"]
        frontend_of = {task.id: task.frontend for task in tasks}
        turns = [frontend_of[task_id or ""] for task_id in claimed]
        assert Counter(turns) == dict.fromkeys(FRONTENDS, TASKS // 2)
        both_wait = turns[: min(len(turns) - turns[::-1].index(frontend) for frontend in FRONTENDS)]
        shares = Counter(both_wait)
        assert all(abs(shares[frontend] / len(both_wait) - 0.5) <= 0.05 for frontend in FRONTENDS)
        assert len({task.runner_id for task in tasks}) == 1  # nobody holds one that is over
        runners = {attempt.runner_id for task in tasks[:60] for attempt in await store.attempts.of_task(task.id)}
        assert len(runners) > 1
