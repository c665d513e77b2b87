"""A process goes on when its runner does not: another runner takes it over, and nothing is run again."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator.domain.outcome import Reason
from orchestrator.domain.task import Delivery, Stage, TaskState
from orchestrator.domain.vm import VmState
from orchestrator.runner.loop import registered, serve
from orchestrator.runner.tools import Tools
from orchestrator.store import TaskRow
from orchestrator.store.clock import Clock
from tests.journeys.house import POOL, House, make_house, until
from tests.journeys.processes import killed, runner_process, stopped
from tests.postgres import binaries, running_server

LEASE_SECONDS = 1.5
LONG = "echo one; sleep 4; echo two; echo three > out.txt"


@asynccontextmanager
async def another_runner(house: House, **pool: object) -> AsyncIterator[str]:
    """A second runner, in this process, for as long as the block runs. Yields its id."""
    async with registered(house.store, [POOL.name], name="another") as ours:
        tools = dataclasses.replace(house.with_pool(**pool), runner_id=ours, lease_seconds=LEASE_SECONDS)
        stop = asyncio.Event()
        serving = asyncio.create_task(serve(tools, stop, limit=20))
        try:
            yield ours
            stop.set()
            await serving
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


async def ran_once(house: House, task: TaskRow, adopter: str, stdout: bytes = b"one\ntwo\n") -> TaskRow:
    """The task is over; its process ran once, under the same attempt, and the adopter ended it."""
    done = await house.over(task)
    assert (done.state, done.message) == (TaskState.FINISHED, "exited with 0")
    assert house.guests.asked(task).count("start") == 1
    assert len(house.guests.of[task.id]) == 1
    assert house.log(task, "stdout") == stdout
    assert house.log(task, "trace").count(b"+++ exited") == 1
    assert house.outputs(task) == ["out.txt"]
    [attempt] = await house.store.attempts.of_task(task.id)
    assert attempt.runner_id == adopter
    assert attempt.outcome is not None
    [vm] = await house.store.vms.of_task(task.id)
    assert (vm.state, vm.runner_id) == (VmState.DESTROYED, adopter)
    kinds = [event.kind for event in await house.store.events.list(task_id=task.id)]
    assert kinds.count("task.claimed") == kinds.count("task.adopted") == 1
    return done


async def test_a_process_whose_runner_is_killed_is_adopted(house: House) -> None:
    task = await house.submit(LONG, outputs=("*",))
    async with runner_process(house, lease_seconds=LEASE_SECONDS) as process:
        await house.printed(task, b"one\n")
        await killed(process)
    async with another_runner(house) as adopter:
        await ran_once(house, task, adopter)
    assert await house.stages(task) == list(Stage)


@pytest.mark.skipif(binaries() is None, reason="no PostgreSQL server is installed")
async def test_a_process_is_adopted_on_postgresql_too(tmp_path: Path) -> None:
    with running_server(tmp_path / "pg") as server:
        async with make_house(tmp_path / "home", server.create("mayfly")) as house:
            task = await house.submit(LONG, outputs=("*",))
            async with runner_process(house, lease_seconds=LEASE_SECONDS) as process:
                await house.printed(task, b"one\n")
                await killed(process)
            async with another_runner(house) as adopter:
                await ran_once(house, task, adopter)


async def test_an_attempt_whose_runner_lives_is_left_alone(house: House) -> None:
    """For longer than a lease, beside another runner and upkeep."""
    task = await house.submit(LONG, outputs=("*",))
    async with runner_process(house, lease_seconds=LEASE_SECONDS) as process:
        await house.printed(task, b"one\n")
        owner = (await house.store.tasks.get(task.id)).runner_id
        async with another_runner(house), house.kept_up(LEASE_SECONDS):
            done = await house.over(task)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait) == 0
    assert (done.state, done.attempt) == (TaskState.FINISHED, 1)
    [attempt] = await house.store.attempts.of_task(task.id)
    assert attempt.runner_id == owner
    kinds = [event.kind for event in await house.store.events.list(task_id=task.id)]
    assert "task.adopted" not in kinds


async def test_a_clock_that_jumps_takes_no_attempt_from_a_runner_that_lives(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All leases look old after it, until those who hold them have beaten again."""
    ahead, real = timedelta(0), Clock.now
    monkeypatch.setattr(Clock, "now", lambda clock: real(clock) + ahead)
    task = await house.submit(LONG, outputs=("*",))
    stop = asyncio.Event()
    first = asyncio.create_task(serve(house.tools, stop, limit=1))
    await house.printed(task, b"one\n")
    async with another_runner(house) as other:
        sees = await house.submit("true")  # by the other, for the first is full
        await house.over(sees)
        ahead = timedelta(seconds=house.tools.lease_seconds + 10)
        assert await house.expired(task)
        done = await house.over(task)
    stop.set()
    await first
    assert (done.state, done.attempt) == (TaskState.FINISHED, 1)
    for each, owner in ((task, house.tools.runner_id), (sees, other)):
        [attempt] = await house.store.attempts.of_task(each.id)
        assert attempt.runner_id == owner


