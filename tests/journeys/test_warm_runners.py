"""Ready machines when things go wrong: launches that fail, claims that are lost, runners that die or compete."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import asyncssh
import pytest

from orchestrator import bootstrap
from orchestrator.domain.outcome import Reason
from orchestrator.domain.task import Delivery, TaskState
from orchestrator.domain.vm import VmState
from orchestrator.localcloud.hypervisors.ssh_guest import SimulatedGuest
from orchestrator.runner import planning as planning_module
from orchestrator.runner.heartbeats import Heartbeats
from orchestrator.runner.lease import Hold
from orchestrator.runner.loop import registered
from orchestrator.runner.placing import Placing
from orchestrator.runner.planning import Planning
from orchestrator.runner.progress import Progress
from orchestrator.runner.taking import claim_with, run_held
from orchestrator.runner.tools import Tools
from orchestrator.runner.versions import Usable
from orchestrator.runner.warm import Stock
from orchestrator.settings import Settings
from orchestrator.store import Claim, TaskRow, VmMoved, VmRequest
from tests.journeys.house import DEADLINE, POOL, House, make_house, promote, until
from tests.journeys.processes import command_line, killed, runner_process
from tests.journeys.ready import change, ready, serving, vm_of, warm_tools
from tests.journeys.test_adoption import LEASE_SECONDS, LONG, another_runner
from tests.misbehaving_ssh import frame
from tests.postgres import binaries, running_server

Session = asyncssh.SSHServerProcess[bytes]


@asynccontextmanager
async def stocked(house: House, tools: Tools, count: int) -> AsyncIterator[Stock]:
    """So many ready machines, and nobody who claims a task by himself."""
    placing = Placing(tools)
    stock = Stock(tools, placing, free=lambda: 20, asked=Counter, news=asyncio.Event())
    async with placing.open(), stock.going():
        await ready(house, count)
        yield stock


async def taken(stock: Stock, tools: Tools) -> tuple[Claim, Progress, asyncio.Task[object]]:
    """Claim the task that waits with a ready machine; its attempt begins when it is awaited for the first time."""
    with stock.offered(tools.pools) as offer:
        [claimed] = await claim_with(tools, {}, up_to=1, ready=offer)
        assert claimed.vm_id is not None
        spare = stock.take(claimed.vm_id)
    progress = Progress(tools, claimed, Hold(claimed.lease))
    heartbeats = Heartbeats(tools.store, tools.runner_id, tools.lease_seconds)
    return claimed, progress, asyncio.create_task(run_held(progress, tools, heartbeats, spare, alone=False))


async def test_a_cancel_that_comes_with_the_take_starts_nothing(house: House) -> None:
    tools = warm_tools(house, 1)
    async with stocked(house, tools, 1) as stock:
        task = await house.submit("true")
        claimed, progress, attempt = await taken(stock, tools)
        await house.store.tasks.request_cancel(task.id, now=house.now())
        progress.hold.canceled.set()  # as by the next heartbeat
        await attempt
        done = await house.store.tasks.get(task.id)
    assert (done.state, done.reason, done.message) == (TaskState.CANCELED, Reason.CANCELED, "canceled")
    vm = await vm_of(house, task)
    assert (vm.id, vm.state) == (claimed.vm_id, VmState.DESTROYED)
    assert house.guests.asked_of(vm.id) == ["arm"]


async def crash_the_machine(house: House) -> None:
    [vm_id] = house.hypervisor.machines()
    await asyncio.to_thread(house.hypervisor.crash, vm_id)


async def dies_when_it_is_taken(house: House, tools: Tools, task: TaskRow) -> TaskRow:
    async with stocked(house, tools, 1) as stock:
        *_, attempt = await taken(stock, tools)
        await crash_the_machine(house)
        await attempt
        return await house.store.tasks.get(task.id)


async def test_a_machine_that_dies_when_it_is_told_to_start_may_have_run_the_task(house: House) -> None:
    told = threading.Event()

    async def says_nothing_when_it_is_told(guest: SimulatedGuest, session: Session) -> None:
        await session.stdin.readexactly(int((await session.stdin.readline()).split()[2]))
        for kind, payload in ((b"i", guest.facts().encode()), (b"p", b"gateway\t0\tsilence\n"), (b"a", b"armed")):
            session.stdout.write(frame(kind, payload))
        while (await session.stdin.readline()).startswith(b"ping"):
            session.stdout.write(frame(b"a", b"pong"))
        told.set()
        await asyncio.Event().wait()

    house.guests.spares_behave(answers={"mayfly-arm": says_nothing_when_it_is_told})
    tools = warm_tools(house, 1, max_attempts=3)
    task = await house.submit("true", delivery=Delivery.AT_MOST_ONCE)
    async with stocked(house, tools, 1) as stock:
        *_, attempt = await taken(stock, tools)
        assert await asyncio.to_thread(told.wait, DEADLINE)
        await crash_the_machine(house)
        await attempt
    done = await house.store.tasks.get(task.id)
    assert (done.state, done.reason, done.attempt) == (TaskState.FAILED, Reason.CONNECTION_LOST, 1)
    assert "delivered at most once" in done.message


async def test_a_ready_machine_that_died_costs_no_task_its_only_process(house: House) -> None:
    """Nobody knew of it when it was taken, and nothing was begun in it."""
    task = await house.submit("true", delivery=Delivery.AT_MOST_ONCE)
    done = await dies_when_it_is_taken(house, warm_tools(house, 1, max_attempts=3), task)
    assert (done.state, done.reason, done.attempt) == (TaskState.QUEUED, Reason.CONNECTION_LOST, 1)


async def test_a_machine_that_dies_when_it_is_taken_costs_another_task_one_try(house: House) -> None:
    task = await house.submit("true")
    done = await dies_when_it_is_taken(house, warm_tools(house, 1, max_attempts=3), task)
    assert (done.state, done.reason, done.attempt) == (TaskState.QUEUED, Reason.CONNECTION_LOST, 1)
    assert done.avoid


async def test_a_claim_of_which_nobody_knows_what_became(house: House) -> None:
    """The machine that it took is left alone, the other is used."""
    tools = warm_tools(house, 2)
    async with stocked(house, tools, 2) as stock:
        task = await house.submit("true")
        with pytest.raises(ConnectionError), stock.offered(tools.pools) as offer:
            [claimed] = await claim_with(tools, {}, up_to=1, ready=offer)
            raise ConnectionError("the acknowledgement was lost")
        [*_, other] = [vm_id for vm_id in offer[POOL.name] if vm_id != claimed.vm_id]

        async def settled() -> bool:
            with stock.offered(tools.pools) as now:
                return other in now.get(POOL.name, ()) and claimed.vm_id not in now[POOL.name]

        await until("the other is offered again", settled)
        vm = await vm_of(house, task)
        assert (vm.id, vm.state) == (claimed.vm_id, VmState.IN_USE)
        await house.let_lease_expire(task)

        async def reaped() -> bool:
            await house.reap()
            return (await vm_of(house, task)).state is VmState.DESTROYED

        await until("upkeep has ended it", reaped)
    assert house.guests.asked_of(vm.id) == ["arm"]


async def test_launches_that_fail_put_the_image_version_aside_and_the_one_before_is_used(house: House) -> None:
    await promote(house.cloud, house.settings.home, version=2)
    house.hypervisor.fail_next("boot", "no such device: /dev/vda", times=3)
    tools = warm_tools(house, 1, warm={"max_failures": 3})
    async with serving(tools):
        [spare] = await ready(house, 1)
        assert spare.image_version == "small-1"
        change(tools, min_ready=0)
        await ready(house, 0)
        task = await house.submit("true")
        assert (await house.over(task)).state is TaskState.FINISHED
    assert (await vm_of(house, task)).image_version == "small-1"  # a cold one, too
    launches = await house.store.vms.launches(since=house.now() - timedelta(hours=1))
    assert [(each.ok, each.image_version) for each in launches][::-1][:4] == [
        (False, "small-2"),
        (False, "small-2"),
        (False, "small-2"),
        (True, "small-1"),
    ]
    assert all("no such device: /dev/vda" in each.message and each.host for each in launches if not each.ok)


async def test_launches_of_one_pool_that_fail_leave_the_image_version_to_the_others(house: House) -> None:
    await promote(house.cloud, house.settings.home, version=2)
    tools = warm_tools(house, 1)
    other = dataclasses.replace(POOL, name="other")
    assert isinstance(tools.pools, dict)
    tools.pools[other.name] = other
    for _ in range(other.warm.max_failures):
        until_then = house.now() + timedelta(hours=1)
        row = await house.store.vms.request(
            VmRequest(other.name, "small-2", tools.runner_id, until_then), now=house.now()
        )
        assert row is not None
        assert await house.store.vms.record_launch(row.id, ok=False, message="it is open", host="", now=house.now())
        for state in (VmState.DESTROYING, VmState.DESTROYED):
            gone = VmMoved(row.id, state, tools.runner_id, deadline_at=until_then, close_proof="never made")
            assert await house.store.vms.move(gone, now=house.now())
    async with serving(tools):
        [spare] = await ready(house, 1)
        assert spare.image_version == "small-2"
        task = await house.submit("true", pool=other)
        assert (await house.over(task)).state is TaskState.FINISHED
    assert (await vm_of(house, task)).image_version == "small-1"


async def test_a_clock_that_is_put_back_keeps_no_old_image_version(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = warm_tools(house, 1)
    pool = tools.pools[POOL.name]
    planning = Planning(tools, Placing(tools), free=lambda: 1, asked=Counter)
    supply = await planning.read([pool.name])
    before = await planning.version(pool, supply)
    await promote(house.cloud, house.settings.home, version=2)
    house.cloud.forget()
    back = dataclasses.replace(supply, now=supply.now - timedelta(hours=1))
    assert await planning.version(pool, back) == before  # known since a moment ago
    monkeypatch.setattr(planning_module, "VERSION_SECONDS", 0.0)
    found = await planning.version(pool, back)
    assert isinstance(found, Usable) and found.image.template_name == "small-2"


async def test_cold_launches_that_fail_count_as_well(house: House) -> None:
    await promote(house.cloud, house.settings.home, version=2)
    house.hypervisor.fail_next("boot", "no such device: /dev/vda", times=2)
    tools = warm_tools(house, 0, warm={"max_failures": 2}, max_attempts=3)
    async with serving(tools), house.kept_up(max_attempts=3):
        task = await house.submit("true")
        done = await house.over(task)
    assert (done.state, done.attempt) == (TaskState.FINISHED, 3)
    vms = await house.store.vms.of_task(task.id)
    assert [vm.image_version for vm in vms] == ["small-2", "small-2", "small-1"]


async def test_launches_that_fail_for_want_of_a_network_are_nobodys_fault(house: House) -> None:
    """They are tried again with a rest in between, and go well when the inventory is put right."""
    tools = warm_tools(house, 1, network="sealde")
    async with serving(tools):

        async def tried() -> bool:
            return len(await house.store.vms.list()) >= 2

        await until("it was tried again", tried)
        assert isinstance(tools.pools, dict)
        tools.pools[POOL.name] = dataclasses.replace(tools.pools[POOL.name], network="sealed")
        await ready(house, 1)
    launches = await house.store.vms.launches(since=house.now() - timedelta(hours=1))
    assert [each.ok for each in launches] == [True]


async def test_a_machine_that_is_not_sealed_never_stands_ready(house: House) -> None:
    tools = warm_tools(house, 1, network="open")
    async with serving(tools):

        async def failed() -> bool:
            launches = await house.store.vms.launches(since=house.now() - timedelta(hours=1))
            return any("public 1.1.1.1" in each.message for each in launches if not each.ok)

        await until("that is known", failed)
    assert all(vm.state is VmState.DESTROYED for vm in await house.store.vms.list())
    kinds = [event.data.get("state") for event in await house.store.events.list(limit=1000)]
    assert "READY" not in kinds


async def test_two_runners_share_what_a_pool_wants_and_each_uses_its_own(house: House) -> None:
    """However they compete, each machine is used once, by the runner that holds it, and the pool's limit holds."""
    tools = warm_tools(house, 4, max_vms=6)
    most = 0
    async with registered(house.store, [POOL.name], name="second") as second:
        others = dataclasses.replace(tools, runner_id=second)
        async with serving(tools), serving(others):
            rows = await ready(house, 4)
            assert sorted(row.runner_id or "" for row in rows) == sorted([tools.runner_id, second] * 2)
            tasks = [await house.submit(f"echo {number}") for number in range(30)]

            async def all_over() -> bool:
                nonlocal most
                most = max(most, len(await house.store.vms.open()), len(await house.cloud.vms()))
                return await house.store.tasks.counts() == {(POOL.name, TaskState.FINISHED): 30}

            await until("all tasks are over", all_over)
            await ready(house, 4)
    assert most <= 6
    for number, task in enumerate(tasks):
        assert house.log(task, "stdout") == b"%d\n" % number
        [attempt] = await house.store.attempts.of_task(task.id)
        vm = await vm_of(house, task)
        assert attempt.runner_id == vm.runner_id
        assert (house.guests.asked_of(vm.id) or house.guests.asked(task)).count("start") == 1


