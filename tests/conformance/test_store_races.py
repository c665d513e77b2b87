"""Several processes that want the same at once, each with its own connections: one wins, and the rest is told so."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterable
from typing import TypeVar

import pytest

from orchestrator.domain.errors import InvalidTask, NotPossible
from orchestrator.domain.outcome import Exited, Reason, judge
from orchestrator.domain.task import Stage, TaskState, Terms
from orchestrator.domain.vm import VmState
from orchestrator.store import Claim, Finished, StageEntered, Store, TaskRow, VmMoved, VmRequest
from tests.conformance.queueing import DAY, T0, at, kinds, register, retried, runner, spec, submit, take, take_one

ROUNDS = 6
T = TypeVar("T")


@pytest.fixture
async def stores(store_url: str) -> AsyncIterator[tuple[Store, ...]]:
    """As many as four processes have them."""
    opened = [await Store.open(store_url) for _ in range(4)]
    yield tuple(opened)
    for store in opened:
        await store.close()


async def together(*work: Awaitable[T]) -> list[T]:
    async with asyncio.timeout(60):
        return await asyncio.gather(*work)


async def check(store: Store, tasks: Iterable[TaskRow]) -> None:
    """The log of each tells one life, which is the row's; nothing half-done is left."""
    for task in [await store.tasks.get(each.id) for each in tasks]:
        log = await kinds(store, task.id)
        attempts = await store.attempts.of_task(task.id)
        assert log.count("task.claimed") == len(attempts) == task.attempt
        ends = [kind for kind in log if kind in ("task.finished", "task.failed", "task.canceled")]
        assert len(ends) == int(task.state.over) and (not ends or ends[0] == log[-1])
        assert [attempt.number for attempt in attempts if attempt.finished_at is None] == (
            [] if task.lease is None else [task.attempt]
        )


async def test_a_claim_and_a_cancel_of_the_same_task(stores: tuple[Store, ...]) -> None:
    one, two, three, _ = stores
    me = await runner(one)
    tasks = [await submit(one, spec(), now=at(n)) for n in range(ROUNDS)]
    for task in tasks:
        claim, canceled, _ = await together(
            take_one(one, me, ["small"], now=at(50), only=task.id),
            two.tasks.request_cancel(task.id, now=at(50)),
            three.tasks.request_cancel(task.id, now=at(50)),
        )
        assert isinstance(canceled, TaskRow)
        now = await one.tasks.get(task.id)
        assert now.cancel_requested_at == at(50), "nobody's wish is lost"
        if isinstance(claim, Claim):
            assert now.state is TaskState.RUNNING and await one.tasks.canceling(me) == {claim.lease}
            assert await one.tasks.finish(Finished(claim.lease, TaskState.CANCELED), now=at(51))
        else:
            assert now.state is TaskState.CANCELED
    await check(one, tasks)


async def test_a_claim_and_a_pause_of_its_queue(stores: tuple[Store, ...]) -> None:
    one, two, three, _ = stores
    me = await runner(one)
    tasks = [await submit(one, spec(), now=at(n)) for n in range(ROUNDS)]
    for n in range(ROUNDS):
        await together(
            take(one, me, ["small"], now=at(50 + n), up_to=1),
            two.queues.pause("small", "now", now=at(50 + n)),
            take(three, me, ["small"], now=at(50 + n), up_to=1),
        )
        assert await take(one, me, ["small"], now=at(50 + n), up_to=9) == (), "it is paused"
        assert await two.queues.resume("small", now=at(50 + n))
    await check(one, tasks)


async def test_a_claim_and_the_deletion_of_its_queue(stores: tuple[Store, ...]) -> None:
    one, two, three, _ = stores
    me = await runner(one)
    for n in range(ROUNDS):
        tasks = await one.tasks.submit_many([spec()] * 6, now=at(n), deadline_at=T0 + DAY)
        left, count, right, late = await together(
            take(one, me, ["small"], now=at(50), up_to=2),
            two.queues.delete("small", now=at(50)),
            take(three, me, ["small"], now=at(50), up_to=2),
            submit(one, spec(), now=at(50)),
        )
        assert isinstance(left, tuple) and isinstance(right, tuple) and isinstance(late, TaskRow)
        held = {claim.task.id: claim for claim in (*left, *right)}
        assert isinstance(count, int) and 6 <= count <= 7
        for task in [await one.tasks.get(each.id) for each in tasks]:
            assert task.cancel_requested_at == at(50)
            assert task.state is (TaskState.RUNNING if task.id in held else TaskState.CANCELED)
        for claim in held.values():
            assert await one.tasks.finish(Finished(claim.lease, TaskState.CANCELED), now=at(51))
        await one.queues.delete("small", now=at(52))
        await check(one, (*tasks, late))


