"""What every database must do with VMs that are for no attempt yet: bounded by their pool, taken once, never back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

import pytest

from orchestrator.domain.outcome import Reason
from orchestrator.domain.task import TaskState
from orchestrator.domain.vm import VmState
from orchestrator.store import Claim, Finished, Requeued, Store, VmCount, VmMoved, VmRequest, VmRow
from tests.conformance.queueing import DAY, T0, at, claimed, kinds, runner, spec, submit, take

LONG = at(9000)


async def requested(store: Store, me: str, pool: str = "small", max_vms: int | None = None) -> VmRow | None:
    return await store.vms.request(VmRequest(pool, "debian-12/3", me, at(60)), now=at(1), max_vms=max_vms)


async def spare(store: Store, me: str, pool: str = "small") -> str:
    """One that is READY."""
    vm = await requested(store, me, pool)
    assert vm is not None
    for state in (VmState.BOOTING, VmState.READY):
        assert await store.vms.move(VmMoved(vm.id, state, me, deadline_at=LONG), now=at(2))
    return vm.id


async def take_ready(
    store: Store,
    me: str,
    ready: Mapping[str, Sequence[str]],
    *,
    room: Mapping[str, int] | None = None,
    up_to: int = 9,
    max_vms: Mapping[str, int] | None = None,
    only: str | None = None,
) -> tuple[Claim, ...]:
    return await store.tasks.claim(
        me,
        room or {},
        ready=ready,
        max_vms=max_vms or {},
        lease_seconds=30,
        now=at(10),
        up_to=up_to,
        only=only,
        deadline=lambda _: at(500),
    )


async def state(store: Store, vm_id: str) -> VmState:
    vm = await store.vms.get(vm_id)
    assert vm is not None
    return vm.state


async def destroyed(store: Store, vm_id: str, me: str | None, *, if_spare: bool = False) -> bool:
    ends = VmMoved(vm_id, VmState.DESTROYING, me, deadline_at=LONG, if_spare=if_spare)
    return await store.vms.move(ends, now=at(10))


@pytest.fixture
async def me(store: Store) -> str:
    return await runner(store, "small", "big")


@pytest.fixture
async def stores(store_url: str) -> AsyncIterator[tuple[Store, ...]]:
    """As many as three processes have them."""
    opened = [await Store.open(store_url) for _ in range(3)]
    yield tuple(opened)
    for store in opened:
        await store.close()


async def test_a_task_takes_a_ready_vm_with_its_claim(store: Store, me: str) -> None:
    vm = await spare(store, me)
    task = await submit(store, spec(), now=T0)
    [claim] = await take_ready(store, me, {"small": [vm]})
    assert (claim.task.id, claim.lease.attempt, claim.vm_id) == (task.id, 1, vm)
    assert claim.task == await store.tasks.get(task.id)
    row, attempt = await store.vms.get(vm), await store.attempts.get(task.id, 1)
    assert row is not None and attempt is not None and attempt.vm_id == vm
    assert (row.state, row.task_id, row.attempt, row.runner_id, row.spare) == (VmState.IN_USE, task.id, 1, me, False)
    assert (row.moved_at, row.deadline_at) == (at(10), at(500)) == (at(10), claim.task.deadline_at)
    told = [(event.kind, event.attempt, event.runner_id) for event in await store.events.list(task_id=task.id)]
    assert told == [("task.submitted", None, None), ("task.claimed", 1, me), ("vm.moved", 1, me)]
    [moved] = [event for event in await store.events.list() if event.data.get("state") == "IN_USE"]
    assert moved.vm_id == vm and task.id in moved.data["because"]
    again = VmRequest("small", "1", me, at(60), claim.lease)
    assert await store.vms.request(again, now=at(11)) is None, "its attempt has a VM"
    assert await store.attempts.record_host(claim.lease, "host-1")
    row = await store.vms.get(vm)
    assert row is not None and row.host == "host-1"


async def test_a_vm_that_was_used_is_never_taken_again(store: Store, me: str) -> None:
    vm = await spare(store, me)
    for _ in range(3):
        await submit(store, spec(), now=T0)
    [first] = await take_ready(store, me, {"small": [vm]})
    assert await take_ready(store, me, {"small": [vm]}) == ()
    await store.tasks.finish(Finished(first.lease, TaskState.FINISHED, exit_code=0), now=at(11))
    assert await take_ready(store, me, {"small": [vm]}) == ()
    assert not await store.vms.move(VmMoved(vm, VmState.READY, me, deadline_at=LONG), now=at(12))
    assert not await store.vms.move(VmMoved(vm, VmState.IN_USE, me, deadline_at=LONG), now=at(12))
    assert await destroyed(store, vm, me)
    assert await take_ready(store, me, {"small": [vm]}) == ()
    assert await store.tasks.waiting(["small"]) == {"small": 2}


async def test_what_is_not_a_ready_vm_of_ours_is_passed_over(store: Store, me: str) -> None:
    other = await runner(store, "small")
    booting = await requested(store, me)
    assert booting is not None
    theirs, elsewhere, gone, good = [
        await spare(store, who, pool) for who, pool in ((other, "small"), (me, "big"), (me, "small"), (me, "small"))
    ]
    assert await destroyed(store, gone, me, if_spare=True)
    for _ in range(5):
        await submit(store, spec(), now=T0)
    offered = [booting.id, theirs, elsewhere, gone, "nobody's", "", good, good]
    [claim] = await take_ready(store, me, {"small": offered})
    assert claim.vm_id == good
    assert [await state(store, vm) for vm in (theirs, elsewhere)] == [VmState.READY] * 2
    assert await state(store, booting.id) is VmState.REQUESTED and await state(store, gone) is VmState.DESTROYING
    # with room, all the others are begun with new ones
    more = await take_ready(store, me, {"small": offered}, room={"small": 9})
    assert [claim.vm_id for claim in more] == [None] * 4


async def test_more_ready_vms_than_tasks(store: Store, me: str) -> None:
    vms = [await spare(store, me) for _ in range(4)]
    tasks = [await submit(store, spec(), now=at(n)) for n in range(2)]
    claims = await take_ready(store, me, {"small": vms, "big": [await spare(store, me, "big")]}, room={"small": 9})
    assert [(claim.task.id, claim.vm_id) for claim in claims] == [(tasks[0].id, vms[0]), (tasks[1].id, vms[1])]
    assert [await state(store, vm) for vm in vms] == [VmState.IN_USE] * 2 + [VmState.READY] * 2
    assert {vm.id for vm in await store.vms.spares(me) if vm.pool == "small"} == set(vms[2:])


async def test_more_tasks_than_ready_vms(store: Store, me: str) -> None:
    vms = [await spare(store, me) for _ in range(2)]
    tasks = [await submit(store, spec(), now=at(n)) for n in range(6)]
    claims = await take_ready(store, me, {"small": vms}, room={"small": 1}, up_to=5)
    assert [(claim.task.id, claim.vm_id) for claim in claims] == [
        (task.id, vm) for task, vm in zip(tasks, [*vms, None], strict=False)
    ]
    assert len(await take_ready(store, me, {"small": [await spare(store, me)]}, up_to=1)) == 1


async def test_a_ready_vm_on_a_host_that_a_task_is_to_avoid_is_taken_only_for_want_of_another(
    store: Store, me: str
) -> None:
    bad, good = [await spare(store, me) for _ in range(2)]
    for vm, host in ((bad, "host7"), (good, "host8")):
        assert await store.vms.record_launch(vm, ok=True, host=host, now=at(3))
    tasks = [await submit(store, spec(), now=at(n)) for n in range(2)]
    for lost in await take_ready(store, me, {}, room={"small": 9}):
        requeued = Requeued(lost.lease, Reason.CONNECTION_LOST, "it is lost", None, at(900), ("host7",))
        assert await store.tasks.requeue(requeued, now=at(4)) is TaskState.QUEUED
    [first] = await take_ready(store, me, {"small": [bad, good]}, up_to=1)
    assert (first.task.id, first.vm_id) == (tasks[0].id, good)
    assert await state(store, bad) is VmState.READY
    [second] = await take_ready(store, me, {"small": [bad, good]}, up_to=1)
    assert (second.task.id, second.vm_id) == (tasks[1].id, bad)


async def test_two_tasks_that_are_to_avoid_a_host_get_two_vms(store: Store, me: str) -> None:
    vms = [await spare(store, me) for _ in range(3)]
    for vm, host in zip(vms, ("host7", "host7", "host8"), strict=True):
        assert await store.vms.record_launch(vm, ok=True, host=host, now=at(3))
    for n in range(2):
        await submit(store, spec(), now=at(n))
    for lost in await take_ready(store, me, {}, room={"small": 9}):
        requeued = Requeued(lost.lease, Reason.CONNECTION_LOST, "it is lost", None, at(900), ("host7",))
        assert await store.tasks.requeue(requeued, now=at(4)) is TaskState.QUEUED
    claims = await take_ready(store, me, {"small": vms})
    assert [claim.vm_id for claim in claims] == [vms[2], vms[1]]


async def test_pools_with_ready_vms_and_pools_with_room(store: Store, me: str) -> None:
    for n in range(3):
        await submit(store, spec("small"), now=at(n))
        await submit(store, spec("big"), now=at(n))
    vm = await spare(store, me, "big")
    claims = await take_ready(store, me, {"big": [vm]}, room={"small": 2})
    assert sorted((claim.task.spec.pool, claim.vm_id or "") for claim in claims) == [
        ("big", vm),
        ("small", ""),
        ("small", ""),
    ]


async def test_the_order_of_a_queue_is_the_same_with_ready_vms(store: Store, me: str) -> None:
    tasks = {}
    for n, frontend in enumerate("aaab"):
        tasks[(await submit(store, spec(), now=at(n), frontend=frontend)).id] = frontend
    claims = await take_ready(store, me, {"small": [await spare(store, me)]}, room={"small": 3})
    assert [tasks[claim.task.id] for claim in claims] == ["a", "b", "a", "a"]
    assert [claim.vm_id is None for claim in claims] == [False, True, True, True]


async def test_a_certain_task_takes_a_ready_vm_too(store: Store, me: str) -> None:
    vm = await spare(store, me)
    await submit(store, spec(), now=T0)
    second = await submit(store, spec(), now=at(1))
    assert await take_ready(store, me, {"big": [vm]}, only=second.id) == ()
    [claim] = await take_ready(store, me, {"small": [vm]}, only=second.id)
    assert (claim.task.id, claim.vm_id) == (second.id, vm)


async def test_nothing_is_taken_of_a_queue_that_is_paused_or_of_a_task_that_is_over(store: Store, me: str) -> None:
    vm = await spare(store, me)
    task = await submit(store, spec(), now=T0)
    await store.queues.pause("small", "now", now=at(1))
    assert await take_ready(store, me, {"small": [vm]}) == ()
    await store.queues.resume("small", now=at(2))
    await store.tasks.request_cancel(task.id, now=at(3))
    assert await take_ready(store, me, {"small": [vm]}, room={"small": 1}) == ()
    assert await state(store, vm) is VmState.READY


async def test_spare_vms_count_against_what_the_pool_may_have(store: Store, me: str) -> None:
    first = await requested(store, me, max_vms=2)
    second = await requested(store, me, max_vms=2)
    assert first is not None and second is not None and first.spare
    assert await requested(store, me, max_vms=2) is None
    assert await requested(store, me, "big", max_vms=1) is not None, "pools have nothing to do with each other"
    await submit(store, spec(), now=T0)
    assert await take(store, me, ["small"], now=at(5), up_to=1, max_vms={"small": 2}) == (), "two are there"
    assert len(await take(store, me, ["small"], now=at(5), up_to=1, max_vms={"small": 3})) == 1
    assert await requested(store, me, max_vms=3) is None
    assert await destroyed(store, first.id, me, if_spare=True)
    assert await requested(store, me, max_vms=3) is None, "it is not gone yet"
    gone = VmMoved(first.id, VmState.DESTROYED, me, close_proof="DONE")
    assert await store.vms.move(gone, now=at(11))
    assert await requested(store, me, max_vms=3) is not None
    log = [event.vm_id for event in await store.events.list() if event.kind == "vm.requested"]
    assert sorted(map(str, log)) == sorted(vm.id for vm in await store.vms.list())


async def test_a_pool_full_of_spare_vms_is_used_up(store: Store, me: str) -> None:
    """A task that takes one makes it no more; then nothing is left, whatever the room."""
    most = {"small": 3}
    vms = [await spare(store, me) for _ in range(3)]
    for n in range(6):
        await submit(store, spec(), now=at(n))
    assert await take_ready(store, me, {}, room={"small": 9}, max_vms=most) == ()
    first = await take_ready(store, me, {"small": vms[:1]}, room={"small": 9}, max_vms=most)
    assert [claim.vm_id for claim in first] == vms[:1]
    rest = await take_ready(store, me, {"small": vms}, room={"small": 9}, max_vms=most)
    assert [claim.vm_id for claim in rest] == vms[1:]
    assert await requested(store, me, max_vms=3) is None
    await store.tasks.finish(Finished(first[0].lease, TaskState.FINISHED, exit_code=0), now=at(11))
    assert await requested(store, me, max_vms=3) is None, "its machine is not gone"


async def test_spare_vms_and_tasks_that_have_none_yet_share_what_the_pool_may_have(
    stores: tuple[Store, ...],
) -> None:
    one, two, three = stores
    me, other = await runner(one), await runner(two)
    await one.tasks.submit_many([spec()] * 30, now=T0, deadline_at=T0 + DAY)

    async def claim(store: Store, who: str) -> int:
        return len(await take(store, who, ["small"], now=at(5), up_to=2, max_vms={"small": 7}))

    async def request(store: Store, who: str) -> int:
        return int(await requested(store, who, max_vms=7) is not None)

    async with asyncio.timeout(60):
        got = await asyncio.gather(
            *(work for _ in range(5) for work in (request(one, me), claim(two, other), request(three, me)))
        )
    assert sum(got) == 7
    [queue] = await one.queues.list()
    assert queue.held + len(await one.vms.spares()) == 7


async def test_claimers_that_offer_the_same_vms(stores: tuple[Store, ...]) -> None:
    """Each VM is taken once, and each task has its own."""
    one, two, three = stores
    me = await runner(one)
    vms = [await spare(one, me) for _ in range(6)]
    await one.tasks.submit_many([spec()] * 9, now=T0, deadline_at=T0 + DAY)
    async with asyncio.timeout(60):
        got = await asyncio.gather(
            take_ready(one, me, {"small": vms[:4]}, up_to=2),
            take_ready(one, me, {"small": vms[:4]}, up_to=2),
            take_ready(two, me, {"small": vms[1:]}, up_to=4),
            take_ready(three, me, {"small": vms[::-1]}, up_to=4),
        )
    claims = [claim for each in got for claim in each]
    assert len({claim.task.id for claim in claims}) == len(claims)
    taken = [claim.vm_id for claim in claims]
    assert len(taken) == len(set(taken)) and set(taken) <= set(vms) and len(taken) >= 4
    for claim in claims:
        assert claim.vm_id is not None
        vm = await one.vms.get(claim.vm_id)
        assert vm is not None and (vm.task_id, vm.attempt) == (claim.task.id, claim.lease.attempt)
    assert {vm.id for vm in await one.vms.spares()} == set(vms) - set(taken)
    assert {await state(one, vm) for vm in set(vms) - set(taken)} <= {VmState.READY}


async def test_a_vm_that_is_destroyed_while_it_is_taken(stores: tuple[Store, ...]) -> None:
    """It goes to one of the two, and the other one hears so."""
    one, two, three = stores
    me = await runner(one)
    await one.tasks.submit_many([spec()] * 12, now=T0, deadline_at=T0 + DAY)
    for n in range(8):
        vm = await spare(one, me)
        claims, by_runner, by_upkeep = await asyncio.gather(
            take_ready(one, me, {"small": [vm]}, up_to=1),
            destroyed(two, vm, me, if_spare=True),
            destroyed(three, vm, None, if_spare=True),
        )
        assert [bool(claims), by_runner, by_upkeep].count(True) == 1, n
        row = await one.vms.get(vm)
        assert row is not None and row.state is (VmState.IN_USE if claims else VmState.DESTROYING)
        assert row.spare == (not claims)
        if claims:
            assert (await kinds(one, claims[0].task.id))[-1] == "vm.moved"


async def test_a_task_that_is_canceled_while_it_takes_a_vm(stores: tuple[Store, ...]) -> None:
    one, two, _ = stores
    me = await runner(one)
    for n in range(6):
        vm, task = await spare(one, me), await submit(one, spec(), now=at(n))
        claims, canceled = await asyncio.gather(
            take_ready(one, me, {"small": [vm]}, up_to=1), two.tasks.request_cancel(task.id, now=at(10))
        )
        taken = canceled.state is TaskState.RUNNING
        assert [claim.vm_id for claim in claims] == ([vm] if taken else [])
        assert await state(one, vm) is (VmState.IN_USE if taken else VmState.READY)


async def test_a_vm_of_an_attempt_is_not_ended_as_a_spare_one(store: Store, me: str) -> None:
    claim = await claimed(store, me)
    vm = await store.vms.request(VmRequest("small", "1", me, at(60), claim.lease), now=at(2), max_vms=0)
    assert vm is not None and not vm.spare, "its claim has counted it"
    assert not await destroyed(store, vm.id, me, if_spare=True)
    assert await destroyed(store, vm.id, me)
    assert await store.vms.spares() == ()


async def test_open_machines_are_counted_by_what_they_are(store: Store, me: str) -> None:
    other = await runner(store)
    assert await store.vms.counts() == ()
    vms = [await spare(store, me) for _ in range(3)]
    await spare(store, other)
    await requested(store, me)
    await requested(store, me, "big")
    await submit(store, spec(), now=T0)
    await take_ready(store, me, {"small": vms[:1]})
    gone = await spare(store, me)
    assert await destroyed(store, gone, me)
    assert await store.vms.move(VmMoved(gone, VmState.DESTROYED, me, close_proof="DONE"), now=at(11))
    assert set(await store.vms.counts()) == {
        VmCount("big", me, VmState.REQUESTED, True, 1),
        VmCount("small", me, VmState.IN_USE, False, 1),
        VmCount("small", me, VmState.READY, True, 2),
        VmCount("small", me, VmState.REQUESTED, True, 1),
        VmCount("small", other, VmState.READY, True, 1),
    }
    assert len(await store.vms.spares()) == 5 and len(await store.vms.spares(other)) == 1
    assert await store.vms.spares("nobody") == ()
