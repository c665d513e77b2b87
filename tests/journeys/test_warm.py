"""Machines that stand ready: taken with a task, once, and replaced; drained, rotated, ended, and never left behind."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from datetime import datetime
from pathlib import Path

import asyncssh
import pytest

from orchestrator.domain.task import Stage, TaskState
from orchestrator.domain.vm import VmState
from orchestrator.localcloud.hypervisors.ssh_guest import SimulatedGuest, never
from orchestrator.reports.text import lines
from orchestrator.runner import warm
from orchestrator.runner.placing import Placing
from orchestrator.runner.warm import Stock
from tests.journeys.house import POOL, House, promote, until
from tests.journeys.ready import change, ready, serving, vm_of, warm_tools


async def test_a_task_takes_a_ready_machine_and_starts_at_once(house: House) -> None:
    """Nobody is asked for anything between the claim and the start, and the report tells where the machine is from."""
    tools = warm_tools(house, 1)
    async with serving(tools):
        [spare] = await ready(house, 1)
        assert house.guests.asked_of(spare.id) == ["arm"]
        task = await house.submit("echo out; echo 1 > out.txt", outputs=("*",))
        done = await house.over(task)
        [another] = await ready(house, 1)
    assert (done.state, done.message) == (TaskState.FINISHED, "exited with 0")
    assert house.log(task, "stdout") == b"out\n"
    assert house.outputs(task) == ["out.txt"]
    vm = await vm_of(house, task)
    assert (vm.id, vm.state, vm.launch) == (spare.id, VmState.DESTROYED, "ok")
    assert another.id != spare.id
    assert house.guests.asked_of(spare.id) == ["arm", "start"]
    assert await house.stages(task) == [Stage.EXECUTING, Stage.STAGING_OUT, Stage.DESTROYING]
    report = await house.report(task)
    [attempt] = report["attempts"]
    assert attempt["machine"]["ready"] is True
    assert attempt["machine"]["kernel"] == "simulated"
    assert attempt["machine"]["launch_seconds"] > 0
    assert attempt["machine"]["seal"] and not any(probe["reached"] for probe in attempt["machine"]["seal"])
    [row] = await house.store.attempts.of_task(task.id)
    assert row.host == vm.host != ""
    assert any(line.startswith("  proof") for line in lines(report))


async def test_inputs_go_into_a_ready_machine(house: House, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_text("numbers")
    async with serving(warm_tools(house, 1)):
        [spare] = await ready(house, 1)
        task = await house.submit("true", inputs=(data,))
        assert (await house.over(task)).state is TaskState.FINISHED
    assert await house.stages(task) == list(Stage)[4:]
    assert house.guests.asked_of(spare.id) == ["arm", "stage-in", "start"]


async def test_many_tasks_through_a_few_ready_machines(house: House) -> None:
    """Each machine is used once, there are never more than the pool may have, and none is left."""
    tools = warm_tools(house, 3, max_vms=6)
    most = 0
    async with serving(tools):
        await ready(house, 3)
        tasks = [await house.submit(f"echo {number}") for number in range(40)]

        async def all_over() -> bool:
            nonlocal most
            most = max(most, len(await house.store.vms.open()), len(await house.cloud.vms()))
            counts = await house.store.tasks.counts()
            return counts == {(POOL.name, TaskState.FINISHED): 40}

        await until("all tasks are over", all_over)
        await ready(house, 3)
    assert 3 <= most <= 6
    vms = [await vm_of(house, task) for task in tasks]
    assert len({vm.id for vm in vms}) == len({vm.host_key for vm in vms}) == 40
    assert any(house.guests.asked_of(vm.id) == ["arm", "start"] for vm in vms)
    for number, task in enumerate(tasks):
        assert house.log(task, "stdout") == b"%d\n" % number
    assert await house.left() == []


async def test_a_change_of_min_ready_is_followed(house: House) -> None:
    """Up, down and to nothing, without a restart; what is not wanted any more is destroyed."""
    tools = warm_tools(house, 0)
    async with serving(tools):
        assert await house.store.vms.spares() == ()
        change(tools, min_ready=3)
        three = await ready(house, 3)
        change(tools, min_ready=1)
        [one] = await ready(house, 1)
        assert one.id in {vm.id for vm in three}
        change(tools, min_ready=0)
        await ready(house, 0)
        assert await house.left() == []
        task = await house.submit("true")
        assert (await house.over(task)).state is TaskState.FINISHED
    assert (await house.stages(task))[0] is Stage.PROVISIONING


async def test_another_size_of_machine_replaces_those_that_stand_ready(house: House) -> None:
    """No task gets one that was made by what the inventory said before."""
    tools = warm_tools(house, 1)
    async with serving(tools):
        [old] = await ready(house, 1)
        assert isinstance(tools.pools, dict)
        tools.pools[POOL.name] = dataclasses.replace(tools.pools[POOL.name], memory_bytes=512 * 2**20)
        task = await house.submit("true")
        await house.over(task)

        async def replaced() -> bool:
            spares = await house.store.vms.spares()
            return [vm.state for vm in spares] == [VmState.READY] and spares[0].id != old.id

        await until("another is ready", replaced)
    assert (await vm_of(house, task)).id != old.id
    assert "start" not in house.guests.asked_of(old.id)


async def test_a_ready_machine_goes_whatever_went_wrong_beside_it(house: House) -> None:
    tools = warm_tools(house, 0)
    placing = Placing(tools)
    stock = Stock(tools, placing, free=lambda: 20, asked=Counter, news=asyncio.Event())

    async def goes_wrong() -> None:
        raise ValueError("nobody foresaw that")

    async with placing.open(), stock.going():
        change(tools, min_ready=1)
        [spare] = await ready(house, 1)
        [held] = stock._spares
        held.around.push_async_callback(goes_wrong)
        change(tools, min_ready=0)
        await ready(house, 0)
    gone = await house.store.vms.get(spare.id)
    assert gone is not None and gone.state is VmState.DESTROYED


async def test_a_pool_that_leaves_the_inventory_keeps_no_machine(house: House) -> None:
    tools = warm_tools(house, 2)
    async with serving(tools):
        await ready(house, 2)
        assert isinstance(tools.pools, dict)
        tools.pools.clear()
        await ready(house, 0)
        assert await house.left() == []


async def test_a_drained_pool_is_emptied_and_filled_again_when_it_is_resumed(house: House) -> None:
    async with serving(warm_tools(house, 2)):
        await ready(house, 2)
        assert await house.store.queues.drain(POOL.name, "maintenance", now=house.now())
        await ready(house, 0)
        task = await house.submit("true")
        assert await house.store.queues.resume(POOL.name, now=house.now())
        assert (await house.over(task)).state is TaskState.FINISHED
        await ready(house, 2)


async def test_rotated_machines_are_replaced_by_the_image_version_of_now(house: House) -> None:
    async with serving(warm_tools(house, 2)):
        old = await ready(house, 2)
        await promote(house.cloud, house.settings.home, version=2)
        await house.store.queues.rotate(POOL.name, now=house.now())

        async def replaced() -> bool:
            rows = [row for row in await house.store.vms.spares() if row.state is VmState.READY]
            return [row.image_version for row in rows] == ["small-2", "small-2"]

        await until("all are of the newer version", replaced)
    for row in old:
        gone = await house.store.vms.get(row.id)
        assert gone is not None and (gone.image_version, gone.state) == ("small-1", VmState.DESTROYED)


async def test_a_machine_that_stood_ready_for_too_long_is_replaced(house: House) -> None:
    async with serving(warm_tools(house, 1, warm={"max_ready_age_seconds": 0.5})):
        [old] = await ready(house, 1)

        async def replaced() -> bool:
            return old.id not in {row.id for row in await house.store.vms.spares()}

        await until("it is gone", replaced)
    events = await house.store.events.list(limit=1000)
    [why] = [event.data["because"] for event in events if event.vm_id == old.id and "DESTROYING" in str(event.data)]
    assert "it has been ready for" in why


async def test_a_ready_machine_that_dies_is_replaced(house: House) -> None:
    async with serving(warm_tools(house, 1)):
        [old] = await ready(house, 1)
        [vm_id] = house.hypervisor.machines()
        await asyncio.to_thread(house.hypervisor.crash, vm_id)

        async def another() -> bool:
            rows = await house.store.vms.spares()
            return [row.state for row in rows] == [VmState.READY] and rows[0].id != old.id

        await until("another stands ready", another)
        task = await house.submit("true")
        assert (await house.over(task)).state is TaskState.FINISHED
    assert (await vm_of(house, task)).id != old.id


async def test_a_ready_machine_that_does_not_answer_any_more_is_replaced(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenNebula says that it runs."""
    monkeypatch.setattr(warm, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr(warm, "BACK_SECONDS", 0.3)
    async with serving(warm_tools(house, 1)):
        [old] = await ready(house, 1)
        [guest] = house.guests.of[old.id]
        guest.freeze(True)

        async def another() -> bool:
            rows = [row for row in await house.store.vms.spares() if row.state is VmState.READY]
            return bool(rows) and rows[0].id != old.id

        await until("another stands ready", another)


async def test_a_ready_machine_whose_connection_drops_is_reached_again(house: House) -> None:
    async with serving(warm_tools(house, 1)):
        [spare] = await ready(house, 1)
        [guest] = house.guests.of[spare.id]
        guest.drop_connections()

        async def armed_again() -> bool:
            return house.guests.asked_of(spare.id)[:2] == ["arm", "arm"]

        await until("it is armed again", armed_again)

        async def taken() -> bool:
            task = await house.submit("echo out")
            assert (await house.over(task)).state is TaskState.FINISHED
            assert house.log(task, "stdout") == b"out\n"
            return (await vm_of(house, task)).id == spare.id

        await until("a task has taken it", taken)


async def why_it_went(house: House, vm_id: str) -> str:
    """Wait until that ready machine is ended; why, as the event log has it."""

    async def ended() -> str:
        events = await house.store.events.list(limit=1000)
        whys = [event.data["because"] for event in events if event.vm_id == vm_id and "DESTROYING" in str(event.data)]
        return str(whys[0]) if whys else ""

    return str(await until(f"{vm_id} is ended", ended))


async def reaches_something(guest: SimulatedGuest, session: asyncssh.SSHServerProcess[bytes]) -> None:
    """As a probe that finds the security group opened."""
    session.stdout.write(b"public 1.1.1.1 TCP 443\t1\tconnected\n")


async def test_a_ready_machine_whose_seal_is_opened_is_ended(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was sealed when it was made ready; no task gets what may reach something by now."""
    monkeypatch.setattr(warm, "CHECK_SECONDS", 0.1)
    house.guests.spares_behave(answers={"mayfly-probe": reaches_something})
    async with serving(warm_tools(house, 1)):
        [spare] = await ready(house, 1)
        why = await why_it_went(house, spare.id)
    assert "the VM could reach public 1.1.1.1 TCP 443" in why


async def test_a_ready_machine_that_was_reached_again_is_given_to_nobody_before_its_seal_was_tried(
    house: House,
) -> None:
    """Its connection may have dropped because its network was changed."""
    house.guests.spares_behave(answers={"mayfly-probe": reaches_something})
    async with serving(warm_tools(house, 1)):
        [spare] = await ready(house, 1)
        [guest] = house.guests.of[spare.id]
        guest.drop_connections()

        async def reached_again() -> bool:
            return house.guests.asked_of(spare.id)[:2] == ["arm", "arm"]

        await until("it is reached again", reached_again)
        task = await house.submit("true")
        why = await why_it_went(house, spare.id)
        assert (await house.over(task)).state is TaskState.FINISHED
    assert "the VM could reach public 1.1.1.1 TCP 443" in why
    assert (await vm_of(house, task)).id != spare.id


async def test_a_task_need_not_wait_for_the_probes_of_a_ready_machine(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "CHECK_SECONDS", 0.1)
    house.guests.spares_behave(answers={"mayfly-probe": never})
    async with serving(warm_tools(house, 1)):
        [spare] = await ready(house, 1)

        async def probed() -> bool:
            return "probe" in house.guests.asked_of(spare.id)

        await until("it is probed", probed)
        task = await house.submit("true")
        assert (await house.over(task)).state is TaskState.FINISHED
    assert (await vm_of(house, task)).id == spare.id
    [attempt] = (await house.report(task))["attempts"]
    assert datetime.fromisoformat(attempt["machine"]["probed_at"]) <= attempt["started_at"]
