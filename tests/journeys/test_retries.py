"""What a failure is answered with: the platform's by another try, the job's own never unless somebody asked for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from orchestrator.domain.outcome import Reason
from orchestrator.domain.task import Delivery, TaskState
from orchestrator.runner.loop import serve
from orchestrator.store import TaskRow
from tests.journeys.house import House, until


@asynccontextmanager
async def served(house: House, **pool: object) -> AsyncIterator[None]:
    """A runner and upkeep, for as long as the block runs."""
    stop = asyncio.Event()
    tools = house.with_pool(**{"max_attempts": 3, **pool})
    serving = asyncio.create_task(serve(tools, stop, limit=5))
    try:
        async with house.kept_up():
            yield
        stop.set()
        await serving
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def reasons(house: House, task: TaskRow) -> list[str]:
    """Why it went back to its queue, each time."""
    events = await house.store.events.list(task_id=task.id)
    return [event.data["reason"] for event in events if event.kind == "task.requeued"]


@pytest.mark.parametrize("step", ["prolog", "boot"])
async def test_a_machine_that_does_not_start_is_replaced(house: House, step: str) -> None:
    house.hypervisor.fail_next(step, "no such device: /dev/vda")
    task = await house.submit("echo out")
    async with served(house):
        done = await house.over(task)
    assert (done.state, done.attempt, done.message) == (TaskState.FINISHED, 2, "exited with 0")
    assert await reasons(house, task) == [Reason.PROVISION_FAILED]
    first, second = await house.store.attempts.of_task(task.id)
    assert first.finished_at is not None and first.finished_at <= second.started_at
    one, other = await house.store.vms.of_task(task.id)
    assert one.destroyed_at is not None and one.destroyed_at <= other.created_at
    assert house.log(task, "stdout", attempt=2) == b"out\n"


async def test_a_machine_that_dies_under_its_process(house: House) -> None:
    task = await house.submit("echo out; hang")
    async with served(house):
        await house.printed(task, b"out\n")
        [vm_id] = house.hypervisor.machines()
        await asyncio.to_thread(house.hypervisor.crash, vm_id)

        async def again() -> bool:
            return house.log(task, "stdout", attempt=2) == b"out\n"

        await until("it runs again", again)
        await house.store.tasks.request_cancel(task.id, now=house.now())
        done = await house.over(task)
    assert (done.state, done.attempt) == (TaskState.CANCELED, 2)
    assert await reasons(house, task) == [Reason.CONNECTION_LOST]
    assert house.log(task, "stdout", attempt=1) == b"out\n"


async def test_at_most_once_is_never_started_twice(house: House) -> None:
    """Before the process may have started, another try is fine."""
    house.hypervisor.fail_next("boot", "no such device: /dev/vda")
    task = await house.submit("echo out; hang", delivery=Delivery.AT_MOST_ONCE)
    async with served(house, max_attempts=9):

        async def runs() -> bool:
            return house.log(task, "stdout", attempt=2) == b"out\n"

        await until("it runs", runs)
        [vm_id] = house.hypervisor.machines()
        await asyncio.to_thread(house.hypervisor.crash, vm_id)
        done = await house.over(task)
    assert (done.state, done.reason, done.attempt) == (TaskState.FAILED, Reason.CONNECTION_LOST, 2)
    assert house.guests.asked(task).count("start") == 1


async def test_it_is_given_up_after_so_many_tries(house: House) -> None:
    task = await house.submit("true")
    house.guests.behave(task, listens=False)
    async with served(house, boot_timeout_seconds=0.2, max_attempts=3):
        done = await house.over(task)
    assert (done.state, done.reason, done.attempt, done.exit_code) == (TaskState.FAILED, Reason.UNREACHABLE, 3, 125)
    assert await reasons(house, task) == [Reason.UNREACHABLE] * 2
    for attempt in (1, 2, 3):
        assert b"simulated machine" in house.log(task, "console", attempt=attempt)


async def test_what_would_fail_again_is_not_tried_again(house: House) -> None:
    task = await house.submit("true")
    async with served(house, image="smal"):
        done = await house.over(task)
    assert (done.state, done.reason, done.attempt) == (TaskState.FAILED, Reason.PROVISION_FAILED, 1)


async def test_the_jobs_own_end_is_its_end(house: House) -> None:
    task = await house.submit("exit 7")
    async with served(house):
        done = await house.over(task)
    assert (done.state, done.exit_code, done.attempt) == (TaskState.FAILED, 7, 1)


async def test_the_jobs_own_end_is_tried_again_when_somebody_asked_for_it(house: House) -> None:
    task = await house.submit("echo out; exit 7", retry_job=True, max_attempts=2)
    async with served(house):
        done = await house.over(task)
    assert (done.state, done.reason, done.exit_code, done.attempt) == (TaskState.FAILED, Reason.EXIT_NONZERO, 7, 2)
    assert await reasons(house, task) == [Reason.EXIT_NONZERO]
    assert house.log(task, "stdout", attempt=1) == house.log(task, "stdout", attempt=2) == b"out\n"


async def test_a_quota_is_waited_for(house: House) -> None:
    """It costs no try: the task waits in its queue, and goes when there is room."""
    quota = "User [3] : Maximum VM capacity reached: limit of 2 exceeded for VMS quota"
    house.far.faults.fail("one.template.instantiate", 512, quota, times=4)
    task = await house.submit("true")
    async with served(house, max_attempts=1):
        done = await house.over(task)
    assert (done.state, done.attempt) == (TaskState.FINISHED, 5)
    assert await reasons(house, task) == [Reason.QUOTA] * 4
