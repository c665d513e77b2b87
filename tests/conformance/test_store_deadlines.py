"""What every database must do with time: deadlines of what is not over, leases from the future, whose clock it is."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.domain.outcome import Exited, Reason, judge
from orchestrator.domain.task import TaskState, Terms
from orchestrator.store import Finished, Store
from tests.chaos.clocks import Clock, build
from tests.conformance.queueing import DAY, T0, at, claimed, kinds, retried, runner, spec, submit, take, take_one

ROOT = Path(__file__).parents[2]
YEAR = timedelta(days=365)


@pytest.mark.parametrize(
    "hold, terms, state, kind",
    [
        (True, Terms(), TaskState.CANCELED, "task.canceled"),
        (False, Terms(), TaskState.FAILED, "task.failed"),
        (False, Terms(not_before=T0 + YEAR), TaskState.FAILED, "task.failed"),
    ],
)
async def test_what_waits_for_too_long_is_over(
    store: Store, hold: bool, terms: Terms, state: TaskState, kind: str
) -> None:
    me = await runner(store)
    task = await submit(store, spec(terms=terms), now=T0, deadline_at=at(60), hold=hold)
    assert await store.tasks.overdue(now=at(59)) == ()
    [row] = await store.tasks.overdue(now=at(60))
    assert row == task
    assert not await store.tasks.end_overdue(row, "too long", now=at(59))
    assert await store.tasks.end_overdue(row, "too long", now=at(61))
    assert not await store.tasks.end_overdue(row, "too long", now=at(62))
    over = await store.tasks.get(task.id)
    assert (over.state, over.reason, over.message, over.exit_code) == (state, Reason.DEADLINE_PASSED, "too long", 125)
    assert (over.finished_at, over.deadline_at, over.admitted_at) == (at(61), None, None)
    assert (await kinds(store, task.id))[-1] == kind
    assert await store.tasks.overdue(now=at(999)) == ()
    assert await store.tasks.admit(now=T0 + 2 * YEAR) == ()
    assert not await store.tasks.release(task.id, now=at(63))
    assert await take_one(store, me, ["small"], now=at(63)) is None


async def test_an_attempt_that_is_held_for_too_long_is_over_and_its_runner_hears_so(store: Store) -> None:
    claim = await claimed(store)
    deadline = claim.task.deadline_at
    assert deadline is not None
    [row] = await store.tasks.overdue(now=deadline)
    assert await store.tasks.end_overdue(row, "too long", now=deadline)
    over = await store.tasks.get(row.id)
    assert (over.state, over.lease, over.stage, over.lease_expires_at) == (TaskState.FAILED, None, None, None)
    assert await store.tasks.beat(claim.lease.runner_id, [claim.lease], lease_seconds=30, now=deadline) == {}
    assert not await store.tasks.finish(Finished.by(claim.lease, judge(Exited(0))), now=deadline)
    attempt = await store.attempts.get(row.id, 1)
    assert attempt is not None and attempt.finished_at == deadline
    [event] = [event for event in await store.events.list(task_id=row.id) if event.kind == "task.failed"]
    assert (event.attempt, event.runner_id) == (1, claim.lease.runner_id)


async def test_what_has_moved_on_since_it_was_read_is_left_alone(store: Store) -> None:
    me = await runner(store)
    task = await submit(store, spec(), now=T0, deadline_at=at(60))
    [queued] = await store.tasks.overdue(now=at(60))
    claim = await take_one(store, me, ["small"], now=at(60))
    assert claim is not None
    assert not await store.tasks.end_overdue(queued, "too long", now=at(61)), "it was claimed meanwhile"
    read = await store.tasks.get(task.id)
    assert await store.tasks.requeue(retried(claim.lease, Reason.RETRY), now=at(62)) is TaskState.QUEUED
    late = T0 + 2 * DAY
    assert not await store.tasks.end_overdue(read, "too long", now=late), "it was requeued meanwhile"
    again = await take_one(store, me, ["small"], now=at(63))
    assert again is not None
    assert not await store.tasks.end_overdue(read, "too long", now=late), "that was the attempt before"
    assert (await store.tasks.get(task.id)).state is TaskState.RUNNING


async def test_the_deadline_of_a_held_task_runs_on_after_its_release(store: Store) -> None:
    task = await submit(store, spec(), now=T0, deadline_at=at(60), hold=True)
    [read] = await store.tasks.overdue(now=at(60))
    assert await store.tasks.release(task.id, now=at(60))
    assert not await store.tasks.end_overdue(read, "too long", now=at(61))
    assert [row.id for row in await store.tasks.overdue(now=at(61))] == [task.id]


async def test_several_that_end_what_is_overdue_end_it_once(store_url: str, store: Store) -> None:
    for n in range(6):
        await submit(store, spec(), now=at(n), deadline_at=at(60 - n))
    rows = await store.tasks.overdue(now=at(60))
    assert [row.deadline_at for row in rows] == sorted(at(60 - n) for n in range(6)), "the longest ago first"
    async with await Store.open(store_url) as other:
        ended = await asyncio.gather(
            *(each.tasks.end_overdue(row, "too long", now=at(60)) for row in rows for each in (store, other, store))
        )
    assert sum(ended) == 6
    assert len([event for event in await store.events.list() if event.kind == "task.failed"]) == 6


async def test_leases_from_the_future_are_cut_and_no_others(store: Store) -> None:
    me = await runner(store)
    tasks = [await submit(store, spec(), now=T0) for _ in range(3)]
    for task, seconds in zip(tasks, (30, 120, 4000), strict=True):
        [claim] = await take(store, me, ["small"], now=T0, up_to=1, lease_seconds=seconds, only=task.id)
        assert claim.task.lease_expires_at == at(seconds)
    assert await store.tasks.shorten_leases(now=T0, longest_seconds=4000) == 0
    assert await store.tasks.shorten_leases(now=T0, longest_seconds=120) == 1
    assert [(await store.tasks.get(task.id)).lease_expires_at for task in tasks] == [at(30), at(120), at(120)]
    assert await store.tasks.shorten_leases(now=T0 - YEAR, longest_seconds=120) == 3
    assert len(await store.tasks.expired(now=T0 - YEAR + timedelta(seconds=120))) == 3
    held = (await store.tasks.get(tasks[2].id)).lease
    assert held is not None
    assert await store.tasks.heartbeat(held, lease_seconds=30, now=T0 - YEAR) is not None, "it is still this runner's"


async def test_after_the_clock_was_put_back_no_next_attempt_waits_longer_than_its_pool_has_it(store: Store) -> None:
    claim = await claimed(store)
    later = await submit(store, spec(terms=Terms(not_before=T0 + YEAR)), now=T0)
    assert await store.tasks.requeue(
        dataclasses.replace(retried(claim.lease, Reason.UNREACHABLE), not_before=at(7200)), now=at(7100)
    )
    assert await store.tasks.shorten_waits(now=at(0), longest_seconds={"small": 7200, "other": 1}) == 0
    assert await store.tasks.shorten_waits(now=at(0), longest_seconds={"small": 300}) == 1
    assert (await store.tasks.get(claim.task.id)).not_before == at(300)
    assert (await store.tasks.get(later.id)).not_before == T0 + YEAR, "that is when its submitter wants it"
    assert await store.tasks.admit(now=at(300)) == (claim.task.id,)


async def test_after_the_clock_was_put_back_nobody_leads_from_the_future(store: Store) -> None:
    assert await store.leaders.lead("chores", "before", seconds=15, now=at(7200)) == 1
    assert await store.leaders.lead("chores", "after", seconds=15, now=at(7190)) is None
    assert await store.leaders.lead("chores", "after", seconds=15, now=at(0)) == 2
    assert await store.leaders.lead("chores", "before", seconds=15, now=at(1)) is None


async def test_after_the_clock_was_put_back_a_heartbeat_from_the_future_says_nothing(store: Store) -> None:
    await store.runners.register(name="one", host="here", pid=1, pools=["small"], now=at(7200))
    assert [each.name for each in await store.runners.alive(now=at(7190))] == ["one"]
    assert await store.runners.alive(now=at(0)) == ()
    assert not await store.runners.serving("small", now=at(0))


# A process that tells what time it is by the store, by itself, and after its wall clock has jumped.
TELL = """
import asyncio, json, sys, os, struct
from datetime import UTC, datetime
from orchestrator.store import Store

