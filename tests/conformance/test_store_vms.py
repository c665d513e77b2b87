"""What every database must do with VMs: the intent first, legal moves only, closed on proof."""

from __future__ import annotations

import pytest

from orchestrator.domain.outcome import Reason
from orchestrator.domain.task import TaskSpec, TaskState
from orchestrator.domain.vm import LEGAL_MOVES, VmState
from orchestrator.store import Finished, Launch, Lease, Store, VmMoved, VmRequest, VmRow
from tests.conformance.queueing import T0, at, register, retried, submit, take_one

WAY = {
    VmState.REQUESTED: [],
    VmState.BOOTING: [VmState.BOOTING],
    VmState.READY: [VmState.BOOTING, VmState.READY],
    VmState.IN_USE: [VmState.BOOTING, VmState.READY, VmState.IN_USE],
    VmState.DESTROYING: [VmState.DESTROYING],
    VmState.DESTROYED: [VmState.DESTROYED],
}


@pytest.fixture
async def lease(store: Store) -> Lease:
    me = await register(store, host="here", pid=1, pools=["small"], now=T0)
    await submit(store, TaskSpec("small", ("true",)), now=T0)
    claim = await take_one(store, me.id, ["small"], lease_seconds=30, now=T0)
    assert claim is not None
    return claim.lease


async def requested(store: Store, lease: Lease) -> VmRow:
    vm = await store.vms.request(
        VmRequest("small", "debian-12/3", lease.runner_id, at(60), lease, host_key="SHA256:abc"), now=at(1)
    )
    assert vm is not None
    return vm


def to(vm: VmRow, state: VmState, runner_id: str | None, **more: str) -> VmMoved:
    if state is VmState.DESTROYED:
        return VmMoved(vm.id, state, runner_id, close_proof="OpenNebula says DONE", **more)
    return VmMoved(vm.id, state, runner_id, deadline_at=at(120), **more)


async def moved(store: Store, vm: VmRow, state: VmState, runner_id: str | None) -> None:
    for step in WAY[state]:
        assert await store.vms.move(to(vm, step, runner_id), now=at(2))


async def test_the_intent_is_written_before_opennebula_is_asked(store: Store, lease: Lease) -> None:
    vm = await requested(store, lease)
    assert vm == VmRow(
        id=vm.id,
        cloud_id=None,
        pool="small",
        image_version="debian-12/3",
        state=VmState.REQUESTED,
        host_key="SHA256:abc",
        address=None,
        task_id=lease.task_id,
        attempt=1,
        runner_id=lease.runner_id,
        created_at=at(1),
        moved_at=at(1),
        deadline_at=at(60),
        destroyed_at=None,
        close_proof=None,
        host_public_key=None,
        host=None,
    )
    assert await store.vms.get(vm.id) == vm
    attempt = await store.attempts.get(lease.task_id, 1)
    assert attempt is not None and attempt.vm_id == vm.id


async def test_an_attempt_has_one_vm_and_none_when_it_is_over(store: Store, lease: Lease) -> None:
    vm = await requested(store, lease)
    request = VmRequest("small", "1", lease.runner_id, at(60), lease)
    assert await store.vms.request(request, now=at(2)) is None
    assert await store.vms.list() == (vm,)
    await store.tasks.requeue(retried(lease, Reason.INTERNAL), now=at(3))
    again = await take_one(store, lease.runner_id, ["small"], lease_seconds=30, now=at(4))
    assert again is not None
    assert await store.vms.request(request, now=at(5)) is None
    await store.tasks.finish(Finished(again.lease, TaskState.FAILED), now=at(6))
    assert await store.vms.request(VmRequest("small", "1", lease.runner_id, at(60), again.lease), now=at(7)) is None
    assert await store.vms.list() == (vm,)
    assert not [e for e in await store.events.list() if e.kind == "vm.requested" and e.vm_id != vm.id]


async def test_a_vm_for_nobody_yet_is_requested_too(store: Store, lease: Lease) -> None:
    vm = await store.vms.request(VmRequest("small", "1", lease.runner_id, at(60)), now=at(1))
    assert vm is not None and (vm.task_id, vm.attempt) == (None, None)
    await moved(store, vm, VmState.READY, lease.runner_id)
    assert not await store.vms.move(to(vm, VmState.IN_USE, lease.runner_id), now=at(3))  # used by whom?


async def test_opennebulas_id_is_written_once(store: Store, lease: Lease) -> None:
    vm = await requested(store, lease)
    assert await store.vms.set_cloud_id(vm.id, 7, now=at(2))
    assert await store.vms.set_cloud_id(vm.id, 7, now=at(2))
    assert not await store.vms.set_cloud_id(vm.id, 8, now=at(3))
    assert not await store.vms.set_cloud_id("nobody", 8, now=at(3))
    known = await store.vms.get(vm.id)
    assert known is not None and known.cloud_id == 7


