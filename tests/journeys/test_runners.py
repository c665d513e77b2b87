"""Runners that die, that stop and come back, that are too many or too few: each task runs once, and nothing is left."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import sqlite3
import subprocess
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.domain.outcome import Reason, failed
from orchestrator.domain.task import Stage, TaskState
from orchestrator.domain.vm import VmState
from orchestrator.opennebula import VmRequest
from orchestrator.runner.loop import claim, registered, serve, work_on
from orchestrator.store import Finished, TaskRow
from tests.driver import Mayfly
from tests.journeys.house import POOL, House, make_house, until
from tests.journeys.test_cancel import STUCK

INVENTORY = f"""
pools:
  hosts:
    {POOL.name}:
      mayfly_image: {POOL.image}
      mayfly_memory: 256M
      mayfly_max_vms: {POOL.max_vms}
      mayfly_launch_timeout: 5
      ansible_port: {POOL.ssh_port}
"""


def command_line(house: House) -> Mayfly:
    """The command line on this house, with its pools and its cloud."""
    inventory = house.settings.home / "pools.yml"
    inventory.write_text(INVENTORY)
    return Mayfly(
        {
            "MAYFLY_HOME": str(house.settings.home),
            "MAYFLY_INVENTORY": str(inventory),
            "ONE_XMLRPC": house.far.url,
            "ONE_AUTH": str(house.far.auth_path),
        }
    )


@asynccontextmanager
async def runner_process(house: House) -> AsyncIterator[subprocess.Popen[str]]:
    """`mayfly runner` in a process of its own, registered; killed at the end if it still runs."""
    process = command_line(house).start("runner", "--limit", "20")
    try:

        async def there() -> bool:
            assert process.poll() is None, process.stderr and process.stderr.read()
            return any(runner.pid == process.pid for runner in await house.store.runners.alive(now=datetime.now(UTC)))

        await until("the runner is there", there)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


async def stopped(house: House, process: subprocess.Popen[str]) -> bool:
    """Stop the process; not in the middle of a write, for then nobody else could write to SQLite's file."""
    process.send_signal(signal.SIGSTOP)
    try:
        with closing(sqlite3.connect(house.settings.home / "mayfly.db", timeout=0.1, isolation_level=None)) as probe:
            probe.execute("BEGIN IMMEDIATE")
            probe.execute("ROLLBACK")
    except sqlite3.OperationalError:
        process.send_signal(signal.SIGCONT)
        return False
    return True


async def upkeep(house: House) -> None:
    """Upkeep, until nothing is left."""

    async def empty() -> bool:
        await house.reap()
        return not await house.left()

    await until("upkeep has closed all", empty)


async def test_a_runner_that_is_killed_at_every_stage(house: House, tmp_path: Path) -> None:
    """SIGKILL, while one attempt is at each of the stages."""
    data = tmp_path / "data"
    data.write_text("numbers")
    tasks: dict[str, TaskRow] = {}
    async with runner_process(house) as process:
        house.far.faults.delay("one.vnpool.info", 120)
        tasks["before instantiate"] = await house.submit("true")
        await house.at(tasks["before instantiate"], Stage.PROVISIONING)

        async def asked() -> bool:
            return not house.far.faults._faults

        await until("the row is written and OpenNebula not asked", asked)
        for stage, how in STUCK.items():
            script = {Stage.EXECUTING: "echo ready; hang", Stage.STAGING_OUT: "mute"}.get(stage, "true")
            task = tasks[stage] = await house.submit(script, inputs=(data,), outputs=("*",))
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
        process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(process.wait)

    house.hypervisor.let_go("destroy")
    house.guests.let_go()
    assert len(await house.store.vms.open()) == len(tasks)
    await house.reap()
    for task in tasks.values():
        assert (await house.store.tasks.get(task.id)).state is TaskState.RUNNING, "its lease holds"
        await house.let_lease_expire(task)
    await upkeep(house)
    for name, task in tasks.items():
        done = await house.store.tasks.get(task.id)
        assert (done.state, done.reason, done.exit_code) == (TaskState.FAILED, Reason.RUNNER_LOST, 125), name
        [row] = await house.store.vms.of_task(task.id)
        assert row.close_proof, name
        [attempt] = await house.store.attempts.of_task(task.id)
        assert attempt.finished_at is not None, name
    assert house.log(tasks[Stage.EXECUTING], "stdout") == b"ready\n"


async def test_a_runner_that_stood_still_changes_nothing_when_it_comes_back(house: House) -> None:
    task = await house.submit("echo ready; hang")
    async with runner_process(house) as process:
        await house.printed(task, b"ready\n")
        await until("it stands still between two writes", lambda: stopped(house, process))
        await house.let_lease_expire(task)
        await upkeep(house)
        ended = await house.store.tasks.get(task.id)
        assert (ended.state, ended.reason) == (TaskState.FAILED, Reason.RUNNER_LOST)
        events = await house.store.events.list(task_id=task.id)
        process.send_signal(signal.SIGCONT)
        next_one = await house.submit("echo next")

        async def ran() -> bool:
            return (await house.store.tasks.get(next_one.id)).state is TaskState.FINISHED

        await until("the runner goes on", ran)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait) == 0
    assert await house.store.tasks.get(task.id) == ended
    assert await house.store.events.list(task_id=task.id) == events


