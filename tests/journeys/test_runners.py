"""Runners that die, that stop and come back, that are too many or too few: each task runs once, and nothing is left."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import threading
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator.domain.outcome import Reason, failed
from orchestrator.domain.task import Stage, TaskState
from orchestrator.domain.vm import VmState
from orchestrator.opennebula import VmRequest
from orchestrator.runner.loop import claim, registered, serve, work_on
from orchestrator.store import Finished, TaskRow
from tests.journeys.house import POOL, House, until
from tests.journeys.processes import command_line, killed, runner_process, stopped
from tests.journeys.test_adoption import LEASE_SECONDS, LONG, another_runner, ran_once
from tests.journeys.test_cancel import STUCK


async def test_a_runner_that_is_killed_at_every_stage(house: House, tmp_path: Path) -> None:
    """SIGKILL, while one attempt is at each of the stages. What runs goes on with another runner, what had not begun is
    begun again, and what was found out is said."""
    data = tmp_path / "data"
    data.write_text("numbers")
    tasks: dict[str, TaskRow] = {}
    async with runner_process(house, lease_seconds=LEASE_SECONDS) as process:
        for stage, how in STUCK.items():
            script = {Stage.EXECUTING: "echo ready; sleep 3", Stage.STAGING_OUT: "echo 1 > out.txt; mute"}.get(
                stage, "true"
            )
            task = tasks[stage] = await house.submit(script, inputs=(data,), outputs=("*",) if "mute" in script else ())
            house.guests.behave(task, **({"boots": threading.Event()} if "boots" in how else how))
        for stage in STUCK:
            await house.at(tasks[stage], stage)

        async def booting() -> bool:
            [row] = await house.store.vms.of_task(tasks[Stage.PROVISIONING].id)
            return row.state is VmState.BOOTING

        await until("one boots", booting)
        house.hypervisor.hold("destroy")
        destroying = tasks["destroying"] = await house.submit("exit 7")
        await house.at(destroying, Stage.DESTROYING)
        house.far.faults.delay("one.template.instantiate", 120)
        tasks["instantiating"] = await house.submit("true")

        async def made() -> bool:
            vms = [vm for vm in await house.cloud.vms() if vm.tags["MAYFLY_TASK"] == tasks["instantiating"].id]
            return bool(vms)

        await until("OpenNebula has made one, and not answered", made)
        await killed(process)

    assert len(await house.store.vms.open()) == len(tasks)
    house.hypervisor.let_go("destroy")
    house.guests.let_go()
    for task in tasks.values():
        house.guests.behave(task)
    [mute] = house.guests.of[tasks[Stage.STAGING_OUT].id]
    assert mute._scenario
    mute._scenario.mute = False
    async with another_runner(house, max_attempts=3), house.kept_up(LEASE_SECONDS, max_attempts=3):
        for name, task in tasks.items():
            done = await house.over(task)
            once = name in (Stage.EXECUTING, Stage.STAGING_OUT, "destroying")
            assert done.attempt == (1 if once else 2), name
            assert (done.state, done.exit_code) == (
                (TaskState.FAILED, 7) if name == "destroying" else (TaskState.FINISHED, 0)
            ), name
            assert house.guests.asked(task).count("start") == 1, name

        async def empty() -> bool:
            return not await house.left()

        await until("nothing is left", empty)
    for task in tasks.values():
        assert all(row.close_proof for row in await house.store.vms.of_task(task.id))
        assert all(attempt.finished_at for attempt in await house.store.attempts.of_task(task.id))
    assert house.log(tasks[Stage.EXECUTING], "stdout") == b"ready\n"


async def test_a_runner_that_is_killed_before_opennebula_has_made_a_machine(house: House) -> None:
    async with runner_process(house, lease_seconds=LEASE_SECONDS) as process:
        house.far.faults.hang("one.template.instantiate", 120)
        task = await house.submit("true")

        async def asked() -> bool:
            return bool(await house.store.vms.of_task(task.id)) and not house.far.faults._faults

        await until("the row is written, and OpenNebula makes nothing", asked)
        await killed(process)
    async with another_runner(house, max_attempts=3), house.kept_up(LEASE_SECONDS, max_attempts=3):
        done = await house.over(task)
        assert (done.state, done.attempt) == (TaskState.FINISHED, 2)

        async def empty() -> bool:
            return not await house.left()

        await until("the row of the machine that never was is closed", empty)
    [never, made] = await house.store.vms.of_task(task.id)
    assert never.cloud_id is None and "OpenNebula never made it" in str(never.close_proof)
    assert made.cloud_id is not None


async def test_a_runner_that_stood_still_changes_nothing_when_it_comes_back(house: House) -> None:
    """Upkeep has ended its attempt, as somebody had ended its machine."""
    task = await house.submit("echo ready; hang")
    async with runner_process(house, lease_seconds=LEASE_SECONDS) as process:
        await house.printed(task, b"ready\n")
        await until("it stands still between two writes", lambda: stopped(house, process))
        [vm] = await house.store.vms.open()
        assert vm.cloud_id is not None
        await house.cloud.terminate(vm.cloud_id, within=10)
        async with house.kept_up(LEASE_SECONDS):
            ended = await house.over(task)
        assert (ended.state, ended.reason) == (TaskState.FAILED, Reason.RUNNER_LOST)
        events = await house.store.events.list(task_id=task.id)
        process.send_signal(signal.SIGCONT)
        next_one = await house.submit("echo next")
        assert (await house.over(next_one)).state is TaskState.FINISHED
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait) == 0
    assert await house.store.tasks.get(task.id) == ended
    assert await house.store.events.list(task_id=task.id) == events


async def test_a_runner_that_stood_still_with_a_create_under_way(house: House) -> None:
    """Its row is closed, and the task is another runner's, when it comes back and asks OpenNebula: the machine that it
    gets then is ended, and no process runs in it."""
    async with runner_process(house, lease_seconds=LEASE_SECONDS) as process:
        house.far.faults.delay("one.template.instantiate", 4)
        first = await house.submit("true")

        async def under_way() -> bool:
            return not house.far.faults._faults

        await until("one is made, and the runner hears nothing yet", under_way)
        second = await house.submit("echo once")

        async def waits() -> bool:
            return bool(await house.store.vms.of_task(second.id))

        await until("the row of the next is written", waits)
        await until("it stands still between two writes", lambda: stopped(house, process))
        async with another_runner(house, max_attempts=3), house.kept_up(LEASE_SECONDS, max_attempts=3):
            for task in (first, second):
                done = await house.over(task)
                assert (done.state, done.attempt) == (TaskState.FINISHED, 2)

            async def closed() -> bool:
                return not await house.store.vms.open()

            await until("all rows are closed", closed)
            events = [await house.store.events.list(task_id=task.id) for task in (first, second)]
            process.send_signal(signal.SIGCONT)
            third = await house.submit("true")
            await house.over(third)

            async def empty() -> bool:
                return not await house.left()

            await until("nothing is left", empty)
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait) == 0
        assert await house.left() == []
    assert [await house.store.events.list(task_id=task.id) for task in (first, second)] == events
    assert house.guests.asked(second).count("start") == 1


async def test_a_lease_that_is_lost_ends_the_work_at_once(house: House) -> None:
    """Somebody else has given the verdict: ours is not written, and our machine goes."""
    task = await house.submit("echo ready; hang")
    claimed = await claim(house.tools)
    assert claimed is not None
    working = asyncio.create_task(work_on(claimed, house.tools))
    await house.printed(task, b"ready\n")
    verdict = failed(Reason.RUNNER_LOST, "its lease ran out")
    assert await house.store.tasks.finish(Finished.by(claimed.lease, verdict), now=house.now())
    assert await working is None
    done = await house.store.tasks.get(task.id)
    assert (done.reason, done.message) == (Reason.RUNNER_LOST, "its lease ran out")
    assert await house.stages(task) == list(Stage)[:6]


async def test_an_orphan_is_ended_at_its_second_sighting_and_others_machines_never(house: House) -> None:
    template = (await house.cloud.promoted("small")).template_id
    ids = {}
    for installation in (house.store.installation_id, "another"):
        tags = {"MAYFLY_INSTALLATION": installation, "MAYFLY_VM": "gone", "MAYFLY_TASK": "t", "MAYFLY_ATTEMPT": "1"}
        request = VmRequest("x", 1, 256 * 2**20, "sealed", {"SET_HOSTNAME": "mayfly-t-1", "NETWORK": "YES"}, tags)
        ids[installation] = await house.cloud.instantiate(template, request)
    ours, theirs = ids.values()
    assert await house.reap(rounds=1) == []
    assert {vm.id for vm in await house.cloud.vms()} == {ours, theirs}

    async def ended() -> bool:
        await house.reap()
        return ours not in {vm.id for vm in await house.cloud.vms()}

    await until("ours is gone", ended)
    assert [vm.id for vm in await house.cloud.vms()] == [theirs]
    await house.cloud.terminate(theirs, within=10)


async def test_many_tasks_two_runners_and_room_for_a_few(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each runs once, and there are never more machines than the pool may have."""
    monkeypatch.setattr("orchestrator.runner.heartbeats.LOOK_SECONDS", 1.0)
    tools = house.with_pool(max_vms=6)
    tasks = [await house.submit(f"echo {number}") for number in range(40)]
    stop, most = asyncio.Event(), 0

    async def all_over() -> bool:
        nonlocal most
        most = max(most, len(await house.store.vms.open()), len(await house.cloud.vms()))
        await asyncio.sleep(0.05)
        counts = await house.store.tasks.counts()
        return counts == {(POOL.name, TaskState.FINISHED): 40}

    async with registered(house.store, [POOL.name], name="second") as second:
        others = dataclasses.replace(tools, runner_id=second)
        serving = [asyncio.create_task(serve(each, stop, limit=10)) for each in (tools, others)]
        await until("all tasks are over", all_over)
        stop.set()
        await asyncio.gather(*serving)
    assert 1 < most <= 6
    for number, task in enumerate(tasks):
        assert house.guests.asked(task).count("start") == 1
        assert house.log(task, "stdout") == b"%d\n" % number
    attempts = [(await house.store.attempts.of_task(task.id)) for task in tasks]
    assert all(len(each) == 1 for each in attempts)
    assert len(Counter(each[0].runner_id for each in attempts)) == 2