async def test_an_adoption_and_the_heartbeat_of_a_runner_that_wakes_up(stores: tuple[Store, ...]) -> None:
    one, two, three, _ = stores
    tasks = []
    for _ in range(ROUNDS):
        sleeper, other, third = [(await register(one, now=T0)).id for _ in range(3)]
        task = await submit(one, spec(), now=T0)
        tasks.append(task)
        claim = await take_one(one, sleeper, ["small"], now=at(1), only=task.id)
        assert claim is not None
        vm = await one.vms.request(VmRequest("small", "1", sleeper, at(60), claim.lease), now=at(2))
        assert vm is not None
        for state in (VmState.BOOTING, VmState.READY, VmState.IN_USE):
            assert await one.vms.move(VmMoved(vm.id, state, sleeper, deadline_at=at(900)), now=at(3))
        assert await one.tasks.enter_stage(StageEntered(claim.lease, Stage.EXECUTING), now=at(4))
        beats, left, right, moved = await together(
            one.tasks.beat(sleeper, [claim.lease], lease_seconds=30, now=at(40)),
            two.tasks.adopt(other, ["small"], lease_seconds=30, now=at(40)),
            three.tasks.adopt(third, ["small"], lease_seconds=30, now=at(40)),
            one.vms.move(VmMoved(vm.id, VmState.DESTROYING, sleeper, deadline_at=at(900)), now=at(40)),
        )
        assert isinstance(left, tuple) and isinstance(right, tuple)
        row, machine = await one.tasks.get(task.id), await one.vms.get(vm.id)
        attempt = await one.attempts.get(task.id, 1)
        assert machine is not None and attempt is not None
        assert {row.runner_id, machine.runner_id} == {attempt.runner_id}, "task, attempt and machine are one's"
        adopted = (*left, *right)
        assert len(adopted) <= 1
        if adopted:
            assert not beats or row.lease_expires_at == at(70)
            assert not moved and machine.state is VmState.IN_USE and row.runner_id == adopted[0].lease.runner_id
            late = await one.tasks.beat(sleeper, [claim.lease], lease_seconds=30, now=at(41))
            assert late == {}
        else:
            assert beats or moved
            assert row.runner_id == sleeper
        assert row.lease is not None
        assert await one.tasks.finish(Finished.by(row.lease, judge(Exited(0))), now=at(50))
    await check(one, tasks)


async def test_an_admission_and_a_cancel_of_the_same_task(stores: tuple[Store, ...]) -> None:
    one, two, three, _ = stores
    due = spec(terms=Terms(not_before=at(60)))
    tasks = await one.tasks.submit_many([due] * 12, now=T0, deadline_at=T0 + DAY)
    admitted, again, *canceled = await together(
        one.tasks.admit(now=at(60)),
        two.tasks.admit(now=at(60)),
        *(three.tasks.request_cancel(task.id, now=at(61)) for task in tasks[::2]),
    )
    assert isinstance(admitted, tuple) and isinstance(again, tuple) and len(canceled) == 6
    assert not set(admitted) & set(again)
    assert {task.id for task in tasks[1::2]} <= {*admitted, *again, *await one.tasks.admit(now=at(62))}
    rows = {task.id: await one.tasks.get(task.id) for task in tasks}
    assert [rows[task.id].state for task in tasks] == [TaskState.CANCELED, TaskState.QUEUED] * 6
    assert all(row.admitted_at is None for row in rows.values() if row.state.over)
    counts = Counter([kind for task in tasks for kind in await kinds(one, task.id)])
    assert counts["task.canceled"] == 6 and 6 <= counts["task.admitted"] <= 12
    await check(one, tasks)