async def test_a_runner_holds_no_more_ready_machines_than_it_may_have_attempts(house: House) -> None:
    tools = warm_tools(house, 5)
    async with serving(tools, limit=2):
        await ready(house, 2)
        task = await house.submit("echo ready; sleep 1")
        await house.printed(task, b"ready\n")
        await ready(house, 1)
        await house.over(task)
        await ready(house, 2)


async def test_a_runner_that_is_busy_keeps_no_ready_machine_from_a_task_that_another_could_run(house: House) -> None:
    """The pool may have one machine, and that stands ready where no attempt may begin any more."""
    tools = warm_tools(house, 1, max_vms=1)
    other = dataclasses.replace(POOL, name="other")
    assert isinstance(tools.pools, dict)
    tools.pools["other"] = other
    async with registered(house.store, [POOL.name], name="second") as second:
        idle = dataclasses.replace(house.with_pool(max_vms=1), runner_id=second)
        async with serving(tools, limit=1), serving(idle):
            [spare] = await ready(house, 1)
            busy = await house.submit("echo ready; hang", pool=other)
            await house.printed(busy, b"ready\n")
            task = await house.submit("true")
            done = await house.over(task)
            await house.store.tasks.request_cancel(busy.id, now=house.now())
            await house.over(busy)
    assert done.state is TaskState.FINISHED
    vm = await vm_of(house, task)
    assert (vm.runner_id, vm.id != spare.id) == (second, True)


