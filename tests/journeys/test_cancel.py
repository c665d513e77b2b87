"""A cancel, wherever the task is: it ends there, its machine goes first, and asking again changes nothing."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.outcome import Reason
from orchestrator.domain.task import Stage, TaskState
from orchestrator.localcloud.hypervisors.ssh_guest import never
from orchestrator.runner.loop import serve
from orchestrator.store import TaskRow
from tests.journeys.house import House

STUCK: dict[Stage, dict[str, Any]] = {
    Stage.PROVISIONING: {"boots": None},
    Stage.CONNECTING: {"listens": False},
    Stage.PREPARING: {"answers": {"mayfly-arm": never}},
    Stage.STAGING_IN: {"answers": {"mayfly-stage-in": never}},
    Stage.EXECUTING: {},
    Stage.STAGING_OUT: {},
}
"""What keeps a task at a stage."""


async def cancel(house: House, task: TaskRow) -> TaskRow:
    return await house.store.tasks.request_cancel(task.id, now=datetime.now(UTC))


async def ends_canceled(house: House, task: TaskRow, done: TaskRow) -> None:
    """It is CANCELED, once only, and its machine was gone before."""
    assert (done.state, done.reason, done.exit_code) == (TaskState.CANCELED, Reason.CANCELED, 130)
    kinds = [
        f"{event.kind} {event.data.get('state', '')}".strip()
        for event in await house.store.events.list(task_id=task.id)
    ]
    assert kinds[-2:] == ["vm.moved DESTROYED", "task.canceled"]
    assert kinds.count("task.cancel_requested") == 1
    again = await cancel(house, task)
    assert again == done
    assert await house.left() == []


async def test_a_task_that_waits_is_canceled_at_once(house: House) -> None:
    task = await house.submit("true")
    first, second = await cancel(house, task), await cancel(house, task)
    assert (first.state, first.exit_code) == (TaskState.CANCELED, 130)
    assert first == second
    assert await house.store.attempts.of_task(task.id) == ()


@pytest.mark.parametrize("stage", list(STUCK))
async def test_a_task_at_a_stage(house: House, stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.runner.work.CANCELED_OUTPUTS_SECONDS", 0.2)
    data = tmp_path / "data"
    data.write_text("numbers")
    script = "mute; true" if stage is Stage.STAGING_OUT else "echo ready; echo part > part.txt; sleep 600"
    task = await house.submit(script, inputs=(data,), outputs=("*",))
    how = dict(STUCK[stage])
    if "boots" in how:
        how["boots"] = threading.Event()
    house.guests.behave(task, **how)
    async with house.running(task) as run:
        await house.at(task, stage)
        if stage is Stage.EXECUTING:
            await house.printed(task, b"ready\n")
        await cancel(house, task)
        await cancel(house, task)
        if stage is Stage.PROVISIONING:
            await house.at(task, Stage.DESTROYING)
            house.guests.let_go()  # OpenNebula ends no machine that boots
        done = await run
    await ends_canceled(house, task, done)
    went_through = await house.stages(task)
    assert went_through[-1] is Stage.DESTROYING
    match stage:
        case Stage.EXECUTING:
            assert done.message == "canceled, and its process ended by SIGTERM"
            assert house.outputs(task) == ["part.txt"]
            assert Stage.STAGING_OUT in went_through
        case Stage.STAGING_OUT:
            assert done.message == "canceled, and its process exited with 0"
            assert await house.notes(task) == ["not all of the outputs were taken: not within 0.2 s of the cancel"]
        case _:
            assert done.message == "canceled"
            assert went_through[-2] is stage
            assert "start" not in house.guests.asked(task)


async def test_a_process_that_resists_is_killed_and_its_partial_outputs_are_kept(house: House) -> None:
    task = await house.submit("echo ready; echo part > part.txt; hang", outputs=("*", "never.csv"))
    async with house.running(task) as run:
        await house.printed(task, b"ready\n")
        await cancel(house, task)
        done = await run
    await ends_canceled(house, task, done)
    assert done.message == "canceled, and its process ended by SIGKILL"
    assert house.outputs(task) == ["part.txt"]


async def test_a_cancel_while_the_machine_goes_comes_too_late(house: House) -> None:
    """The process has ended by itself: that is what is told."""
    task = await house.submit("exit 7")
    house.hypervisor.hold("destroy")
    async with house.running(task) as run:
        await house.at(task, Stage.DESTROYING)
        await cancel(house, task)
        house.hypervisor.let_go("destroy")
        done = await run
    assert (done.state, done.reason, done.exit_code) == (TaskState.FAILED, Reason.EXIT_NONZERO, 7)


async def test_whoever_will_not_wait_for_a_cancel_has_canceled_all_the_same(house: House) -> None:
    """Ctrl-C twice: the runner is stopped while it waits for the process to end."""
    task = await house.submit("echo ready; hang")
    serving = asyncio.create_task(serve(house.tools, asyncio.Event(), limit=1))
    await house.printed(task, b"ready\n")
    await cancel(house, task)
    async with asyncio.timeout(20):
        while "stop" not in house.guests.asked(task):
            await asyncio.sleep(0.01)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    done = await house.store.tasks.get(task.id)
    assert (done.state, done.reason, done.exit_code) == (TaskState.CANCELED, Reason.CANCELED, 130)
    assert await house.left() == []
