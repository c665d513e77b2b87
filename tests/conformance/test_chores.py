"""The chores against a database: what each does when it is due, what it leaves alone, and that once is enough."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.artifacts import Artifacts
from orchestrator.domain.errors import InvalidPool
from orchestrator.domain.outcome import Reason, failed
from orchestrator.domain.pool import Pool
from orchestrator.domain.task import InputSpec, TaskSpec, TaskState, Terms
from orchestrator.opennebula import Cloud
from orchestrator.scheduler.admit import ALL_EVERY, Admit
from orchestrator.scheduler.deadlines import Deadlines
from orchestrator.scheduler.pools import Pools
from orchestrator.scheduler.prune import Prune
from orchestrator.scheduler.schedules import CATCH_UP_AT_MOST, Schedules
from orchestrator.scheduler.sweep import Sweep
from orchestrator.scheduler.upkeep import Upkeep
from orchestrator.store import Claim, Finished, ScheduleRow, Store, TaskRow

POOL = Pool(name="small", image="debian-12", retention_seconds=3600, max_waiting=5)
SPEC = TaskSpec(pool="small", command=("true",))
DAY = timedelta(days=1)


@pytest.fixture
def upkeep(store: Store, tmp_path: Path) -> Upkeep:
    """Of a house whose inventory has one pool; what is read from it is what the test puts into `INVENTORY`."""
    INVENTORY.clear()
    INVENTORY.update({POOL.name: POOL})

    async def read_pools() -> Mapping[str, Pool]:
        for pool in INVENTORY.values():
            if not pool.image:
                raise InvalidPool(f"pool {pool.name}", "has no image")
        return dict(INVENTORY)

    nowhere = Cloud("http://127.0.0.1:9/RPC2", "nobody:nothing")
    return Upkeep(store, Artifacts(tmp_path / "artifacts"), nowhere, dict(INVENTORY), read_pools)


INVENTORY: dict[str, Pool] = {}


async def submit(store: Store, spec: TaskSpec = SPEC, *, deadline: timedelta = DAY, **more: Any) -> TaskRow:
    now = store.clock.now()
    return await store.tasks.submit(spec, now=now, deadline_at=now + deadline, **more)


async def take(store: Store, *, deadline: timedelta = DAY) -> Claim:
    """Claim a task as a runner of the pool does."""
    now = store.clock.now()
    runner = await store.runners.register(name=f"r{now.timestamp()}", host="here", pid=1, pools=["small"], now=now)
    [claim] = await store.tasks.claim(
        runner.id,
        {"small": 1},
        max_vms={"small": 100},
        lease_seconds=60,
        now=now,
        deadline=lambda _: now + deadline,
    )
    return claim


async def end(store: Store, claim: Claim, ago: timedelta = timedelta()) -> None:
    """The task FINISHED, so long ago."""
    finished = Finished(claim.lease, TaskState.FINISHED, message="exited 0", exit_code=0)
    assert await store.tasks.finish(finished, now=store.clock.now() - ago)


# -- admit


async def test_admit_lets_in_what_depends_on_nothing_any_more(store: Store, upkeep: Upkeep) -> None:
    first = await submit(store)
    second = await submit(store, replace(SPEC, terms=Terms(depends_on=(first.id,))))
    assert await Admit(upkeep).run_once() == []
    assert (await store.tasks.get(second.id)).admitted_at is None
    await end(store, await take(store))
    [line] = await Admit(upkeep).run_once()
    assert second.id in line
    assert (await store.tasks.get(second.id)).admitted_at is not None
    assert await Admit(upkeep).run_once() == []


async def test_admit_looks_at_what_has_changed_and_now_and_then_at_all(store: Store, upkeep: Upkeep) -> None:
    chore = Admit(upkeep)
    first, due = await submit(store), store.clock.now() + timedelta(seconds=0.2)
    second = await submit(store, replace(SPEC, terms=Terms(depends_on=(first.id,))))
    third = await submit(store, replace(SPEC, terms=Terms(not_before=due)))
    assert await chore.run_once() == []
    await end(store, await take(store))
    async with asyncio.timeout(30):
        lines = await chore.run_once()
        while len(lines) < 2:
            lines += await chore.run_once()
    assert {line.split()[1] for line in lines} == {second.id, third.id}
    # what a writer wrote late, of which its changes tell nothing
    fourth = await submit(store, hold=True)
    await store.tasks.depend(fourth.id, [(failed := await submit(store)).id], now=store.clock.now())
    await store.tasks.request_cancel(failed.id, now=store.clock.now() - ALL_EVERY)
    assert await store.tasks.release(fourth.id, now=store.clock.now())
    assert await chore.run_once() == []
    assert await chore.run_once() == []
    [line] = await Admit(upkeep).run_once()
    assert fourth.id in line


async def test_admit_ends_what_depends_on_a_task_that_failed(store: Store, upkeep: Upkeep) -> None:
    first = await submit(store)
    second = await submit(store, replace(SPEC, terms=Terms(depends_on=(first.id,))))
    third = await submit(store, replace(SPEC, terms=Terms(depends_on=(second.id,))))
    await store.tasks.request_cancel(first.id, now=store.clock.now())
    for _ in range(2):
        await Admit(upkeep).run_once()
    for task in (second, third):
        row = await store.tasks.get(task.id)
        assert (row.state, row.reason) == (TaskState.FAILED, Reason.DEPENDENCY_FAILED)


# -- deadlines


@pytest.mark.parametrize("hold", [False, True])
async def test_a_task_that_waits_too_long_fails_with_what_it_waited_for(
    store: Store, upkeep: Upkeep, hold: bool
) -> None:
    late = await submit(store, deadline=-timedelta(seconds=1), hold=hold)
    in_time = await submit(store)
    await Deadlines(upkeep).run_once()
    row = await store.tasks.get(late.id)
    assert (row.state, row.reason) == (TaskState.CANCELED if hold else TaskState.FAILED, Reason.DEADLINE_PASSED)
    assert ("released" if hold else "no runner is alive") in row.message
    assert (await store.tasks.get(in_time.id)).state is TaskState.QUEUED
    assert await Deadlines(upkeep).run_once() == []


async def test_an_attempt_that_takes_too_long_fails_and_its_runner_can_write_no_more(
    store: Store, upkeep: Upkeep
) -> None:
    await submit(store)
    claim = await take(store, deadline=-timedelta(seconds=1))
    await Deadlines(upkeep).run_once()
    row = await store.tasks.get(claim.task.id)
    assert (row.state, row.reason) == (TaskState.FAILED, Reason.DEADLINE_PASSED)
    assert not await store.tasks.finish(Finished(claim.lease, TaskState.FINISHED), now=store.clock.now())


async def test_what_a_runner_wrote_down_to_say_is_said_after_the_deadline(store: Store, upkeep: Upkeep) -> None:
    await submit(store)
    claim = await take(store, deadline=-timedelta(seconds=1))
    await store.attempts.record_verdict(claim.lease, failed(Reason.SEAL_BROKEN, "it reached a name server"))
    await Deadlines(upkeep).run_once()
    row = await store.tasks.get(claim.task.id)
    assert (row.state, row.reason, row.message) == (TaskState.FAILED, Reason.SEAL_BROKEN, "it reached a name server")


# -- prune and sweep


async def test_prune_forgets_what_is_over_for_longer_than_its_pool_keeps_it(store: Store, upkeep: Upkeep) -> None:
    old, recent, waiting = [await submit(store) for _ in range(3)]
    for ago in (timedelta(hours=2), timedelta(minutes=30)):
        await end(store, await take(store), ago)
    for task in (old, recent):
        await upkeep.artifacts.attempt(task.id, 1).stdout.write(b"hello")
    [line] = await Prune(upkeep).run_once()
    assert line.startswith("1 tasks")
    assert {task.id for task in await store.tasks.list()} == {recent.id, waiting.id}
    assert upkeep.artifacts.log(old.id, 1, "stdout").read() == b""
    assert upkeep.artifacts.log(recent.id, 1, "stdout").read() == b"hello"
    assert [event for event in await store.events.list() if event.task_id == old.id] == []
    assert await Prune(upkeep).run_once() == []


async def test_tasks_of_a_pool_that_is_gone_are_kept_as_long_as_by_default(store: Store, upkeep: Upkeep) -> None:
    await submit(store)
    await end(store, await take(store), timedelta(days=29))
    upkeep.pools.clear()
    assert await Prune(upkeep).run_once() == []


async def test_sweep_keeps_the_inputs_of_tasks_and_schedules(store: Store, upkeep: Upkeep, tmp_path: Path) -> None:
    blobs = []
    for name in ("task", "schedule", "nobody"):
        (tmp_path / name).write_text(name)
        blobs.append(upkeep.artifacts.read_tree(tmp_path / name))
    await submit(store, replace(SPEC, inputs=(InputSpec("/a", "a", blobs[0]),)))
    await add(store, replace(SPEC, inputs=(InputSpec("/b", "b", blobs[1]),)))
    assert await Sweep(upkeep)._named() == set(blobs[:2])
    assert await Sweep(upkeep).run_once() == []  # what is young is not touched
    assert [upkeep.artifacts.tree(blob) is not None for blob in blobs] == [True] * 3


# -- pools


async def test_the_queue_of_a_pool_that_is_gone_says_so_until_it_is_back(store: Store, upkeep: Upkeep) -> None:
    task = await submit(store)
    chore = Pools(upkeep)
    assert await chore.run_once() == []
    INVENTORY.clear()
    INVENTORY["large"] = replace(POOL, name="large")
    lines = await chore.run_once()
    assert "pool large is new" in lines and "pool small is gone" in lines
    assert list(upkeep.pools) == ["large"]
    assert (await queue(store)).blocked_reason is Reason.NO_SUCH_POOL
    assert (await store.tasks.get(task.id)).state is TaskState.QUEUED
    assert await chore.run_once() == []
    INVENTORY["small"] = POOL
    assert len(await chore.run_once()) == 2
    assert (await queue(store)).blocked_reason is None
    assert upkeep.pools["small"] == POOL


async def test_an_inventory_that_cannot_be_read_changes_nothing(store: Store, upkeep: Upkeep) -> None:
    chore = Pools(upkeep)
    INVENTORY["broken"] = replace(POOL, name="broken", image="")
    [line] = await chore.run_once()
    assert "pool broken" in line
    assert upkeep.pools == {"small": POOL}
    assert await chore.run_once() == []  # told once
    INVENTORY["broken"] = replace(POOL, name="broken", cpus=2)
    assert await chore.run_once() == ["pool broken is new"]


async def queue(store: Store) -> Any:
    [found] = [queue for queue in await store.queues.list() if queue.pool == "small"]
    return found


# -- schedules


async def add(store: Store, spec: TaskSpec = SPEC, *, missed: float = 0, catch_up: bool = False) -> datetime:
    """A schedule of every ten minutes, so many instants of which are past. The first of them, or the next."""
    now = store.clock.now()
    next_at = now - timedelta(minutes=10 * missed - 5)
    rule = {"cron": None, "interval_seconds": 600.0, "time_zone": "UTC", "catch_up": catch_up, "next_at": next_at}
    await store.schedules.add(ScheduleRow(name="often", spec=spec, frontend="local", **rule), now=now)
    return next_at


async def submitted(store: Store) -> list[str]:
    """The instants of the tasks that there are, from their keys."""
    keys = [task.idempotency_key or "" for task in await store.tasks.list()]
    assert all(key.startswith("schedule:often:") for key in keys)
    return sorted(key.removeprefix("schedule:often:") for key in keys)


async def test_a_schedule_that_is_not_due_submits_nothing(store: Store, upkeep: Upkeep) -> None:
    await add(store)
    assert await Schedules(upkeep).run_once() == []
    assert await store.tasks.list() == ()


async def test_a_schedule_that_is_due_submits_one_task_and_goes_on(store: Store, upkeep: Upkeep) -> None:
    due = await add(store, missed=1)
    [line] = await Schedules(upkeep).run_once()
    [task] = await store.tasks.list()
    assert task.id in line
    assert (task.spec.command, task.state, task.frontend) == (("true",), TaskState.QUEUED, "local")
    [row] = await store.schedules.list()
    assert (row.next_at, row.last_task_id) == (due + timedelta(minutes=10), task.id)
    assert await Schedules(upkeep).run_once() == []


async def test_what_was_missed_is_caught_up_with_or_skipped(store: Store, upkeep: Upkeep) -> None:
    first = await add(store, missed=4, catch_up=True)
    await Schedules(upkeep).run_once()
    assert len(await submitted(store)) == 4
    await store.schedules.remove("often")
    await store.queues.delete("small", now=store.clock.now())
    await add(store, missed=4.2)
    await Schedules(upkeep).run_once()
    newest = [task for task in await store.tasks.list() if task.state is TaskState.QUEUED]
    assert len(newest) == 1
    assert first < (await store.schedules.list())[0].next_at


async def test_an_outage_of_a_year_is_caught_up_with_as_far_as_the_limit(store: Store, upkeep: Upkeep) -> None:
    upkeep.pools["small"] = replace(POOL, max_waiting=10 * CATCH_UP_AT_MOST)
    await add(store, missed=50_000, catch_up=True)
    await Schedules(upkeep).run_once()
    assert len(await submitted(store)) == CATCH_UP_AT_MOST
    [row] = await store.schedules.list()
    assert store.clock.now() < row.next_at < store.clock.now() + timedelta(minutes=10)


async def test_two_schedulers_at_once_submit_each_instant_once(store: Store, upkeep: Upkeep) -> None:
    await add(store, missed=3, catch_up=True)
    await asyncio.gather(*(Schedules(upkeep).run_once() for _ in range(4)))
    assert len(await submitted(store)) == 3


async def test_a_queue_that_is_full_keeps_the_schedule_where_it_is(store: Store, upkeep: Upkeep) -> None:
    for _ in range(5):
        await submit(store)
    due = await add(store, missed=1)
    chore = Schedules(upkeep)
    [line] = await chore.run_once()
    assert "no task is submitted" in line
    assert await chore.run_once() == []  # told once
    assert (await store.schedules.list())[0].next_at == due
    await store.queues.delete("small", now=store.clock.now())
    assert len(await chore.run_once()) == 1
    assert (await store.schedules.list())[0].next_at > due


async def test_a_paused_schedule_submits_nothing(store: Store, upkeep: Upkeep) -> None:
    await add(store, missed=2)
    await store.schedules.pause("often", now=store.clock.now())
    assert await Schedules(upkeep).run_once() == []
    await store.schedules.resume("often", next_at=store.clock.now())
    assert len(await Schedules(upkeep).run_once()) == 1
