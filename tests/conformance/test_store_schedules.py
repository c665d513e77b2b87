"""What every database must do with recurring tasks: each instant is submitted once, by whoever comes first."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from orchestrator.domain.errors import InvalidTask, NotFound, NotPossible
from orchestrator.domain.task import TaskSpec, TaskState, Terms
from orchestrator.store import MAX_SPEC_BYTES, ScheduleRow, Store
from tests.conformance.queueing import DAY, T0, at, kinds, runner, spec, take_one

NIGHTLY = ScheduleRow("nightly", spec(name="n"), "them", "0 2 * * *", None, "Europe/Amsterdam", False, at(60))
OFTEN = ScheduleRow("often", spec("big"), "local", None, 90.5, "UTC", True, at(30))


async def advance(store: Store, name: str, expected: float, then: float, *, skip: bool = False) -> str | None:
    wanted = None if skip else (await store.schedules.get(name)).spec
    task = await store.schedules.advance(name, at(expected), wanted, at(then), now=at(expected), deadline_at=T0 + DAY)
    return None if task is None else task.id


async def test_schedules_are_kept_as_they_were_given_and_listed_by_name(store: Store) -> None:
    assert await store.schedules.list() == ()
    assert await store.schedules.add(OFTEN, now=T0) == OFTEN
    assert await store.schedules.add(NIGHTLY, now=T0) == NIGHTLY
    assert await store.schedules.list() == (NIGHTLY, OFTEN)
    assert await store.schedules.get("nightly") == NIGHTLY
    with pytest.raises(NotFound, match="no schedule 'hourly'"):
        await store.schedules.get("hourly")


async def test_a_name_is_taken_once(store: Store) -> None:
    added = await asyncio.gather(
        *(store.schedules.add(replace(NIGHTLY, frontend=f"f{n}"), now=T0) for n in range(4)), return_exceptions=True
    )
    refused = [each for each in added if isinstance(each, NotPossible)]
    assert len(refused) == 3 and {each.field for each in refused} == {"name"}
    assert len(await store.schedules.list()) == 1


async def test_an_instant_is_submitted_once_however_many_see_it_due(store: Store) -> None:
    await store.schedules.add(NIGHTLY, now=T0)
    made = await asyncio.gather(*(advance(store, "nightly", 60, 120) for _ in range(5)))
    [task_id] = [each for each in made if each is not None]
    [task] = await store.tasks.list()
    assert (task.id, task.spec, task.frontend, task.state) == (task_id, NIGHTLY.spec, "them", TaskState.QUEUED)
    assert (task.submitted_at, task.deadline_at) == (at(60), T0 + DAY)
    assert task.idempotency_key == f"schedule:nightly:{at(60).isoformat()}"
    assert await kinds(store, task_id) == ["task.submitted"]
    row = await store.schedules.get("nightly")
    assert (row.next_at, row.last_task_id) == (at(120), task_id)
    assert await advance(store, "nightly", 60, 120) is None, "that instant is past"
    assert await advance(store, "nightly", 120, 180) not in (None, task_id)


async def test_what_a_schedule_submits_is_claimed_as_any_other(store: Store) -> None:
    await store.schedules.add(OFTEN, now=T0)
    task_id = await advance(store, "often", 30, 120)
    claim = await take_one(store, await runner(store, "big"), ["big"], now=at(31))
    assert claim is not None and claim.task.id == task_id


async def test_an_instant_that_comes_again_is_the_task_that_there_is(store: Store) -> None:
    """Removed and added again with the same instant, or the clock was put back."""
    await store.schedules.add(NIGHTLY, now=T0)
    first = await advance(store, "nightly", 60, 120)
    assert await store.schedules.remove("nightly")
    await store.schedules.add(NIGHTLY, now=at(61))
    assert await advance(store, "nightly", 60, 120) == first
    assert len(await store.tasks.list()) == 1
    assert (await store.schedules.get("nightly")).last_task_id == first


async def test_an_instant_may_be_passed_over(store: Store) -> None:
    await store.schedules.add(OFTEN, now=T0)
    assert await advance(store, "often", 30, 120, skip=True) is None
    row = await store.schedules.get("often")
    assert (row.next_at, row.last_task_id) == (at(120), None)
    assert await store.tasks.list() == ()


async def test_a_schedule_that_is_paused_or_gone_submits_nothing(store: Store) -> None:
    await store.schedules.add(NIGHTLY, now=T0)
    assert await store.schedules.pause("nightly", now=at(5))
    assert not await store.schedules.pause("nightly", now=at(6))
    assert (await store.schedules.get("nightly")).paused_at == at(5)
    assert await advance(store, "nightly", 60, 120) is None
    assert (await store.schedules.get("nightly")).next_at == at(60)
    assert await store.schedules.resume("nightly", next_at=at(180))
    assert not await store.schedules.resume("nightly", next_at=at(999))
    row = await store.schedules.get("nightly")
    assert (row.paused_at, row.next_at) == (None, at(180))
    assert await advance(store, "nightly", 180, 240) is not None
    assert await store.schedules.remove("nightly")
    assert not await store.schedules.remove("nightly")
    late = await store.schedules.advance(
        "nightly", at(240), NIGHTLY.spec, at(300), now=at(240), deadline_at=T0 + DAY
    )  # fmt: skip
    assert late is None
    assert len(await store.tasks.list()) == 1
    for verb in (store.schedules.pause("nightly", now=T0), store.schedules.resume("nightly", next_at=T0)):
        assert not await verb


async def test_a_task_that_is_refused_leaves_the_schedule_where_it_was(store: Store) -> None:
    await store.schedules.add(NIGHTLY, now=T0)
    for wanted, error, field in (
        (spec(terms=Terms(depends_on=("0000000000000000",))), InvalidTask, "depends_on"),
        (TaskSpec("small", ("x" * MAX_SPEC_BYTES,)), InvalidTask, "task"),
    ):
        with pytest.raises(error) as refused:
            await store.schedules.advance("nightly", at(60), wanted, at(120), now=at(60), deadline_at=T0 + DAY)
        assert refused.value.field == field
    row = await store.schedules.get("nightly")
    assert (row.next_at, row.last_task_id) == (at(60), None)
    assert await store.tasks.list() == ()
