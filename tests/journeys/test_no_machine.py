"""A machine that OpenNebula will not make, or not boot: a verdict that says why, and nothing left."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from orchestrator.domain.outcome import Reason
from orchestrator.domain.proof import CloseProof
from orchestrator.domain.task import Stage, TaskState
from orchestrator.domain.vm import VmState
from orchestrator.runner.loop import claim, work_on
from orchestrator.store import TaskRow
from tests.journeys.house import House, until


async def refused(house: House, *words: str, reason: Reason = Reason.PROVISION_FAILED, **pool: Any) -> TaskRow:
    """Run a task that fails before its machine is reached, all `words` in its message."""
    task = await house.submit("echo never")
    done = await house.run(task, house.with_pool(**pool))
    assert (done.state, done.reason, done.exit_code) == (TaskState.FAILED, reason, 125)
    for word in words:
        assert word in done.message
    assert house.guests.asked(task) == []
    assert await house.left() == []
    return done


async def test_a_refused_instantiate(house: House) -> None:
    text = "Error getting virtual machine template [0]."
    house.far.faults.fail("one.template.instantiate", 1024, text)
    task = await refused(house, text)
    [vm] = await house.store.vms.of_task(task.id)
    assert (vm.state, vm.cloud_id) == (VmState.DESTROYED, None)
    assert text in str(vm.close_proof)
    assert await house.stages(task) == [Stage.PROVISIONING]


async def test_a_network_that_is_not_there(house: House) -> None:
    await refused(house, "sealde", "sealed", network="sealde")


async def test_an_image_without_a_promoted_version(house: House) -> None:
    await refused(house, "smal", "small", "mayfly image build smal", image="smal")


async def test_a_vm_that_is_made_and_then_cannot_be_placed(house: House) -> None:
    house.far.faults.fail("one.vm.deploy", 8192, "no driver")
    house.far.faults.fail("one.vm.action", 512, "not yours to release")
    task = await refused(house, "not yours to release")
    [vm] = await house.store.vms.of_task(task.id)
    assert vm.cloud_id is not None
    proof = CloseProof.decode(str(vm.close_proof))
    assert (proof.cloud_id, proof.state) == (vm.cloud_id, "DONE") and proof.ended_at is not None


async def test_a_lost_reply_adopts_the_machine_that_was_made(house: House) -> None:
    house.far.faults.lose_reply("one.template.instantiate")
    task = await house.submit("true")
    assert (await house.run(task)).state is TaskState.FINISHED
    assert [vm.id for vm in await house.cloud.vms(done=True)] == [
        vm.cloud_id for vm in await house.store.vms.of_task(task.id)
    ]


async def test_a_request_that_is_repeated_on_the_way_leaves_one_orphan_which_upkeep_ends(house: House) -> None:
    house.far.faults.execute_twice("one.template.instantiate")
    task = await house.submit("true")
    assert (await house.run(task)).state is TaskState.FINISHED
    [orphan] = await house.cloud.vms()
    assert await house.reap(rounds=1) == []
    [line] = await house.reap()
    assert f"VM {orphan.id} is destroyed" in line


async def test_a_lost_reply_that_no_vm_is_found_for(house: House) -> None:
    """OpenNebula does not answer any more, so nobody can say; the row stays open until somebody can."""
    cloud = house.cloud
    cloud.patience = cloud.client._patience = 0.2
    task = await house.submit("true")
    tools = house.with_pool(launch_timeout_seconds=0.2)
    claimed = await claim(tools)
    assert claimed is not None
    house.far.faults.lose_reply("one.template.instantiate")
    house.far.faults.drop_connection("one.vmpool.infoextended", times=1000)
    assert await work_on(claimed, tools) is None
    done = await house.store.tasks.get(task.id)
    assert (done.state, done.reason) == (TaskState.QUEUED, Reason.RETRY)
    [row] = await house.store.vms.open()
    assert (row.state, row.cloud_id) == (VmState.REQUESTED, None)
    house.far.faults.clear()
    [vm] = await cloud.vms()
    lines = await house.reap()
    assert f"vm {row.id} is OpenNebula's {vm.id}" in lines
    assert any(line.startswith(f"vm {row.id} is closed: OpenNebula says DONE of VM {vm.id} since 20") for line in lines)


@pytest.mark.parametrize("step", ["prolog", "boot"])
async def test_a_machine_that_does_not_start(house: House, step: str) -> None:
    house.hypervisor.fail_next(step, "no such device: /dev/vda")
    task = await refused(house, f"{step.upper()}_FAILURE", "no such device: /dev/vda")
    assert await house.stages(task) == [Stage.PROVISIONING, Stage.DESTROYING]


async def test_a_scheduler_that_stands_still(house: House) -> None:
    house.far.faults.fail("one.hostpool.info", 512, "not yours to see")
    await refused_to_an_ordinary_user(house)


async def refused_to_an_ordinary_user(house: House) -> None:
    """An account that may not place its VMs itself needs OpenNebula's scheduler."""
    house.far.faults.clear()
    house.far.faults.fail("one.vm.deploy", 512, "Not authorized to perform ADMIN VM", times=1)
    house.far.faults.stall_scheduler()
    await refused(house, "PENDING", launch_timeout_seconds=0.5)


