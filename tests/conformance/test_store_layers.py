"""What packages make: who waits for it, who builds it, and that it is built once, on every database."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from orchestrator.domain.errors import InvalidTask, NotPossible
from orchestrator.domain.outcome import Reason
from orchestrator.domain.task import Entrypoint, Packages, TaskSpec, TaskState, Terms
from orchestrator.store import BUILDERS, Finished, LayerRow, Store, TaskRow
from tests.conformance.filling import fill
from tests.conformance.queueing import DAY, T0, at, kinds, retried, runner, spec, submit, take_one

BUILDER = TaskSpec(pool="builds", command=(), entrypoint=Entrypoint.LAYER, outputs=("layer.squashfs",))
NUMPY = Packages("numpy\n")


def bringing(terms: Terms | None = None, pool: str = "small") -> TaskSpec:
    return replace(spec(pool, terms=terms), packages=NUMPY)


async def order(store: Store, *tasks: TaskRow, key: str = "k", now: float = 10) -> LayerRow:
    ids = [task.id for task in tasks]
    return await store.layers.order(key, "img-1", BUILDER, for_tasks=ids, now=at(now), deadline_at=at(now) + DAY)


async def end(
    store: Store, task_id: str, state: TaskState = TaskState.FINISHED, message: str = "", *, now: float = 20
) -> None:
    me = await runner(store)
    claim = await take_one(store, me, ["builds", "small"], now=at(now - 1), only=task_id)
    assert claim is not None
    code = 0 if state is TaskState.FINISHED else 1
    assert await store.tasks.finish(Finished(claim.lease, state, message=message, exit_code=code), now=at(now))


async def builders(store: Store) -> list[TaskRow]:
    return [task for task in await store.tasks.list() if task.frontend == BUILDERS]


async def test_a_task_that_brings_packages_waits_until_they_are_installed(store: Store) -> None:
    task = await submit(store, bringing(), now=T0)
    assert task.admitted_at is None and task.layer is None
    assert [row.id for row in await store.layers.wanted()] == [task.id]
    assert await store.tasks.admit(now=at(1)) == ()
    assert await store.layers.of_task(task.id) is None

    layer = await order(store, task)
    assert layer == LayerRow("k", "img-1", layer.task_id, None, None, at(10), None)
    assert await store.layers.get("k") == await store.layers.of_task(task.id) == layer
    assert await store.layers.wanted() == () and await store.layers.built() == ()
    [builder] = await builders(store)
    assert (builder.id, builder.spec, builder.submitted_by) == (layer.task_id, BUILDER, "mayfly")
    assert builder.admitted_at == at(10) and builder.layer is None
    assert (await store.tasks.get(task.id)).layer == "k"
    assert await store.tasks.unfinished(task.id) == (builder.id,)
    assert await store.tasks.admit(now=at(11)) == ()

    await end(store, builder.id)
    assert await store.tasks.admit(now=at(21)) == (), "nobody has seen yet what was built"
    assert await store.layers.built() == (layer,)
    assert await store.layers.ready("k", "blob", ["numpy==2.1"], now=at(22))
    ready = replace(layer, blob="blob", resolved=("numpy==2.1",), ready_at=at(22))
    assert await store.layers.get("k") == ready and await store.layers.built() == ()
    assert (await store.tasks.get(task.id)).admitted_at == at(22)
    assert await take_one(store, await runner(store), ["small"], now=at(23)) is not None
    assert await kinds(store, task.id) == ["task.submitted", "task.layer", "task.admitted", "task.claimed"]
    assert (await kinds(store, builder.id))[-1] == "layer.ready"


async def test_a_layer_that_is_ready_before_its_builder_ended_lets_nobody_in_before_that(store: Store) -> None:
    task = await submit(store, bringing(), now=T0)
    layer = await order(store, task)
    assert await store.layers.ready("k", "blob", [], now=at(12))
    assert (await store.tasks.get(task.id)).admitted_at is None
    assert await store.tasks.admit(now=at(13), since=at(5)) == ()
    await end(store, layer.task_id)
    assert await store.tasks.admit(now=at(21), since=at(15)) == (task.id,)


async def test_a_layer_is_ready_once(store: Store) -> None:
    await order(store)
    assert not await store.layers.ready("other", "blob", [], now=at(12))
    assert await store.layers.ready("k", "blob", ["a==1"], now=at(12))
    assert not await store.layers.ready("k", "another", [], now=at(13))
    layer = await store.layers.get("k")
    assert layer is not None and (layer.blob, layer.resolved, layer.ready_at) == ("blob", ("a==1",), at(12))


async def test_who_comes_later_takes_what_is_ready_and_builds_nothing(store: Store) -> None:
    layer = await order(store)
    await end(store, layer.task_id)
    await store.layers.ready("k", "blob", [], now=at(22))
    now, later = [await submit(store, bringing(terms), now=at(30)) for terms in (None, Terms(not_before=at(99)))]
    assert await order(store, now, later, now=31) == await store.layers.get("k")
    assert len(await builders(store)) == 1
    assert (await store.tasks.get(now.id)).admitted_at == at(31)
    assert (await store.tasks.get(later.id)).admitted_at is None
    assert await store.tasks.unfinished(now.id) == ()
    assert await store.tasks.admit(now=at(99), since=at(90)) == (later.id,)


async def test_who_comes_while_it_is_built_waits_for_the_same_builder(store: Store) -> None:
    one = await submit(store, bringing(), now=T0)
    layer = await order(store, one)
    two = await submit(store, bringing(), now=at(11))
    assert await order(store, two, now=12) == layer
    assert await order(store, one, two, now=13) == layer, "it may be done again"
    assert len(await builders(store)) == 1
    await end(store, layer.task_id)
    await store.layers.ready("k", "blob", [], now=at(22))
    assert {(await store.tasks.get(task.id)).admitted_at for task in (one, two)} == {at(22)}


@pytest.mark.parametrize("state", [TaskState.FAILED, TaskState.CANCELED])
async def test_who_waits_for_a_builder_that_failed_hears_what_that_said(store: Store, state: TaskState) -> None:
    task = await submit(store, bringing(), now=T0)
    behind = await submit(store, spec(terms=Terms(depends_on=(task.id,))), now=T0)
    layer = await order(store, task)
    await end(store, layer.task_id, state, "exited with 1")
    assert await store.layers.built() == ()
    assert await store.tasks.admit(now=at(21), since=at(15)) == (task.id,)
    row = await store.tasks.get(task.id)
    said = f"its packages could not be installed: task {layer.task_id} exited with 1"
    assert (row.state, row.reason, row.message, row.exit_code) == (TaskState.FAILED, Reason.LAYER_FAILED, said, 125)
    event = (await store.events.list(task_id=task.id))[-1]
    assert (event.kind, event.data) == ("task.failed", {"reason": "layer_failed", "message": said})
    assert await store.tasks.admit(now=at(22), since=at(15)) == (behind.id,)
    assert (await store.tasks.get(behind.id)).reason is Reason.DEPENDENCY_FAILED


async def test_a_builder_that_failed_is_replaced_by_the_next_order_and_not_before(store: Store) -> None:
    first = await submit(store, bringing(), now=T0)
    failed = await order(store, first)
    await end(store, failed.task_id, TaskState.FAILED, "no such package")
    second = await submit(store, bringing(), now=at(30))
    layer = await order(store, second, now=31)
    assert layer.task_id != failed.task_id and layer.made_at == at(31)
    assert await store.layers.get("k") == layer
    # who waited for the one that failed goes with it, though there is another now
    assert await store.tasks.admit(now=at(32)) == (first.id,)
    row = await store.tasks.get(first.id)
    assert row.reason is Reason.LAYER_FAILED and row.message.endswith(f"task {failed.task_id} no such package")
    await end(store, layer.task_id, now=40)
    await store.layers.ready("k", "blob", [], now=at(41))
    assert (await store.tasks.get(second.id)).admitted_at == at(41)


@pytest.mark.parametrize("useful", [True, False])
async def test_many_may_wait_for_a_layer(store: Store, useful: bool) -> None:
    """More than are named by one statement: they are written a thousand at a time."""
    task = await submit(store, bringing(), now=T0)
    layer = await order(store, task)
    await end(store, layer.task_id)
    await fill(store, task.id, 0, 2_500)
    if useful:
        assert await store.layers.ready("k", "blob", [], now=at(22))
        assert await store.tasks.waiting(["small"], up_to=9_999) == {"small": 2_501}
    else:
        assert len(await store.layers.refuse("k", "no", now=at(22))) == 2_501
        assert await store.tasks.counts() == {
            ("small", TaskState.FAILED): 2_501,
            ("builds", TaskState.FINISHED): 1,
        }


async def test_what_cannot_be_used_fails_those_who_wait_and_is_built_again(store: Store) -> None:
    first = await submit(store, bringing(), now=T0)
    layer = await order(store, first)
    assert await store.layers.refuse("k", "no squashfs", now=at(11)) == (), "it is not built yet"
    assert await store.layers.refuse("other", "no squashfs", now=at(11)) == ()
    await end(store, layer.task_id)
    assert await store.layers.refuse("k", "no squashfs", now=at(21)) == (first.id,)
    row = await store.tasks.get(first.id)
    assert (row.state, row.reason, row.message) == (TaskState.FAILED, Reason.LAYER_FAILED, "no squashfs")
    assert await store.layers.get("k") is None
    assert (await store.events.list(task_id=layer.task_id))[-1].data == {"key": "k", "message": "no squashfs"}
    assert not await store.layers.ready("k", "blob", [], now=at(22))
    second = await submit(store, bringing(), now=at(30))
    again = await order(store, second, now=31)
    assert again.task_id != layer.task_id
    await end(store, again.task_id, now=40)
    assert await store.layers.ready("k", "blob", [], now=at(41))
    assert await store.layers.refuse("k", "no squashfs", now=at(42)) == (), "it is ready"
    assert await store.layers.get("k") is not None


async def test_an_order_passes_over_who_does_not_wait_for_a_layer(store: Store) -> None:
    plain = await submit(store, spec(terms=Terms(not_before=at(99))), now=T0)
    held = await submit(store, bringing(), now=T0, hold=True)
    gone = await submit(store, bringing(), now=T0)
    await store.tasks.request_cancel(gone.id, now=at(1))
    other = await submit(store, bringing(), now=T0)
    await order(store, other, key="theirs")
    assert await store.layers.wanted() == ()
    await order(store, plain, held, gone, other)
    layers = [(await store.tasks.get(task.id)).layer for task in (plain, held, gone, other)]
    assert layers == [None, None, None, "theirs"]
    assert await store.tasks.release(held.id, now=at(40))
    assert (await store.tasks.get(held.id)).admitted_at is None
    assert [row.id for row in await store.layers.wanted()] == [held.id]


async def test_a_task_that_is_tried_again_keeps_its_layer(store: Store) -> None:
    task = await submit(store, bringing(), now=T0)
    layer = await order(store, task)
    await end(store, layer.task_id)
    await store.layers.ready("k", "blob", [], now=at(22))
    claim = await take_one(store, await runner(store), ["small"], now=at(23))
    assert claim is not None and claim.task.layer == "k"
    back = replace(retried(claim.lease, Reason.UNREACHABLE), not_before=at(60))
    assert await store.tasks.requeue(back, now=at(30)) is TaskState.QUEUED
    assert await store.layers.wanted() == ()
    assert await store.tasks.admit(now=at(60), since=at(55)) == (task.id,)


async def test_an_order_that_is_refused_changes_nothing(store: Store) -> None:
    task = await submit(store, bringing(), now=T0)
    await submit(store, spec("builds"), now=T0)

    async def ordered(builder: TaskSpec, max_waiting: int | None) -> None:
        until = at(10) + DAY
        await store.layers.order(
            "k", "img-1", builder, for_tasks=[task.id], now=at(10), deadline_at=until, max_waiting=max_waiting
        )

    with pytest.raises(NotPossible, match="queue is full: 1 of 1"):
        await ordered(BUILDER, 1)
    with pytest.raises(InvalidTask, match=r"takes \d+ bytes"):
        await ordered(replace(BUILDER, name="x" * 300_000), None)
    assert await store.layers.get("k") is None and await builders(store) == []
    assert [row.id for row in await store.layers.wanted()] == [task.id]


async def test_orders_of_one_key_at_once_make_one_builder(store_url: str, store: Store) -> None:
    async with await Store.open(store_url) as other:
        for n in range(5):
            tasks = [await submit(store, bringing(), now=at(n)) for _ in range(4)]
            stores = (store, other, store, other)
            found = await asyncio.gather(*(order(s, t, key=f"k{n}") for s, t in zip(stores, tasks, strict=True)))
            assert len(set(found)) == 1
            assert {await store.tasks.unfinished(task.id) for task in tasks} == {(found[0].task_id,)}
    assert len(await builders(store)) == 5


async def test_orders_at_once_replace_a_builder_that_failed_once(store_url: str, store: Store) -> None:
    layer = await order(store)
    await end(store, layer.task_id, TaskState.FAILED)
    async with await Store.open(store_url) as other:
        tasks = [await submit(store, bringing(), now=at(30)) for _ in range(4)]
        found = await asyncio.gather(
            *(order(s, t, now=31) for s, t in zip((store, other, store, other), tasks, strict=True))
        )
    assert len(set(found)) == 1 and found[0].task_id != layer.task_id
    assert len(await builders(store)) == 2


async def test_an_order_while_the_layer_gets_ready_leaves_nobody_waiting(store_url: str, store: Store) -> None:
    async with await Store.open(store_url) as other:
        for n in range(6):
            key = f"k{n}"
            layer = await order(store, key=key)
            await end(store, layer.task_id)
            task = await submit(store, bringing(), now=at(21))
            await asyncio.gather(order(store, task, key=key, now=22), other.layers.ready(key, "b", [], now=at(22)))
            assert (await store.tasks.get(task.id)).admitted_at == at(22)


async def test_an_order_while_the_layer_is_refused_ends_or_builds_again(store_url: str, store: Store) -> None:
    async with await Store.open(store_url) as other:
        for n in range(6):
            key = f"k{n}"
            first = await order(store, key=key)
            await end(store, first.task_id)
            task = await submit(store, bringing(), now=at(21))
            layer, gone = await asyncio.gather(
                order(store, task, key=key, now=22), other.layers.refuse(key, "no", now=at(22))
            )
            row = await store.tasks.get(task.id)
            if gone:
                assert (row.state, layer.task_id) == (TaskState.FAILED, first.task_id)
                assert await store.layers.get(key) is None
            else:
                assert (row.state, row.layer) == (TaskState.QUEUED, key)
                assert layer.task_id != first.task_id and await store.layers.get(key) == layer