async def test_a_pool_with_room_for_one_runs_one_after_the_other(house: House) -> None:
    tools = house.with_pool(max_vms=1)
    first, second = await house.submit("echo ready; hang"), await house.submit("true")
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(tools, stop, limit=5))
    await house.printed(first, b"ready\n")
    assert await claim(tools) is None
    assert (await house.store.tasks.get(second.id)).state is TaskState.QUEUED
    await house.store.tasks.request_cancel(first.id, now=house.now())

    async def ran() -> bool:
        return (await house.store.tasks.get(second.id)).state is TaskState.FINISHED

    await until("the second runs", ran)
    stop.set()
    await serving


async def test_a_run_steps_in_when_the_runner_it_counts_on_is_gone(house: House) -> None:
    """A runner that was killed looks alive until its heartbeat is too old; nobody waits for it after that."""
    await house.store.runners.leave(house.tools.runner_id, now=house.now())
    dead = await house.store.runners.register(
        name="dead", host="h", pid=1, pools=[POOL.name], now=house.now() + timedelta(hours=1)
    )
    process = command_line(house).start("run", "-p", POOL.name, "--", "sh", "-c", "echo out; exit 7")

    async def waits() -> bool:
        return bool(await house.store.tasks.list())

    await until("the task is queued", waits)
    [task] = await house.store.tasks.list()
    assert task.state is TaskState.QUEUED
    await house.store.runners.heartbeat(dead.id, now=house.now() - timedelta(hours=1))
    stdout, stderr = await asyncio.to_thread(process.communicate, timeout=30)
    assert (process.returncode, stdout) == (7, "out\n"), stderr