async def test_ready_machines_go_where_tasks_of_another_queue_have_no_room(house: House) -> None:
    """The host holds two machines of this size, and both stand ready for the one pool."""
    [host] = await house.cloud.hosts()
    size = int(host.memory_free_bytes * 0.4) // 2**20 * 2**20
    tools = warm_tools(house, 2, memory_bytes=size)
    other = dataclasses.replace(POOL, name="other", memory_bytes=size)
    assert isinstance(tools.pools, dict)
    tools.pools["other"] = other
    async with serving(tools):
        await ready(house, 2)
        task = await house.submit("true", pool=other)
        assert (await house.over(task)).state is TaskState.FINISHED
        await ready(house, 2)
    vms = [vm for vm in await house.store.vms.list() if vm.pool == POOL.name]
    assert len(vms) >= 3  # one made room, and another came up in its place
    assert all(vm.launch == "ok" and vm.close_proof for vm in vms)


async def test_ready_machines_go_where_tasks_of_a_queue_that_another_runner_serves_have_no_room(house: House) -> None:
    """The host holds two machines of this size, and both stand ready at a runner that does not serve the other pool."""
    [host] = await house.cloud.hosts()
    size = int(host.memory_free_bytes * 0.4) // 2**20 * 2**20
    tools = warm_tools(house, 2, memory_bytes=size)
    other = dataclasses.replace(POOL, name="other", memory_bytes=size)
    async with serving(tools), registered(house.store, [other.name], name="another") as theirs:
        await ready(house, 2, tools.runner_id)
        async with serving(dataclasses.replace(tools, pools={other.name: other}, runner_id=theirs)):
            task = await house.submit("true", pool=other)
            assert (await house.over(task)).state is TaskState.FINISHED
            await ready(house, 2, tools.runner_id)
    vms = [vm for vm in await house.store.vms.list() if vm.pool == POOL.name]
    assert len(vms) >= 3 and all(vm.launch == "ok" and vm.close_proof for vm in vms)