async def test_many_claimers_never_exceed_what_a_pool_may_have(stores: tuple[Store, ...]) -> None:
    """The bound holds for what is held and for machines that are not gone, whoever claims, ends or gives back."""
    runners = [await runner(each) for each in stores]
    await stores[0].tasks.submit_many([spec()] * 60, now=T0, deadline_at=T0 + DAY)
    most, seen = 3, []

    async def work(store: Store, me: str, turn: int) -> None:
        for n in range(6):
            claims = await take(store, me, ["small"], now=at(10 + n), up_to=2, max_vms={"small": most})
            seen.append(sum(queue.held for queue in await store.queues.list()))
            for claim in claims:
                if (n + turn) % 2:
                    await store.tasks.requeue(retried(claim.lease, Reason.RETRY), now=at(20 + n))
                else:
                    await store.tasks.finish(Finished(claim.lease, TaskState.FINISHED, exit_code=0), now=at(20 + n))

    await together(*(work(store, me, turn) for turn, (store, me) in enumerate(zip(stores, runners, strict=True))))
    assert 1 <= max(seen) <= most
    await check(stores[0], await stores[0].tasks.list(limit=1000))


async def test_one_key_from_many_at_once_is_one_task(stores: tuple[Store, ...]) -> None:
    for n in range(3):
        made = await together(
            *(
                store.tasks.submit(
                    spec(name=str(n)), now=at(n), deadline_at=T0 + DAY, idempotency_key=f"k{n}", frontend="f"
                )
                for store in stores
                for _ in range(3)
            )
        )
        assert len({task.id for task in made}) == 1
        assert await kinds(stores[0], made[0].id) == ["task.submitted"]
    assert len(await stores[0].tasks.list()) == 3


async def test_one_key_for_different_tasks_from_many_at_once_is_one_of_them(stores: tuple[Store, ...]) -> None:
    made = await asyncio.gather(
        *(
            store.tasks.submit(spec(name=str(n)), now=T0, deadline_at=T0 + DAY, idempotency_key="k")
            for n, store in enumerate(stores)
        ),
        return_exceptions=True,
    )
    [task] = [each for each in made if isinstance(each, TaskRow)]
    refused = [each for each in made if isinstance(each, NotPossible)]
    assert len(refused) == len(stores) - 1 and {each.field for each in refused} == {"idempotency_key"}
    assert [each.id for each in await stores[0].tasks.list()] == [task.id]


async def test_a_release_and_a_dependency_of_the_same_task(stores: tuple[Store, ...]) -> None:
    """Either it waits for it, or it was refused: never a task that runs before what it waits for."""
    one, two, three, _ = stores
    for n in range(ROUNDS):
        first, held = await submit(one, spec(), now=at(n)), await submit(one, spec(), now=at(n), hold=True)
        went, bound, _ = await asyncio.gather(
            one.tasks.release(held.id, now=at(50)),
            two.tasks.depend(held.id, [first.id], now=at(50)),
            three.tasks.admit(now=at(50)),
            return_exceptions=True,
        )
        assert went is True
        row, waits = await one.tasks.get(held.id), await one.tasks.unfinished(held.id)
        assert isinstance(bound, (NotPossible, type(None)))
        assert (waits, row.admitted_at) == (((first.id,), None) if bound is None else ((), at(50)))


async def test_a_cycle_of_three_closed_by_three_at_once(stores: tuple[Store, ...]) -> None:
    for n in range(ROUNDS):
        a, b, c = [await submit(stores[0], spec(), now=at(n), hold=True) for _ in range(3)]
        done = await asyncio.gather(
            *(
                store.tasks.depend(task.id, [on.id], now=at(50))
                for store, task, on in zip(stores, (a, b, c), (b, c, a), strict=False)
            ),
            return_exceptions=True,
        )
        [refused] = [each for each in done if each is not None]
        assert isinstance(refused, InvalidTask) and "a cycle" in str(refused)


async def test_two_ends_and_a_requeue_of_one_attempt(stores: tuple[Store, ...]) -> None:
    one, two, three, four = stores
    me = await runner(one)
    tasks = []
    for n in range(ROUNDS):
        tasks.append(await submit(one, spec(), now=at(n)))
        claim = await take_one(one, me, ["small"], now=at(20), only=tasks[-1].id)
        assert claim is not None
        wins = await together(
            one.tasks.finish(Finished(claim.lease, TaskState.FINISHED, exit_code=0), now=at(60)),
            two.tasks.requeue(retried(claim.lease, Reason.RUNNER_LOST), now=at(60), if_expired=True),
            three.tasks.end_overdue(claim.task, "too long", now=T0 + 3 * DAY),
            four.tasks.let_go(claim.lease, now=at(21)),
        )
        assert len([each for each in wins[:3] if each]) == 1
        await one.queues.delete("small", now=at(90))
    await check(one, tasks)