async def test_a_life_is_told_move_by_move(store: Store, lease: Lease) -> None:
    vm = await requested(store, lease)
    me = lease.runner_id
    assert await store.vms.move(
        VmMoved(vm.id, VmState.BOOTING, me, deadline_at=at(300), address="127.0.0.9"), now=at(2)
    )
    booting = await store.vms.get(vm.id)
    assert booting is not None
    assert (booting.address, booting.moved_at, booting.deadline_at) == ("127.0.0.9", at(2), at(300))
    for n, state in enumerate((VmState.READY, VmState.IN_USE, VmState.DESTROYING)):
        assert await store.vms.move(to(vm, state, me, because=f"why {n}"), now=at(3 + n))
    assert await store.vms.open() == (await store.vms.get(vm.id),)
    assert await store.vms.move(to(vm, VmState.DESTROYED, me), now=at(9))
    gone = await store.vms.get(vm.id)
    assert gone is not None
    assert (gone.state, gone.destroyed_at, gone.close_proof) == (VmState.DESTROYED, at(9), "OpenNebula says DONE")
    assert (gone.deadline_at, gone.address) == (None, "127.0.0.9")
    assert await store.vms.open() == ()
    assert await store.vms.of_task(lease.task_id) == (gone,) == await store.vms.list()
    told = [(e.data["state"], e.data["because"]) for e in await store.events.list() if e.kind == "vm.moved"]
    assert told == [
        ("BOOTING", ""),
        ("READY", "why 0"),
        ("IN_USE", "why 1"),
        ("DESTROYING", "why 2"),
        ("DESTROYED", "OpenNebula says DONE"),
    ]


@pytest.mark.parametrize("source", VmState)
async def test_legal_moves_are_made_and_all_others_change_nothing(store: Store, lease: Lease, source: VmState) -> None:
    for target in VmState:
        vm = await store.vms.request(VmRequest("small", "1", lease.runner_id, at(60)), now=at(1))
        assert vm is not None
        if VmState.IN_USE in (source, target):  # an attempt has one VM, so each of these needs its own
            task = await submit(store, TaskSpec("small", ("true",)), now=T0)
            claim = await take_one(store, lease.runner_id, ["small"], lease_seconds=30, now=T0, only=task.id)
            assert claim is not None
            vm = await requested(store, claim.lease)
        await moved(store, vm, source, lease.runner_id)
        before, log = await store.vms.get(vm.id), await store.events.list()
        did = await store.vms.move(to(vm, target, lease.runner_id), now=at(9))
        assert did == (target in LEGAL_MOVES[source]), (source, target)
        after = await store.vms.get(vm.id)
        assert after is not None
        if did:
            assert after.state is target
        else:
            assert after == before and await store.events.list() == log


async def test_another_runner_moves_nothing_and_upkeep_does(store: Store, lease: Lease) -> None:
    vm = await requested(store, lease)
    other = await register(store, host="there", pid=2, pools=[], now=T0)
    assert not await store.vms.move(to(vm, VmState.BOOTING, other.id), now=at(2))
    assert not await store.vms.move(to(vm, VmState.BOOTING, ""), now=at(2))
    assert await store.vms.move(to(vm, VmState.DESTROYING, None), now=at(3))
    assert not await store.vms.move(VmMoved("nobody", VmState.DESTROYING, None, deadline_at=at(9)), now=at(3))


async def test_no_state_but_the_last_is_without_a_deadline_and_that_one_has_proof() -> None:
    with pytest.raises(ValueError, match="closed only on proof"):
        VmMoved("v", VmState.DESTROYED, None)
    with pytest.raises(ValueError, match="closed only on proof"):
        VmMoved("v", VmState.DESTROYED, None, close_proof="")
    for state in VmState:
        if state is not VmState.DESTROYED:
            with pytest.raises(ValueError, match="needs a deadline"):
                VmMoved("v", state, None)


async def test_open_machines_are_counted_by_pool(store: Store, lease: Lease) -> None:
    assert await store.vms.open_by_pool() == {}
    vm = await requested(store, lease)
    assert await store.vms.open_by_pool() == {"small": 1}
    await moved(store, vm, VmState.DESTROYING, None)
    assert await store.vms.open_by_pool() == {"small": 1}
    assert await store.vms.move(to(vm, VmState.DESTROYED, None), now=at(3))
    assert await store.vms.open_by_pool() == {}


async def test_how_a_launch_went_is_recorded_once(store: Store, lease: Lease) -> None:
    me = lease.runner_id
    good, bad = await requested(store, lease), await store.vms.request(VmRequest("big", "1", me, at(60)), now=at(1))
    assert bad is not None and (bad.launch, bad.launch_message, bad.launch_seconds) == (None, "", None)
    assert await store.vms.launches(since=T0) == ()
    assert await store.vms.record_launch(good.id, ok=True, seconds=1.25, host="host-1", now=at(5))
    await moved(store, bad, VmState.DESTROYED, me)
    assert await store.vms.record_launch(bad.id, ok=False, message="no \0 answer", now=at(6)), "it is gone, and known"
    assert not await store.vms.record_launch(good.id, ok=False, message="late", host="host-2", now=at(7))
    assert not await store.vms.record_launch("nobody", ok=True, now=at(7))
    launches = (
        Launch(bad.id, "big", "1", "", False, "no \\x00 answer", None, at(6)),
        Launch(good.id, "small", "debian-12/3", "host-1", True, "", 1.25, at(5)),
    )
    assert await store.vms.launches(since=T0) == launches
    assert await store.vms.launches(since=at(6)) == launches[:1] == await store.vms.launches(since=T0, limit=1)
    assert await store.vms.launches(since=at(7)) == ()
    row = await store.vms.get(good.id)
    assert row is not None and (row.host, row.launch, row.launch_at) == ("host-1", "ok", at(5))


async def test_a_host_that_is_known_stays_known_when_a_launch_tells_none(store: Store, lease: Lease) -> None:
    vm = await requested(store, lease)
    assert await store.attempts.record_host(lease, "host-1")
    assert await store.vms.record_launch(vm.id, ok=True, now=at(5))
    row = await store.vms.get(vm.id)
    assert row is not None and row.host == "host-1"