async def test_a_run_that_is_killed_is_gone_on_with_by_a_runner(house: House) -> None:
    await house.store.runners.leave(house.tools.runner_id, now=house.now())
    mayfly = command_line(house, lease_seconds=LEASE_SECONDS)
    process = mayfly.start("run", "-p", POOL.name, "-o", "out.txt", "--", "sh", "-c", LONG)
    assert process.stdout is not None
    assert await asyncio.to_thread(process.stdout.readline) == "one\n"
    await killed(process)
    await asyncio.to_thread(process.communicate)
    [task] = await house.store.tasks.list()
    assert len(await house.left()) == 3  # a row, its VM, its machine
    async with another_runner(house) as adopter:
        await ran_once(house, task, adopter)


async def test_a_run_of_its_own_waits_no_longer_than_its_queue_allows(house: House) -> None:
    """Without a scheduler, which ends what waited until its deadline."""
    await house.store.runners.leave(house.tools.runner_id, now=house.now())
    assert await house.store.queues.pause(POOL.name, "maintenance", now=house.now())
    process = command_line(house, max_queue_time=1).start("run", "-p", POOL.name, "--", "true")
    _, stderr = await asyncio.to_thread(process.communicate, timeout=60)
    assert process.returncode == 125, stderr
    [task] = await house.store.tasks.list()
    assert (task.state, task.reason) == (TaskState.FAILED, Reason.DEADLINE_PASSED)
    assert "maintenance" in task.message


async def test_a_runner_that_was_killed_is_followed_by_one_of_its_name_at_once(house: House) -> None:
    async with runner_process(house, "--name", "steady") as process:
        await killed(process)
    async with runner_process(house, "--name", "steady") as process:
        assert process.poll() is None
    [steady] = [row for row in await house.store.runners.alive(now=house.now()) if row.name == "steady"]
    assert steady.pid == process.pid