async def test_a_process_that_ended_while_nobody_followed(house: House) -> None:
    task = await house.submit("echo one; sleep 1; echo two; echo three > out.txt", outputs=("*",))
    async with runner_process(house, lease_seconds=LEASE_SECONDS) as process:
        await house.printed(task, b"one\n")
        await killed(process)

    async def ended() -> bool:
        return await house.expired(task)

    await until("its lease has run out", ended)
    async with another_runner(house) as adopter:
        await ran_once(house, task, adopter)


async def test_outputs_whose_runner_is_killed_while_they_come_out(house: House) -> None:
    task = await house.submit("echo one; echo two; echo three > out.txt; mute", outputs=("*",))
    async with runner_process(house, lease_seconds=LEASE_SECONDS) as process:
        await house.at(task, Stage.STAGING_OUT)
        await killed(process)
    [guest] = house.guests.of[task.id]
    assert guest._scenario
    guest._scenario.mute = False
    async with another_runner(house) as adopter:
        await ran_once(house, task, adopter)
    assert await house.stages(task) == list(Stage)


async def test_a_cancel_that_nobody_heard_is_heeded_by_whoever_adopts(house: House) -> None:
    task = await house.submit("echo one; echo part > out.txt; sleep 600", outputs=("*",))
    async with runner_process(house, lease_seconds=LEASE_SECONDS) as process:
        await house.printed(task, b"one\n")
        await killed(process)
    await house.store.tasks.request_cancel(task.id, now=house.now())
    async with another_runner(house):
        done = await house.over(task)
    assert (done.state, done.exit_code) == (TaskState.CANCELED, 130)
    assert done.message == "canceled, and its process ended by SIGTERM"
    assert house.outputs(task) == ["out.txt"]


async def test_a_runner_that_wakes_up_changes_nothing_of_what_was_adopted(house: House) -> None:
    """It stood still for longer than its lease. Neither process, nor machine, nor a byte of the log is touched."""
    task = await house.submit(LONG.replace("sleep 4", "sleep 6"), outputs=("*",))
    async with runner_process(house, lease_seconds=LEASE_SECONDS) as process:
        await house.printed(task, b"one\n")
        await until("it stands still between two writes", lambda: stopped(house, process))
        async with another_runner(house) as adopter:

            async def adopted() -> bool:
                return (await house.store.tasks.get(task.id)).runner_id == adopter

            await until("it is adopted", adopted)
            process.send_signal(signal.SIGCONT)
            await ran_once(house, task, adopter)
            events = await house.store.events.list(task_id=task.id)
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait) == 0
    assert await house.store.events.list(task_id=task.id) == events


async def machine_goes_with_its_runner(house: House, tools: Tools, **terms: object) -> TaskRow:
    task = await house.submit("echo one; hang", **terms)
    async with runner_process(house, lease_seconds=LEASE_SECONDS) as process:
        await house.printed(task, b"one\n")
        await killed(process)
    [vm_id] = house.hypervisor.machines()
    await asyncio.to_thread(house.hypervisor.crash, vm_id)
    return task


async def test_an_adopted_attempt_whose_machine_is_gone_is_tried_again(house: House) -> None:
    task = await machine_goes_with_its_runner(house, house.tools)
    async with another_runner(house, max_attempts=2), house.kept_up():

        async def again() -> bool:
            return house.log(task, "stdout", attempt=2) == b"one\n"

        await until("it is tried again", again)
        await house.store.tasks.request_cancel(task.id, now=house.now())
        done = await house.over(task)
    assert (done.state, done.attempt) == (TaskState.CANCELED, 2)
    assert house.log(task, "stdout", attempt=1) == b"one\n"
    [first, second] = await house.store.vms.of_task(task.id)
    assert first.state is second.state is VmState.DESTROYED


async def test_at_most_once_is_not_tried_again_when_the_machine_is_gone(house: House) -> None:
    task = await machine_goes_with_its_runner(house, house.tools, delivery=Delivery.AT_MOST_ONCE)
    async with another_runner(house, max_attempts=5):
        done = await house.over(task)
    assert (done.state, done.reason, done.attempt) == (TaskState.FAILED, Reason.CONNECTION_LOST, 1)
    assert house.guests.asked(task).count("start") == 1
