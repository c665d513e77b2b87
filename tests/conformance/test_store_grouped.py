"""Callers that are served by one write: each has its own answer, whatever becomes of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from sqlalchemy.exc import IntegrityError

from orchestrator.domain.task import Stage
from orchestrator.store import Lease, StageEntered, Store
from orchestrator.store.grouped import MOST, Grouped
from tests.conformance.queueing import at, claimed, runner


class Writer:
    """Writes go on when they are let; what each wrote is kept."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.begun = asyncio.Event()
        self.let = asyncio.Event()
        self.fails: dict[str, Exception] = {}
        self.grouped = Grouped(self.write, key=lambda item: item[0])

    async def write(self, items: Sequence[str]) -> Sequence[str]:
        self.groups.append(list(items))
        self.begun.set()
        await self.let.wait()
        for item in items:
            if item in self.fails:
                raise self.fails[item]
        return [item.upper() for item in items]

    def ask(self, *items: str) -> list[asyncio.Task[str]]:
        return [asyncio.create_task(self.grouped(item)) for item in items]

    async def first_begins(self) -> None:
        async with asyncio.timeout(30):
            await self.begun.wait()


async def all_of(tasks: Sequence[asyncio.Task[str]]) -> list[str | BaseException]:
    async with asyncio.timeout(30):
        return await asyncio.gather(*tasks, return_exceptions=True)


async def test_those_who_come_during_a_write_share_the_next_one() -> None:
    writer = Writer()
    [first] = writer.ask("a")
    await writer.first_begins()
    later = writer.ask("b", "c", "d")
    await asyncio.sleep(0)
    writer.let.set()
    assert await all_of([first, *later]) == ["A", "B", "C", "D"]
    assert writer.groups == [["a"], ["b", "c", "d"]]


async def test_a_caller_that_is_canceled_while_it_waits_is_left_out_and_the_others_are_served() -> None:
    writer = Writer()
    [first] = writer.ask("a")
    await writer.first_begins()
    quits, stays = writer.ask("b", "c")
    await asyncio.sleep(0)
    quits.cancel()
    await asyncio.sleep(0)
    writer.let.set()
    answers = await all_of([first, quits, stays])
    assert (answers[0], answers[2]) == ("A", "C") and isinstance(answers[1], asyncio.CancelledError)
    assert writer.groups == [["a"], ["c"]], "what it asked for had not begun"


async def test_a_caller_that_is_canceled_during_its_write_does_not_end_the_write() -> None:
    writer = Writer()
    quits, stays = writer.ask("a", "b")
    await writer.first_begins()
    [later] = writer.ask("c")
    await asyncio.sleep(0)
    quits.cancel()
    await asyncio.sleep(0)
    writer.let.set()
    answers = await all_of([quits, stays, later])
    assert isinstance(answers[0], asyncio.CancelledError) and answers[1:] == ["B", "C"]
    assert writer.groups == [["a", "b"], ["c"]], "it was written"


async def test_all_callers_may_be_canceled_and_the_next_one_is_served() -> None:
    writer = Writer()
    gone = writer.ask("a", "b")
    await writer.first_begins()
    for each in gone:
        each.cancel()
    assert all(isinstance(each, asyncio.CancelledError) for each in await all_of(gone))
    writer.let.set()
    assert await all_of(writer.ask("c")) == ["C"]


async def test_a_failure_of_the_data_is_its_own_callers_and_any_other_is_everyones() -> None:
    writer = Writer()
    writer.let.set()
    writer.fails["b"] = IntegrityError("INSERT", {}, ValueError("twice"))
    one, bad, two = await all_of(writer.ask("a", "b", "c"))
    assert (one, two) == ("A", "C") and isinstance(bad, IntegrityError)
    assert writer.groups == [["a", "b", "c"], ["a"], ["b"], ["c"]]
    writer.fails = {"e": RuntimeError("no disk")}
    assert [type(each) for each in await all_of(writer.ask("d", "e"))] == [RuntimeError] * 2
    assert await all_of(writer.ask("f")) == ["F"], "the next one is served"


async def test_two_of_one_key_are_written_one_after_the_other_and_a_group_is_bounded() -> None:
    writer = Writer()
    writer.let.set()
    assert await all_of(writer.ask("a1", "b1", "a2")) == ["A1", "B1", "A2"]
    assert writer.groups == [["a1", "b1"], ["a2"]]
    writer.groups.clear()
    many = [chr(1000 + number) for number in range(MOST + 5)]
    await all_of(writer.ask(*many))
    assert [len(group) for group in writer.groups] == [MOST, 5]


async def test_what_a_canceled_caller_of_the_store_asked_for_is_whole(store: Store) -> None:
    """Written with its event, or not at all; and the other callers have their answers."""
    me = await runner(store)
    claims = [await claimed(store, me) for _ in range(6)]
    asks = [
        asyncio.create_task(store.tasks.enter_stage(StageEntered(claim.lease, Stage.PROVISIONING), now=at(2)))
        for claim in claims
    ]
    await asyncio.sleep(0)
    for each in asks[::2]:
        each.cancel()
    async with asyncio.timeout(30):
        answers = await asyncio.gather(*asks, return_exceptions=True)
        assert answers[1::2] == [True] * 3
        assert await store.tasks.enter_stage(StageEntered(claims[1].lease, Stage.CONNECTING), now=at(3))
    for claim in claims[::2]:
        row = await store.tasks.get(claim.task.id)
        told = [event.kind for event in await store.events.list(task_id=claim.task.id)]
        assert (row.stage is Stage.PROVISIONING) == ("task.stage" in told)


@pytest.mark.parametrize("quits", [0, 1])
async def test_a_claim_that_is_given_up_leaves_the_other_one_its_task(store: Store, quits: int) -> None:
    me = await runner(store)
    for seconds in range(2):
        await store.tasks.submit((await claimed(store, me)).task.spec, now=at(seconds), deadline_at=at(9000))
    claim = {"max_vms": {}, "lease_seconds": 30, "now": at(5), "deadline": lambda _: at(900), "up_to": 1}
    asks = [asyncio.create_task(store.tasks.claim(me, {"small": 9}, **claim)) for _ in range(2)]
    await asyncio.sleep(0)
    asks[quits].cancel()
    async with asyncio.timeout(30):
        answers = await asyncio.gather(*asks, return_exceptions=True)
    assert isinstance(answers[quits], asyncio.CancelledError)
    [got] = answers[1 - quits]
    row = await store.tasks.get(got.task.id)
    assert row.lease == got.lease


async def test_facts_of_many_attempts_are_added_to_what_is_known_of_each(store: Store) -> None:
    me = await runner(store)
    leases = [(await claimed(store, me)).lease for _ in range(4)]
    stale = Lease(leases[0].task_id, 7, me)
    record = store.attempts.record_environment
    async with asyncio.timeout(60):
        answers = await asyncio.gather(
            *(record(lease, {f"fact {n}": n}) for n in range(3) for lease in leases),
            *(store.attempts.record_artifacts(lease, {"stdout": lease.task_id}) for lease in leases),
            record(stale, {"fact 0": "of another"}),
            record(leases[1], {"nobody keeps": float("nan")}),
            return_exceptions=True,
        )
    assert answers[:16] == [True] * 16 and answers[16] is False
    assert isinstance(answers[17], ValueError), "it is nobody else's failure"
    for lease in leases:
        attempt = await store.attempts.get(lease.task_id, 1)
        assert attempt is not None
        assert attempt.environment == {"fact 0": 0, "fact 1": 1, "fact 2": 2}
        assert attempt.artifacts == {"stdout": lease.task_id}