def told(store):
    return [store.clock.now().timestamp(), datetime.now(UTC).timestamp()]

async def main():
    async with await Store.open(sys.argv[1]) as store:
        answers = [told(store)]
        for offset in map(float, sys.argv[2:]):
            with open(os.environ["CLOCK_OFFSET"], "r+b") as file:
                file.write(struct.pack("d", offset))
            answers += [told(store)]
            await store.clock.sync()
            answers += [told(store)]
        print(json.dumps(answers))

asyncio.run(main())
"""


def test_the_time_is_the_databases_not_that_of_a_host_whose_clock_jumps(store_url: str, tmp_path: Path) -> None:
    """Of a host whose clock is an hour fast at first, then two days slow, then a year fast."""
    clock = Clock.make(build(tmp_path), tmp_path / "offset")
    clock.jump(3600)
    before = datetime.now(UTC).timestamp()
    done = subprocess.run(
        [sys.executable, "-c", TELL, store_url, str(-2 * 86400), str(365 * 86400)],
        cwd=ROOT,
        env={**os.environ, **clock.environment},
        stdout=subprocess.PIPE,
        timeout=120,
        check=True,
    )
    after = datetime.now(UTC).timestamp()
    answers = json.loads(done.stdout)
    offsets = [3600.0, -2 * 86400.0, -2 * 86400.0, 365 * 86400.0, 365 * 86400.0]
    assert len(answers) == len(offsets)
    for (by_store, by_itself), offset in zip(answers, offsets, strict=True):
        assert before - 1 <= by_itself - offset <= after + 1, "its own clock did jump"
        if store_url.startswith("postgresql"):
            assert before - 1 <= by_store <= after + 1
        else:
            assert abs(by_store - by_itself) < 60


async def test_the_time_is_aware_and_in_utc(store: Store) -> None:
    told = await store.clock.sync()
    assert told.tzinfo is UTC and store.clock.now().tzinfo is UTC
    assert store.clock.now() >= told
    assert abs(datetime.now(UTC) - told) < timedelta(minutes=1), "the server is on this host"


def test_sqlite_keeps_instants_of_one_width(tmp_path: Path) -> None:
    """They are compared as text: 12:00:00 must come before 12:00:00.5."""

    async def fill() -> None:
        async with await Store.open(f"sqlite:///{tmp_path / 'mayfly.db'}") as store:
            for seconds in (0, 0.5):
                whole = T0.replace(microsecond=0)
                now = whole + timedelta(seconds=seconds)
                await submit(store, spec(), now=now, deadline_at=now)
            found = await store.tasks.overdue(now=whole)
            assert [row.submitted_at for row in found] == [whole]

    asyncio.run(fill())
    with closing(sqlite3.connect(tmp_path / "mayfly.db")) as database:
        widths = {len(row[0]) for row in database.execute("SELECT deadline_at FROM tasks")}
    assert len(widths) == 1
