"""Runners that are asked to stop, politely, with a deadline, or at once."""

from __future__ import annotations

import asyncio
import signal

import pytest

from orchestrator.domain.outcome import Reason
from orchestrator.domain.task import Stage, TaskState
from orchestrator.localcloud.hypervisors.ssh_guest import never
from orchestrator.runner.loop import claim, serve, work_on
from tests.journeys.house import House, until
from tests.journeys.processes import runner_process
from tests.journeys.test_adoption import LEASE_SECONDS, another_runner, ran_once

LONG = "echo one; sleep 1.5; echo two; echo three > out.txt"


async def test_what_runs_comes_to_its_end_and_nothing_is_begun(house: House) -> None:
    running = await house.submit("echo ready; sleep 0.3")
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(house.tools, stop, limit=1))
    await house.printed(running, b"ready\n")
    waiting = await house.submit("true")
    stop.set()
    await serving
    assert (await house.store.tasks.get(running.id)).state is TaskState.FINISHED
    assert (await house.store.tasks.get(waiting.id)).state is TaskState.QUEUED
    runner = await house.store.runners.get(house.tools.runner_id)
    assert runner is not None and runner.draining_at is not None


async def test_a_process_that_runs_beyond_the_deadline_is_left_to_another_runner(house: House) -> None:
    task = await house.submit(LONG, outputs=("*",))
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(house.tools, stop, limit=1, drain_seconds=0.1))
    await house.printed(task, b"one\n")
    stop.set()
    await serving
    left = await house.store.tasks.get(task.id)
    assert (left.state, left.stage, left.attempt) == (TaskState.RUNNING, Stage.EXECUTING, 1)
    assert await house.expired(task)
    async with another_runner(house) as adopter:
        await ran_once(house, task, adopter)


async def test_what_had_not_begun_goes_back_to_its_queue(house: House) -> None:
    """It costs the task no try."""
    task = await house.submit("echo one; echo two; echo three > out.txt", outputs=("*",))
    house.guests.behave(task, answers={"mayfly-arm": never})
    serving = asyncio.create_task(serve(house.tools, asyncio.Event(), limit=1))
    await house.at(task, Stage.PREPARING)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    back = await house.store.tasks.get(task.id)
    assert (back.state, back.attempt, back.runner_id) == (TaskState.QUEUED, 1, None)
    assert await house.left() == []
    house.guests.behave(task)
    await house.store.tasks.admit(now=house.now())
    done = await house.run(task)
    assert (done.state, done.attempt) == (TaskState.FINISHED, 2)


async def test_a_runner_that_is_told_twice_stops_at_once(house: House) -> None:
    task = await house.submit(LONG, outputs=("*",))
    async with runner_process(house, lease_seconds=LEASE_SECONDS) as process:
        await house.printed(task, b"one\n")
        process.send_signal(signal.SIGTERM)

        async def drains() -> bool:
            return any(runner.draining_at for runner in await house.store.runners.alive(now=house.now()))

        await until("it drains", drains)
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait)
    async with another_runner(house) as adopter:
        await ran_once(house, task, adopter)


async def test_a_run_of_its_own_that_is_stopped_at_once_leaves_nothing(house: House) -> None:
    """Nobody else may be there to go on with it: `mayfly run`, and Ctrl-C twice."""
    task = await house.submit("echo ready; hang")
    claimed = await claim(house.tools)
    assert claimed is not None
    working = asyncio.create_task(work_on(claimed, house.tools))
    await house.printed(task, b"ready\n")
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    done = await house.store.tasks.get(task.id)
    assert (done.state, done.reason, done.exit_code) == (TaskState.FAILED, Reason.RUNNER_LOST, 125)
    assert await house.left() == []