async def test_no_ready_machine_is_launched_into_the_room_of_attempts_that_are_on_their_way(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """The host holds two machines of this size, and OpenNebula has not heard yet of the two that tasks ask for."""
    caplog.set_level("INFO", "orchestrator.runner")
    [host] = await house.cloud.hosts()
    size = int(host.memory_free_bytes * 0.4) // 2**20 * 2**20
    tools = warm_tools(house, 0, memory_bytes=size)
    other = dataclasses.replace(POOL, name="other", memory_bytes=size, max_attempts=3, launch_timeout_seconds=5.0)
    assert isinstance(tools.pools, dict)
    tools.pools["other"] = other
    house.far.faults.hang("one.template.instantiate", 4.0, times=2)
    async with house.kept_up():
        async with serving(tools):
            tasks = [await house.submit("true", pool=other) for _ in range(2)]

            async def both_ask() -> bool:
                return len(await house.store.vms.open()) == 2

            await until("both ask for a machine", both_ask)
            change(tools, min_ready=1)

            async def decided() -> str:
                whys = [record.getMessage() for record in caplog.records if record.name.endswith(("warm", "planning"))]
                return whys[0] if whys else ""

            assert "pool small is short of 1 ready machines: no host has" in await until("it is planned", decided)
            house.far.faults.clear()
            for task in tasks:
                assert (await house.over(task)).state is TaskState.FINISHED
            await ready(house, 1)

        async def nothing_is_left() -> bool:
            return await house.left() == []

        await until("upkeep has closed what was never made", nothing_is_left)


async def test_ready_machines_of_a_runner_that_is_killed_are_ended_by_upkeep(house: House) -> None:
    await house.store.runners.leave(house.tools.runner_id, now=house.now())
    async with runner_process(house, min_ready=2) as process:
        spares = await ready(house, 2)
        await killed(process)
    [runner] = {spare.runner_id for spare in spares}
    assert await house.reap() == []  # it may come back
    await house.store.runners.heartbeat(str(runner), now=house.now() - timedelta(hours=1))

    async def ended() -> bool:
        await house.reap()
        return not await house.left()

    await until("none is left", ended)


async def test_a_process_in_a_machine_that_stood_ready_is_adopted_like_any_other(house: House) -> None:
    await house.store.runners.leave(house.tools.runner_id, now=house.now())
    async with runner_process(house, lease_seconds=LEASE_SECONDS, min_ready=1) as process:
        [spare] = await ready(house, 1)
        task = await house.submit(LONG, outputs=("*",))
        await house.printed(task, b"one\n")
        await killed(process)
    async with another_runner(house) as adopter:
        done = await house.over(task)
    assert (done.state, done.message, done.attempt) == (TaskState.FINISHED, "exited with 0", 1)
    assert house.log(task, "stdout") == b"one\ntwo\n"
    vm = await vm_of(house, task)
    assert (vm.id, vm.state, vm.runner_id) == (spare.id, VmState.DESTROYED, adopter)
    assert house.guests.asked_of(vm.id).count("start") == 1
    [runner_id] = {spare.runner_id}
    await house.store.runners.heartbeat(str(runner_id), now=house.now() - timedelta(hours=1))

    async def ended() -> bool:
        await house.reap()
        return not await house.left()

    await until("what stood ready in its place is gone", ended)


async def test_a_runner_that_is_stopped_leaves_no_ready_machine(house: House) -> None:
    await house.store.runners.leave(house.tools.runner_id, now=house.now())
    async with runner_process(house, min_ready=2) as process:
        await ready(house, 2)
        process.terminate()
        assert await asyncio.to_thread(process.wait) == 0
    assert await house.left() == []


async def test_a_runner_that_is_stopped_while_machines_are_on_their_way_leaves_none(house: House) -> None:
    house.hypervisor.boot_takes = 0.3
    tools = warm_tools(house, 3)
    async with serving(tools):

        async def asked_for() -> bool:
            return len(await house.cloud.vms()) == 3

        await until("OpenNebula makes three", asked_for)
    assert await house.left() == []


async def test_a_change_of_the_inventory_is_followed_without_a_restart(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the runner's own process has it: the file is read again, and its pool has another number the next moment."""
    monkeypatch.setattr(bootstrap, "INVENTORY_SECONDS", 0.1)
    await house.store.runners.leave(house.tools.runner_id, now=house.now())
    settings = Settings.from_environment(dict(command_line(house, min_ready=1).environment))
    async with bootstrap.open_tools(bootstrap.House(settings, house.store, house.artifacts)) as tools, serving(tools):
        [first] = await ready(house, 1)
        command_line(house, min_ready=3)
        assert first.id in {row.id for row in await ready(house, 3)}
        command_line(house, min_ready=0)
        await ready(house, 0)


@pytest.mark.skipif(binaries() is None, reason="no PostgreSQL server is installed")
async def test_ready_machines_are_kept_and_taken_on_postgresql_too(tmp_path: Path) -> None:
    with running_server(tmp_path / "pg") as server:
        async with make_house(tmp_path / "home", server.create("mayfly")) as house:
            tools = warm_tools(house, 2, max_vms=4)
            async with serving(tools):
                spares = {spare.id for spare in await ready(house, 2)}
                tasks = [await house.submit(f"echo {number}") for number in range(2)]
                for task in tasks:
                    assert (await house.over(task)).state is TaskState.FINISHED
                await ready(house, 2)
            assert {(await vm_of(house, task)).id for task in tasks} == spares