async def test_a_boot_that_takes_too_long(house: House) -> None:
    """terminate-hard is refused while a VM boots; it is asked again until OpenNebula says DONE."""
    house.hypervisor.hold("boot")
    task = await house.submit("true")
    async with house.running(task, house.with_pool(launch_timeout_seconds=0.5)) as run:
        await house.at(task, Stage.DESTROYING)
        [vm] = await house.store.vms.open()
        assert (await house.cloud.vm(vm.cloud_id or 0)).state_name == "BOOT"
        house.hypervisor.let_go("boot")
        done = await run
    assert done.reason is Reason.PROVISION_FAILED
    assert "not RUNNING after 0.5 s" in done.message and "BOOT" in done.message


async def test_a_terminate_that_is_accepted_and_falls_back(house: House) -> None:
    house.far.faults.fall_back("terminate-hard")
    task = await house.submit("true")
    assert (await house.run(task)).state is TaskState.FINISHED


async def test_a_machine_that_will_not_go_is_not_forgotten(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdict waits no longer than that, and is the job's; upkeep goes on."""
    monkeypatch.setattr("orchestrator.runner.machine.DESTROY_SECONDS", 0.3)
    house.hypervisor.hold("destroy")
    task = await house.submit("exit 7")
    done = await house.run(task)
    assert done.exit_code == 7
    [row] = await house.store.vms.open()
    assert row.state is VmState.DESTROYING
    house.hypervisor.let_go("destroy")

    async def closed() -> bool:
        await house.reap()
        return not await house.store.vms.open()

    await until("the row is closed", closed)


async def test_a_machine_that_will_not_go_keeps_upkeep_from_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.runner.machine.DESTROY_SECONDS", 0.2)
    monkeypatch.setattr("orchestrator.scheduler.reap.TERMINATE_SECONDS", 0.5)
    wait = threading.Event()
    stuck, sound = await house.submit("true"), await house.submit("true")
    house.guests.behave(stuck, boots=wait)
    await house.run(stuck, house.with_pool(launch_timeout_seconds=0.2))
    house.hypervisor.hold("destroy")
    await house.run(sound)
    house.hypervisor.let_go("destroy")
    first, second = await house.store.vms.open()
    assert first.task_id == stuck.id

    async def closed() -> list[str]:
        return [line for line in await house.reap() if f"vm {second.id} is closed" in line]

    await until("the second is closed", closed)
    assert [vm.id for vm in await house.store.vms.open()] == [first.id]
    wait.set()

    async def empty() -> bool:
        await house.reap()
        return not await house.store.vms.open()

    await until("the first is closed", empty)
