"""What every database must do to forget: what is over for long enough goes whole, what is needed stays whole."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from orchestrator.domain.task import Entrypoint, Packages, TaskSpec, TaskState, Terms
from orchestrator.domain.vm import VmState
from orchestrator.store import Decision, Finished, Store, TaskRow, VmMoved, VmRequest
from tests.conformance.queueing import T0, at, claimed, kinds, runner, spec, submit, take_one


async def over(store: Store, task: TaskRow, seconds: float) -> None:
    claim = await take_one(store, await runner(store), [task.spec.pool], now=at(seconds - 1), only=task.id)
    assert claim is not None
    assert await store.tasks.finish(Finished(claim.lease, TaskState.FINISHED, exit_code=0), now=at(seconds))


async def prunable(store: Store, before: float, **pools: float) -> set[str]:
    return set(await store.tasks.prunable({pool: at(when) for pool, when in pools.items()}, at(before)))


async def test_what_is_over_since_before_the_instant_of_its_pool_is_forgotten(store: Store) -> None:
    small, big, other = [await submit(store, spec(pool), now=T0) for pool in ("small", "big", "other")]
    for task in (small, big, other):
        await over(store, task, 100)
    waiting = await submit(store, spec("big"), now=T0)
    assert await prunable(store, 100) == set(), "before, not at"
    assert await prunable(store, 101) == {small.id, big.id, other.id}
    assert await prunable(store, 101, small=100) == {big.id, other.id}
    assert await prunable(store, 100, small=101, nobody=999) == {small.id}
    assert len(await store.tasks.prunable({}, at(101), limit=2)) == 2
    assert await store.tasks.delete([small.id, waiting.id, "0000000000000000"]) == 1
    assert {task.id for task in await store.tasks.list()} == {big.id, other.id, waiting.id}
    assert await store.tasks.delete([small.id]) == 0
    assert await store.tasks.delete([]) == 0


async def test_a_task_goes_with_its_attempts_machines_and_events_and_nothing_else_does(store: Store) -> None:
    claim = await claimed(store)
    lease = claim.lease
    vm = await store.vms.request(VmRequest("small", "1", lease.runner_id, at(60), lease), now=at(2))
    warm = await store.vms.request(VmRequest("small", "1", lease.runner_id, at(60)), now=at(2))
    assert vm is not None and warm is not None
    note = await store.events.append("of nobody", now=at(2))
    of_the_vm = await store.events.append("of the machine alone", now=at(2), vm_id=vm.id)
    assert await store.tasks.finish(Finished(lease, TaskState.FINISHED, exit_code=0), now=at(3))
    assert await prunable(store, 99) == set(), "its machine is not gone"
    assert await store.tasks.delete([claim.task.id]) == 0
    assert await store.vms.move(VmMoved(vm.id, VmState.DESTROYED, None, close_proof="DONE"), now=at(4))
    assert await prunable(store, 99) == {claim.task.id}
    neighbour = await submit(store, spec(), now=at(5))
    assert await store.tasks.delete([claim.task.id]) == 1
    assert await store.attempts.of_task(claim.task.id) == ()
    assert await store.vms.get(vm.id) is None
    assert await store.vms.get(warm.id) is not None
    assert await kinds(store, claim.task.id) == []
    left = {event.number for event in await store.events.list()}
    assert note in left and of_the_vm not in left
    assert await kinds(store, neighbour.id) == ["task.submitted"]
    assert await store.events.append("the next", now=at(6)) > max(left), "numbers are never used again"


async def test_what_another_waits_for_is_kept_until_that_is_over(store: Store) -> None:
    first = await submit(store, spec(), now=T0)
    held = await submit(store, spec(terms=Terms(depends_on=(first.id,))), now=at(1), hold=True)
    await over(store, first, 10)
    assert await prunable(store, 99) == set()
    assert await store.tasks.delete([first.id]) == 0
    assert await store.tasks.release(held.id, now=at(20))
    await over(store, held, 30)
    assert await prunable(store, 99) == {first.id, held.id}
    assert await store.tasks.delete([first.id]) == 1
    assert (await store.tasks.get(held.id)).spec.terms.depends_on == (first.id,)
    assert await store.tasks.unfinished(held.id) == ()
    assert await store.tasks.delete([held.id]) == 1


async def test_a_task_whose_dependency_goes_this_moment_is_refused_or_keeps_it(store_url: str, store: Store) -> None:
    """Never a task that waits for something that there is not."""
    async with await Store.open(store_url) as other:
        for n in range(8):
            first = await submit(store, spec(), now=at(n))
            await over(store, first, 10 + n)
            wanted = spec(terms=Terms(depends_on=(first.id,)))
            made, gone = await asyncio.gather(
                submit(store, wanted, now=at(50), hold=True),
                other.tasks.delete([first.id]),
                return_exceptions=True,
            )
            there = {task.id for task in await store.tasks.list()}
            if isinstance(made, TaskRow):
                assert made.id in there
                assert (gone, first.id in there) in ((0, True), (1, False))
            else:
                assert (type(made).__name__, gone) == ("InvalidTask", 1)


async def test_a_review_goes_with_its_task(store: Store) -> None:
    one, two = [await submit(store, spec(), now=T0) for _ in range(2)]
    for task in (one, two):
        await over(store, task, 10)
        await store.reviews.decide(task.id, Decision.RELEASED, "ada", "", now=at(11))
    assert await store.tasks.delete([one.id]) == 1
    assert await store.reviews.get(one.id) is None
    assert await store.reviews.get(two.id) is not None


BUILDER = TaskSpec("builds", (), entrypoint=Entrypoint.LAYER)
BRINGING = replace(spec(), packages=Packages("numpy"))


async def laid(store: Store, now: float) -> TaskRow:
    """A task that waits with the layer k."""
    task = await submit(store, BRINGING, now=at(now))
    await store.layers.order("k", "1", BUILDER, for_tasks=[task.id], now=at(now), deadline_at=at(999))
    return await store.tasks.get(task.id)


async def test_a_layer_is_kept_for_as_long_as_a_task_that_used_it_and_goes_with_its_builder(store: Store) -> None:
    first = await laid(store, 0)
    layer = await store.layers.get("k")
    assert layer is not None
    await over(store, await store.tasks.get(layer.task_id), 10)
    assert await store.layers.ready("k", "blob", [], now=at(11))
    await over(store, first, 20)
    second = await laid(store, 30)
    assert await prunable(store, 99) == {first.id}
    assert await store.tasks.delete([first.id, layer.task_id]) == 1
    await over(store, second, 40)
    assert await prunable(store, 99) == {second.id}, "it goes when nobody remembers a use of it"
    assert await store.tasks.delete([layer.task_id]) == 0
    assert await store.tasks.delete([second.id]) == 1
    assert await prunable(store, 9, builds=99) == {layer.task_id}
    assert await store.tasks.delete([layer.task_id]) == 1
    assert await store.layers.get("k") is None and await store.layers.list() == ()
    again = await laid(store, 50)
    made = await store.layers.get("k")
    assert made is not None and made.task_id != layer.task_id and again.layer == "k"


async def test_an_order_of_a_layer_that_goes_this_moment_keeps_it_or_makes_another(
    store_url: str, store: Store
) -> None:
    """Never a task with a layer that there is not."""
    async with await Store.open(store_url) as other:
        for n in range(8):
            layer = await store.layers.order("k", "1", BUILDER, for_tasks=(), now=at(n), deadline_at=at(999))
            if layer.ready_at is None:
                await over(store, await store.tasks.get(layer.task_id), 10)
                assert await store.layers.ready("k", "blob", [], now=at(11))
            task = await submit(store, BRINGING, now=at(20))
            order = store.layers.order("k", "1", BUILDER, for_tasks=[task.id], now=at(21), deadline_at=at(999))
            made, gone = await asyncio.gather(order, other.tasks.delete([layer.task_id]))
            assert gone == (made.task_id != layer.task_id)
            assert await store.layers.of_task(task.id) == await store.layers.get("k") == made
            await store.tasks.request_cancel(task.id, now=at(22))
            assert await store.tasks.delete([task.id]) == 1
            if made.ready_at is None:
                await over(store, await store.tasks.get(made.task_id), 30)
                assert await store.layers.ready("k", "blob", [], now=at(31))


async def test_a_key_of_a_task_that_is_forgotten_may_be_used_again(store: Store) -> None:
    options = {"now": T0, "deadline_at": at(900), "idempotency_key": "k"}
    one = await store.tasks.submit(spec(), **options)
    await store.tasks.request_cancel(one.id, now=at(1))
    assert await store.tasks.delete([one.id]) == 1
    two = await store.tasks.submit(spec(name="other"), **options)
    assert two.id != one.id


async def test_two_that_forget_the_same_do_not_get_in_each_others_way(store_url: str, store: Store) -> None:
    tasks = [await submit(store, spec(), now=at(n)) for n in range(12)]
    for task in tasks:
        await store.tasks.request_cancel(task.id, now=at(50))
    ids = [task.id for task in tasks]
    async with await Store.open(store_url) as other:
        gone = await asyncio.gather(store.tasks.delete(ids), other.tasks.delete(ids[::-1]))
    assert sum(gone) == 12
    assert await store.tasks.list() == ()


async def test_vms_that_no_task_took_are_forgotten_when_they_are_gone_for_long(store: Store) -> None:
    me = await runner(store)
    vms = {}
    for name, pool in (("old", "small"), ("other", "big"), ("new", "small"), ("open", "small")):
        made = await store.vms.request(VmRequest(pool, "1", me, at(60)), now=at(2))
        assert made is not None
        vms[name] = made.id
        if name != "open":
            gone = VmMoved(made.id, VmState.DESTROYED, None, close_proof="DONE")
            assert await store.vms.move(gone, now=at(50 if name == "new" else 10))
    claim = await claimed(store)
    used = await store.vms.request(VmRequest("small", "1", claim.lease.runner_id, at(60), claim.lease), now=at(2))
    assert used is not None
    assert await store.vms.move(VmMoved(used.id, VmState.DESTROYED, None, close_proof="DONE"), now=at(10))
    assert await store.vms.forget({}, at(10)) == 0, "before, not at"
    assert await store.vms.forget({"small": at(20)}, at(5)) == 1
    assert await store.vms.get(vms["old"]) is None
    assert await store.vms.forget({"small": at(20)}, at(60), limit=1) == 1
    left = {vm.id for vm in await store.vms.list()}
    assert left == {vms["new"], vms["open"], used.id}
    assert left == {event.vm_id for event in await store.events.list() if event.vm_id}
    assert await store.vms.forget({}, at(999)) == 1 and await store.vms.forget({}, at(999)) == 0
