"""Which machines tasks get that run with a layer: those of its image version, on every database."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from sqlalchemy import event

from orchestrator.domain.outcome import Reason
from orchestrator.domain.task import Entrypoint, Packages, TaskSpec, TaskState, Terms
from orchestrator.domain.vm import VmState
from orchestrator.store import Claim, Finished, Requeued, Store, TaskRow, VmMoved, VmRequest
from tests.conformance.queueing import DAY, T0, at, runner, spec, submit

OLD, NEW = "debian-12/3", "debian-12/4"
LONG = at(9000)


@pytest.fixture
async def me(store: Store) -> str:
    return await runner(store, "small")


async def spare(store: Store, me: str, image: str, host: str = "") -> str:
    """One that is READY."""
    vm = await store.vms.request(VmRequest("small", image, me, at(60)), now=at(1))
    assert vm is not None
    for state in (VmState.BOOTING, VmState.READY):
        assert await store.vms.move(VmMoved(vm.id, state, me, deadline_at=LONG), now=at(2))
    if host:
        assert await store.vms.record_launch(vm.id, ok=True, host=host, now=at(2))
    return vm.id


async def laid(
    store: Store, image: str = NEW, *, frontend: str = "local", priority: int = 0, now: float = 0
) -> TaskRow:
    """A task whose layer, for VMs of this image, is ready."""
    bringing = replace(spec(terms=Terms(priority=priority)), packages=Packages("numpy"))
    task = await submit(store, bringing, now=at(now), frontend=frontend)
    builder = TaskSpec("builds", (), entrypoint=Entrypoint.LAYER)
    await store.layers.order(image, image, builder, for_tasks=[task.id], now=at(now), deadline_at=at(now) + DAY)
    for each in await store.tasks.list(pool="builds", states=[TaskState.QUEUED]):
        [claim] = await store.tasks.claim(
            await runner(store, "builds"),
            {"builds": 1},
            max_vms={},
            lease_seconds=30,
            now=at(now),
            deadline=lambda _: at(500),
            only=each.id,
        )
        await finish(store, claim)
    await store.layers.ready(image, "blob", [], now=at(now))
    await store.tasks.admit(now=at(now))
    row = await store.tasks.get(task.id)
    assert row.admitted_at is not None and row.layer == image
    return row


async def finish(store: Store, claim: Claim) -> None:
    assert await store.tasks.finish(Finished(claim.lease, TaskState.FINISHED, exit_code=0), now=at(9))


async def take(
    store: Store,
    me: str,
    ready: Sequence[str],
    *,
    room: int = 0,
    up_to: int = 9,
    max_vms: Mapping[str, int] | None = None,
    only: str | None = None,
) -> list[tuple[str, str | None]]:
    claims = await store.tasks.claim(
        me,
        {"small": room},
        ready={"small": ready},
        max_vms=max_vms or {},
        lease_seconds=30,
        now=at(10),
        up_to=up_to,
        only=only,
        deadline=lambda _: at(500),
    )
    return [(claim.task.id, claim.vm_id) for claim in claims]


async def test_a_task_takes_a_ready_vm_of_its_layers_image(store: Store, me: str) -> None:
    old, new = [await spare(store, me, image) for image in (OLD, NEW)]
    task = await laid(store)
    assert await take(store, me, [old, new]) == [(task.id, new)]
    left = await store.vms.get(old)
    assert left is not None and left.state is VmState.READY
    plain = await submit(store, spec(), now=T0)
    assert await take(store, me, [old, new]) == [(plain.id, old)]


async def test_without_such_a_vm_it_gets_a_new_one_where_there_is_room(store: Store, me: str) -> None:
    old = await spare(store, me, OLD)
    task = await laid(store)
    assert await take(store, me, [old]) == []
    assert await take(store, me, [old], room=1, max_vms={"small": 1}) == [], "the ready one is all that there may be"
    assert await take(store, me, [old], only=task.id) == []
    assert (await store.tasks.get(task.id)).state is TaskState.QUEUED
    assert await take(store, me, [old], room=1, max_vms={"small": 2}) == [(task.id, None)]
    left = await store.vms.get(old)
    assert left is not None and left.state is VmState.READY


async def test_one_that_is_named_gets_the_right_one(store: Store, me: str) -> None:
    old, new = [await spare(store, me, image) for image in (OLD, NEW)]
    first, second = await laid(store, OLD), await laid(store)
    assert await take(store, me, [old, new], only=second.id) == [(second.id, new)]
    assert await take(store, me, [old], only=first.id) == [(first.id, old)]


@pytest.mark.parametrize("frontend, priority", [("local", 0), ("a", 0), ("z", 0), ("local", 7), ("local", -7)])
async def test_one_for_which_there_is_none_keeps_no_other_waiting(
    store: Store, me: str, frontend: str, priority: int
) -> None:
    old = await spare(store, me, OLD)
    one = await laid(store, frontend=frontend, priority=priority)
    plain = await submit(store, spec(), now=at(1))
    assert await take(store, me, [old], up_to=2) == [(plain.id, old)]
    assert await take(store, me, [], room=2) == [(one.id, None)]


async def test_room_is_not_given_twice(store: Store, me: str) -> None:
    old = await spare(store, me, OLD)
    tasks = [await laid(store, now=n) for n in range(3)]
    plain = [await submit(store, spec(), now=at(5 + n)) for n in range(2)]
    # in their order: the first gets the only room there is, the others nothing, the next the one that is ready
    assert await take(store, me, [old], room=1, up_to=5) == [(tasks[0].id, None), (plain[0].id, old)]
    assert await take(store, me, [], room=9, up_to=9) == [
        (tasks[1].id, None),
        (tasks[2].id, None),
        (plain[1].id, None),
    ]


async def test_callers_at_once_share_what_fits(store: Store, me: str) -> None:
    olds, news = [[await spare(store, me, image) for _ in range(2)] for image in (OLD, NEW)]
    tasks = [await laid(store, image, now=n) for n, image in enumerate((NEW, OLD, NEW, OLD))]
    got = await asyncio.gather(*(take(store, me, [*olds, *news], up_to=1) for _ in range(4)))
    vms = dict(each for found in got for each in found)
    assert set(vms) == {task.id for task in tasks}
    for task in tasks:
        vm = await store.vms.get(vms[task.id] or "")
        assert vm is not None and vm.image_version == task.layer and vm.task_id == task.id


async def test_a_host_is_avoided_only_for_another_vm_that_fits(store: Store, me: str) -> None:
    bad, old, good = [
        await spare(store, me, image, host) for image, host in ((NEW, "bad"), (OLD, "fine"), (NEW, "good"))
    ]
    task = await laid(store)
    [claim] = await store.tasks.claim(
        me, {"small": 1}, max_vms={}, lease_seconds=30, now=at(3), deadline=lambda _: at(500), only=task.id
    )
    back = Requeued(claim.lease, Reason.UNREACHABLE, "", not_before=None, deadline_at=LONG, avoid=("bad",))
    assert await store.tasks.requeue(back, now=at(4)) is TaskState.QUEUED
    assert await take(store, me, [bad, old, good]) == [(task.id, good)]
    other = await laid(store, now=5)
    assert await take(store, me, [bad, old]) == [(other.id, bad)]


async def test_a_layer_costs_a_claim_no_statement(store: Store, me: str) -> None:
    """As many as of a task without one, each time."""
    told: list[int] = []
    for with_layer in (False, True):
        vm = await spare(store, me, NEW)
        task = await laid(store) if with_layer else await submit(store, spec(), now=T0)
        statements: list[str] = []

        def note(_c: object, _k: object, statement: str, *_: object, to: list[str] = statements) -> None:
            to.append(statement)

        engine = store._database._engine.sync_engine
        event.listen(engine, "before_cursor_execute", note)
        try:
            assert await take(store, me, [vm]) == [(task.id, vm)]
        finally:
            event.remove(engine, "before_cursor_execute", note)
        told.append(sum("pg_notify" not in each for each in statements))  # the submit's, which goes by itself
    assert told[0] == told[1]
    assert told[0] > 0 or store._database.is_postgresql, "which is asked past SQLAlchemy"