async def test_a_lease_that_is_lost_ends_the_work_at_once(house: House) -> None:
    """Somebody else has given the verdict: ours is not written, and our machine goes."""
    task = await house.submit("echo ready; hang")
    claimed = await claim(house.tools)
    assert claimed is not None
    working = asyncio.create_task(work_on(claimed, house.tools))
    await house.printed(task, b"ready\n")
    verdict = failed(Reason.RUNNER_LOST, "its lease ran out")
    assert await house.store.tasks.finish(Finished.by(claimed.lease, verdict), now=datetime.now(UTC))
    assert await working is None
    done = await house.store.tasks.get(task.id)
    assert (done.reason, done.message) == (Reason.RUNNER_LOST, "its lease ran out")
    assert await house.stages(task) == list(Stage)[:6]


async def test_a_runner_that_is_stopped_at_once_says_so_and_cleans_up(house: House) -> None:
    task = await house.submit("echo ready; hang")
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(house.tools, stop, limit=1))
    await house.printed(task, b"ready\n")
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    done = await house.store.tasks.get(task.id)
    assert (done.state, done.reason, done.exit_code) == (TaskState.FAILED, Reason.RUNNER_LOST, 125)
    assert await house.left() == []


async def test_a_runner_that_is_asked_to_stop_ends_what_it_began_and_begins_nothing(house: House) -> None:
    running = await house.submit("echo ready; sleep 0.3")
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(house.tools, stop, limit=1))
    await house.printed(running, b"ready\n")
    waiting = await house.submit("true")
    stop.set()
    await serving
    assert (await house.store.tasks.get(running.id)).state is TaskState.FINISHED
    assert (await house.store.tasks.get(waiting.id)).state is TaskState.QUEUED


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
    monkeypatch.setattr("orchestrator.runner.lease.HEARTBEAT_SECONDS", 1.0)
    tools = house.with_pool(max_vms=6)
    tasks = [await house.submit(f"echo {number}") for number in range(40)]
    stop, most = asyncio.Event(), 0

    async def all_over() -> bool:
        nonlocal most
        most = max(most, len(await house.store.vms.open()), len(await house.cloud.vms()))
        await asyncio.sleep(0.05)
        counts = await house.store.tasks.counts()
        return counts == {(POOL.name, TaskState.FINISHED): 40}

    async with registered(house.store, [POOL.name]) as second:
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
    await house.store.tasks.request_cancel(first.id, now=datetime.now(UTC))

    async def ran() -> bool:
        return (await house.store.tasks.get(second.id)).state is TaskState.FINISHED

    await until("the second runs", ran)
    stop.set()
    await serving


async def test_a_database_that_is_busy_for_a_while(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else writes for longer than anybody waits: the runner goes on, and so does the process."""
    monkeypatch.setattr("orchestrator.store.engine.BUSY_TIMEOUT_MS", 200)
    monkeypatch.setattr("orchestrator.runner.progress.FINISH_AGAIN_SECONDS", 0.05)
    async with make_house(house.settings.home / "other") as other:
        await _busy_for_a_while(other)


async def _busy_for_a_while(house: House) -> None:
    running = await house.submit("echo ready; sleep 600")
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(house.tools, stop, limit=3))
    await house.printed(running, b"ready\n")
    await house.at(running, Stage.EXECUTING)
    file = house.settings.home / "mayfly.db"
    with closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as hog:
        await asyncio.to_thread(hog.execute, "BEGIN IMMEDIATE")  # it may have to wait for a writer of this loop
        await asyncio.sleep(0.7)
        assert not serving.done()
        hog.execute("ROLLBACK")
    after = await house.submit("true")
    await house.store.tasks.request_cancel(running.id, now=datetime.now(UTC))  # which heartbeats must still hear

    async def over() -> bool:
        return all([(await house.store.tasks.get(task.id)).state.over for task in (running, after)])

    await until("both are over", over)
    stop.set()
    await serving
    assert (await house.store.tasks.get(running.id)).state is TaskState.CANCELED
    assert (await house.store.tasks.get(after.id)).state is TaskState.FINISHED
    await upkeep(house)  # what the database would not take


async def test_a_run_steps_in_when_the_runner_it_counts_on_is_gone(house: House) -> None:
    """A runner that was killed looks alive until its heartbeat is too old; nobody waits for it after that."""
    await house.store.runners.leave(house.tools.runner_id, now=datetime.now(UTC))
    dead = await house.store.runners.register(
        host="h", pid=1, pools=[POOL.name], now=datetime.now(UTC) + timedelta(hours=1)
    )
    process = command_line(house).start("run", "-p", POOL.name, "--", "sh", "-c", "echo out; exit 7")

    async def waits() -> bool:
        return bool(await house.store.tasks.list())

    await until("the task is queued", waits)
    [task] = await house.store.tasks.list()
    assert task.state is TaskState.QUEUED
    await house.store.runners.heartbeat(dead.id, now=datetime.now(UTC) - timedelta(hours=1))
    stdout, stderr = await asyncio.to_thread(process.communicate, timeout=30)
    assert (process.returncode, stdout) == (7, "out\n"), stderr


async def test_a_run_that_is_killed_is_cleaned_up_by_upkeep(house: House) -> None:
    await house.store.runners.leave(house.tools.runner_id, now=datetime.now(UTC))
    mayfly = command_line(house)
    process = mayfly.start("run", "-p", POOL.name, "--", "sh", "-c", "echo ready; hang")
    assert process.stdout is not None
    assert await asyncio.to_thread(process.stdout.readline) == "ready\n"
    process.kill()
    await asyncio.to_thread(process.communicate)
    [task] = await house.store.tasks.list()
    assert len(await house.left()) == 3  # a row, its VM, its machine
    await house.let_lease_expire(task)
    chore = await asyncio.to_thread(mayfly, "chore", "reap")
    assert chore.exit_code == 0, chore.stderr
    assert f"task {task.id} failed" in chore.stdout
    await upkeep(house)
    assert (await house.store.tasks.get(task.id)).reason is Reason.RUNNER_LOST
