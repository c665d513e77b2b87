"""What every database must do with tasks."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone

import pytest

from orchestrator.domain.errors import NotFound
from orchestrator.domain.outcome import Exited, Reason, Signaled, TimedOut, Usage, judge
from orchestrator.domain.task import Entrypoint, InputSpec, Limits, Stage, TaskSpec, TaskState, TraceProfile
from orchestrator.domain.vm import VmState
from orchestrator.store import (
    Claim,
    EventKind,
    Finished,
    Lease,
    StageEntered,
    Store,
    VmMoved,
    VmRequest,
)
from tests.conformance.queueing import T0, at, claimed, kinds, register, retried, runner, spec, submit, take_one


async def test_a_submitted_task_is_read_back_whole(store: Store) -> None:
    full = TaskSpec(
        pool="big",
        command=("python3", "a b.py", "naïve\n", "\udcff"),
        entrypoint=Entrypoint.BLIND_SANE,
        inputs=(InputSpec("/src/\udcfe", "data/\udcfe", "sha"), InputSpec("b", "c")),
        outputs=("*.csv", "**/x"),
        environment={"LANG": "nl_NL"},
        limits=Limits(timeout_seconds=1.5, memory_bytes=2**40, processes=7),
        trace=TraceProfile.FULL,
        name="mijn taak",
    )
    row = await submit(store, full, now=T0)
    assert row == await store.tasks.get(row.id)
    assert row.spec == full
    assert (row.state, row.attempt, row.lease, row.submitted_at) == (TaskState.QUEUED, 0, None, T0)
    assert row.submitted_at.tzinfo is UTC
    assert await kinds(store, row.id) == [EventKind.TASK_SUBMITTED]


async def test_text_that_no_database_keeps_is_shown_not_refused(store: Store) -> None:
    claim = await claimed(store)
    assert await store.tasks.finish(Finished(claim.lease, TaskState.FAILED, message="a\0b\udcffc\ud800"), now=at(2))
    assert (await store.tasks.get(claim.task.id)).message == "a\\x00b\\xffc\\ud800"


async def test_instants_are_utc_whatever_zone_they_came_in_and_naive_ones_are_refused(store: Store) -> None:
    east = T0.astimezone(timezone(timedelta(hours=5)))
    assert (await submit(store, spec(), now=east)).submitted_at.tzinfo is UTC
    with pytest.raises(Exception, match="without a time zone"):
        await store.tasks.expired(now=datetime(2026, 1, 1))


async def test_ids_sort_by_time_and_are_found_by_either_end(store: Store) -> None:
    rows = [await submit(store, spec(), now=at(n * 3600)) for n in range(3)]
    ids = [row.id for row in rows]
    assert ids == sorted(ids)
    assert all(len(i) == 16 and i == i.lower() for i in ids)
    middle = rows[1]
    assert await store.tasks.get(middle.id.upper()) == middle
    assert await store.tasks.get(middle.id[-6:]) == middle
    assert await store.tasks.get(middle.id[:10]) == middle


@pytest.mark.parametrize("reference", ["", "abc", "%%%%", "____", "not an id", "x" * 17, "01kb\0", "é" * 5])
async def test_what_is_no_id_is_refused_with_a_remedy(store: Store, reference: str) -> None:
    await submit(store, spec(), now=T0)
    with pytest.raises(NotFound) as refused:
        await store.tasks.get(reference)
    assert refused.value.field == "task"
    assert "at least 4" in refused.value.remedy


async def test_an_unknown_id_names_its_near_misses(store: Store) -> None:
    task = await submit(store, spec(), now=T0)
    wrong = task.id[:-1] + ("0" if task.id[-1] != "0" else "1")
    for typed in (wrong, wrong[-6:]):
        with pytest.raises(NotFound, match=f"did you mean {task.id}"):
            await store.tasks.get(typed)


async def test_an_ambiguous_id_names_the_candidates(store: Store) -> None:
    one, two = [await submit(store, spec(), now=T0) for _ in range(2)]
    with pytest.raises(NotFound, match="not the only one") as refused:
        await store.tasks.get(one.id[:10])
    assert one.id in str(refused.value) and two.id in str(refused.value)


async def test_lists_are_newest_first_filtered_and_paged(store: Store) -> None:
    small = [await submit(store, spec("small"), now=at(n)) for n in range(4)]
    big = await submit(store, spec("big"), now=at(9), hold=True)
    assert [t.id for t in await store.tasks.list()] == [big.id, *[t.id for t in reversed(small)]]
    assert [t.id for t in await store.tasks.list(pool="big")] == [big.id]
    assert [t.id for t in await store.tasks.list(states=[TaskState.NEW])] == [big.id]
    assert await store.tasks.list(states=[]) == ()
    page = await store.tasks.list(limit=2, pool="small")
    after = await store.tasks.list(limit=2, pool="small", before=page[-1].id)
    assert [t.id for t in (*page, *after)] == [t.id for t in reversed(small)]
    assert await store.tasks.counts() == {("small", TaskState.QUEUED): 4, ("big", TaskState.NEW): 1}


async def test_the_oldest_task_of_a_served_pool_is_claimed_first(store: Store) -> None:
    me = await runner(store, "small", "big")
    await submit(store, spec("other"), now=at(0))
    first, second = await submit(store, spec("big"), now=at(1)), await submit(store, spec(), now=at(2))
    taken = [await take_one(store, me, ["small", "big"], lease_seconds=30, now=at(5)) for _ in range(3)]
    assert [None if c is None else c.task.id for c in taken] == [first.id, second.id, None]
    assert taken[0] is not None
    assert taken[0].lease == Lease(first.id, 1, me) == taken[0].task.lease
    assert (taken[0].task.state, taken[0].task.lease_expires_at) == (TaskState.RUNNING, at(35))
    assert await take_one(store, me, [], lease_seconds=30, now=at(5)) is None


async def test_a_claim_may_be_for_one_task_alone(store: Store) -> None:
    me = await runner(store)
    first, second = [await submit(store, spec(), now=at(n)) for n in range(2)]
    claim = await take_one(store, me, ["small"], lease_seconds=30, now=at(5), only=second.id)
    assert claim is not None and claim.task.id == second.id
    assert await take_one(store, me, ["small"], lease_seconds=30, now=at(5), only=second.id) is None
    assert (await store.tasks.get(first.id)).state is TaskState.QUEUED


async def test_a_pool_has_no_more_machines_than_it_may(store: Store) -> None:
    """A task that is held counts as one, whether its VM is there yet or not; so does a VM that its task has left."""
    runner_id = await runner(store, "small", "free")
    for pool in ("small", "small", "small", "free"):
        await submit(store, spec(pool), now=T0)

    async def take() -> Claim | None:
        pools = ["small", "free"]
        return await take_one(store, runner_id, pools, lease_seconds=30, now=at(1), max_vms={"small": 2})

    taken = [claim for claim in await asyncio.gather(*(take() for _ in range(5))) if claim is not None]
    assert sorted(claim.task.spec.pool for claim in taken) == ["free", "small", "small"]
    first = next(claim for claim in taken if claim.task.spec.pool == "small")
    vm = await store.vms.request(
        VmRequest(pool="small", image_version="v", runner_id=runner_id, deadline_at=at(9), lease=first.lease), now=at(2)
    )
    assert vm is not None
    assert await take() is None
    assert await store.tasks.finish(Finished.by(first.lease, judge(Exited(0))), now=at(3))
    assert await take() is None
    assert await store.vms.move(VmMoved(vm.id, VmState.DESTROYED, runner_id, close_proof="never made"), now=at(4))
    assert await take() is not None


async def test_a_runner_that_nobody_knows_claims_nothing(store: Store) -> None:
    task = await submit(store, spec(), now=T0)
    with pytest.raises(Exception, match=r"(?i)foreign key"):
        await take_one(store, "nobody", ["small"], lease_seconds=30, now=T0)
    assert (await store.tasks.get(task.id)).state is TaskState.QUEUED
    assert await store.attempts.of_task(task.id) == ()


async def test_a_held_task_waits_for_its_release(store: Store) -> None:
    me = await runner(store)
    task = await submit(store, spec(), now=T0, hold=True)
    assert await take_one(store, me, ["small"], lease_seconds=30, now=T0) is None
    assert await store.tasks.release(task.id, now=at(1))
    assert not await store.tasks.release(task.id, now=at(1))
    assert await take_one(store, me, ["small"], lease_seconds=30, now=at(2)) is not None
    assert await kinds(store, task.id) == ["task.submitted", "task.released", "task.claimed"]


async def test_a_life_leaves_its_stages_outcome_and_events(store: Store) -> None:
    claim = await claimed(store)
    lease = claim.lease
    for n, stage in enumerate(Stage):
        assert await store.tasks.enter_stage(StageEntered(lease, stage), now=at(10 + n))
        assert (await store.tasks.get(lease.task_id)).stage is stage
    assert await store.attempts.record_outcome(lease, Exited(3), Usage(1.25, 2**33))
    assert await store.attempts.record_artifacts(lease, {"stdout": "a"})
    assert await store.attempts.record_artifacts(lease, {"trace": "b"})
    assert await store.attempts.record_environment(lease, {"kernel": "6.1", "cpus": 2})
    assert await store.tasks.finish(Finished.by(lease, judge(Exited(3))), now=at(30))
    task = await store.tasks.get(lease.task_id)
    assert (task.state, task.reason, task.exit_code, task.stage) == (TaskState.FAILED, Reason.EXIT_NONZERO, 3, None)
    assert (task.started_at, task.finished_at, task.lease, task.lease_expires_at) == (at(1), at(30), None, None)
    attempt = await store.attempts.get(lease.task_id, 1)
    assert attempt is not None
    assert attempt.timings == {stage: (at(10 + n), at(11 + n) if n < 7 else at(30)) for n, stage in enumerate(Stage)}
    assert (attempt.outcome, attempt.usage) == (Exited(3), Usage(1.25, 2**33))
    assert attempt.artifacts == {"stdout": "a", "trace": "b"}
    assert attempt.environment == {"kernel": "6.1", "cpus": 2}
    assert (attempt.stage, attempt.finished_at) == (Stage.DESTROYING, at(30))
    events = await store.events.list(task_id=lease.task_id)
    assert [e.kind for e in events] == ["task.submitted", "task.claimed", *["task.stage"] * 8, "task.failed"]
    assert events[-1].data == {"reason": "exit_nonzero", "message": "exited with 3", "exit_code": 3}
    assert {(e.attempt, e.runner_id) for e in events[1:]} == {(1, lease.runner_id)}


async def test_stages_go_forward_only_and_any_may_jump_to_destroying(store: Store) -> None:
    claim = await claimed(store)

    async def enter(stage: Stage) -> bool:
        return await store.tasks.enter_stage(StageEntered(claim.lease, stage), now=at(2))

    assert await enter(Stage.SEALING)
    assert not await enter(Stage.SEALING)
    assert not await enter(Stage.CONNECTING)
    assert await enter(Stage.DESTROYING)
    assert not await enter(Stage.EXECUTING)
    attempt = await store.attempts.get(claim.task.id, 1)
    assert attempt is not None and list(attempt.timings) == [Stage.SEALING, Stage.DESTROYING]


async def test_a_heartbeat_extends_the_lease_and_brings_the_cancel_flag(store: Store) -> None:
    claim = await claimed(store)
    beat = await store.tasks.heartbeat(claim.lease, lease_seconds=30, now=at(10))
    assert beat is not None and (beat.lease_expires_at, beat.cancel_requested) == (at(40), False)
    asked = await store.tasks.request_cancel(claim.task.id, now=at(11))
    assert (asked.state, asked.cancel_requested_at) == (TaskState.RUNNING, at(11))
    again = await store.tasks.request_cancel(claim.task.id, now=at(12))
    assert again.cancel_requested_at == at(11)
    beat = await store.tasks.heartbeat(claim.lease, lease_seconds=30, now=at(13))
    assert beat is not None and beat.cancel_requested
    assert (await kinds(store, claim.task.id)).count("task.cancel_requested") == 1


@pytest.mark.parametrize("hold", [False, True])
async def test_a_task_that_nobody_holds_is_canceled_at_once(store: Store, hold: bool) -> None:
    me = await runner(store)
    task = await submit(store, spec(), now=T0, hold=hold)
    canceled = await store.tasks.request_cancel(task.id, now=at(1))
    assert (canceled.state, canceled.reason, canceled.finished_at) == (TaskState.CANCELED, Reason.CANCELED, at(1))
    assert canceled.exit_code == 130
    assert await store.tasks.request_cancel(task.id, now=at(2)) == canceled
    assert await take_one(store, me, ["small"], lease_seconds=30, now=at(3)) is None
    assert not await store.tasks.release(task.id, now=at(3))
    assert await kinds(store, task.id) == ["task.submitted", "task.canceled"]


async def test_canceling_a_finished_task_changes_nothing_and_an_unknown_one_is_not_found(store: Store) -> None:
    claim = await claimed(store)
    await store.tasks.finish(Finished(claim.lease, TaskState.FINISHED, exit_code=0), now=at(2))
    before = await store.tasks.get(claim.task.id)
    assert await store.tasks.request_cancel(claim.task.id, now=at(3)) == before
    with pytest.raises(NotFound):
        await store.tasks.request_cancel("0000000000000000", now=at(3))


async def test_a_requeued_task_gets_a_new_attempt_and_the_old_one_may_write_nothing(store: Store) -> None:
    old = (await claimed(store)).lease
    await store.tasks.enter_stage(StageEntered(old, Stage.PROVISIONING), now=at(2))
    assert await store.tasks.requeue(retried(old, Reason.RUNNER_LOST, "gone"), now=at(3)) is TaskState.QUEUED
    queued = await store.tasks.get(old.task_id)
    assert (queued.state, queued.reason, queued.message) == (TaskState.QUEUED, Reason.RUNNER_LOST, "gone")
    assert (queued.lease, queued.stage, queued.finished_at) == (None, None, None)
    claim = await take_one(store, old.runner_id, ["small"], lease_seconds=30, now=at(4))
    assert claim is not None and claim.lease.attempt == 2
    assert (claim.task.reason, claim.task.message, claim.task.started_at) == (None, "", at(1))
    before = await store.tasks.get(old.task_id), await store.attempts.of_task(old.task_id)
    await _refused(store, old)
    await _refused(store, Lease(old.task_id, 2, await runner(store)))
    assert before == (await store.tasks.get(old.task_id), await store.attempts.of_task(old.task_id))


async def _refused(store: Store, lease: Lease) -> None:
    """Every write of a runner under a lease that is not (or no longer) good does nothing, and says so."""
    log = await store.events.list()
    assert not await store.tasks.enter_stage(StageEntered(lease, Stage.DESTROYING), now=at(50))
    assert await store.tasks.heartbeat(lease, lease_seconds=30, now=at(50)) is None
    assert not await store.tasks.finish(Finished(lease, TaskState.FINISHED), now=at(50))
    assert await store.tasks.requeue(retried(lease, Reason.INTERNAL), now=at(50)) is None
    assert not await store.attempts.record_outcome(lease, Exited(0))
    assert not await store.attempts.record_artifacts(lease, {"stdout": "mine"})
    assert not await store.attempts.record_environment(lease, {"a": 1})
    assert await store.events.list() == log


async def test_a_finished_task_takes_no_further_write(store: Store) -> None:
    lease = (await claimed(store)).lease
    assert await store.tasks.finish(Finished.by(lease, judge(Signaled("KILL"))), now=at(2))
    await _refused(store, lease)
    assert (await store.tasks.get(lease.task_id)).exit_code == 137


async def test_a_requeue_of_a_task_that_somebody_canceled_cancels_it(store: Store) -> None:
    lease = (await claimed(store)).lease
    await store.tasks.request_cancel(lease.task_id, now=at(2))
    assert await store.tasks.requeue(retried(lease, Reason.RUNNER_LOST), now=at(3)) is TaskState.CANCELED
    task = await store.tasks.get(lease.task_id)
    assert (task.state, task.reason, task.finished_at) == (TaskState.CANCELED, Reason.CANCELED, at(3))
    assert task.exit_code == 130
    assert (await kinds(store, lease.task_id))[-1] == "task.canceled"


async def test_upkeep_ends_only_what_is_expired(store: Store) -> None:
    lease = (await claimed(store)).lease  # good until 31
    assert await store.tasks.expired(now=at(30)) == ()
    [expired] = await store.tasks.expired(now=at(31))
    assert expired.lease == lease
    await store.tasks.heartbeat(lease, lease_seconds=30, now=at(32))  # the runner is back before upkeep writes
    lost = Finished(lease, TaskState.FAILED, Reason.RUNNER_LOST, exit_code=125)
    assert not await store.tasks.finish(lost, now=at(33), if_expired=True)
    assert await store.tasks.requeue(retried(lease, Reason.RUNNER_LOST), now=at(33), if_expired=True) is None
    assert await store.tasks.finish(lost, now=at(62), if_expired=True)
    assert await store.tasks.heartbeat(lease, lease_seconds=30, now=at(63)) is None
    assert await store.tasks.expired(now=at(99)) == ()


async def test_a_queued_task_that_can_never_run_is_rejected_with_its_reason(store: Store) -> None:
    task = await submit(store, spec(), now=T0)
    assert await store.tasks.reject(task.id, Reason.PROVISION_FAILED, "no such pool", now=at(1))
    assert not await store.tasks.reject(task.id, Reason.PROVISION_FAILED, "again", now=at(2))
    row = await store.tasks.get(task.id)
    assert (row.state, row.reason, row.message) == (TaskState.FAILED, Reason.PROVISION_FAILED, "no such pool")


def test_only_an_end_finishes() -> None:
    with pytest.raises(ValueError, match="RUNNING is not an end"):
        Finished(Lease("t", 1, "r"), TaskState.RUNNING)


async def test_events_are_numbered_in_order_and_listed_from_any_point(store: Store) -> None:
    claim = await claimed(store)
    number = await store.events.append("look", now=at(5), task_id=claim.task.id, attempt=1, data={"n": 1})
    events = await store.events.list()
    assert [e.number for e in events] == sorted({e.number for e in events})
    assert events[-1].number == number
    assert (events[-1].kind, events[-1].at, events[-1].data) == ("note", at(5), {"message": "look", "n": 1})
    assert await store.events.list(after=number) == ()
    assert await store.events.list(after=events[0].number, limit=1) == (events[1],)
    assert await store.events.list(task_id="other") == ()


async def test_runners_are_alive_while_they_beat_and_have_not_left(store: Store) -> None:
    one = await register(store, host="a", pid=1, pools=["small", "big"], now=T0)
    two = await register(store, host="b", pid=2, pools=[], now=T0)
    assert one.pools == ("small", "big")
    assert await store.runners.alive(now=at(30)) == (
        min(one, two, key=lambda r: r.id),
        max(one, two, key=lambda r: r.id),
    )
    assert await store.runners.heartbeat(one.id, now=at(25))
    assert [r.id for r in await store.runners.alive(now=at(50))] == [one.id]
    assert await store.runners.leave(one.id, now=at(51))
    assert not await store.runners.leave(one.id, now=at(52))
    assert not await store.runners.heartbeat(one.id, now=at(53))
    assert not await store.runners.heartbeat("nobody", now=at(53))
    assert await store.runners.alive(now=at(53)) == ()
    left = await store.runners.get(one.id)
    assert left is not None and left.left_at == at(51)
    assert await store.runners.get("nobody") is None


async def test_two_claimers_never_get_the_same_task(store_url: str) -> None:
    """Four stores on one file, as four processes have them, each with several claimers at once."""
    stores = [await Store.open(store_url) for _ in range(4)]
    try:
        submitted = {(await submit(stores[0], spec(), now=T0)).id for _ in range(60)}

        async def claimer(store: Store) -> list[str]:
            me, mine = await runner(store), []
            while claim := await take_one(store, me, ["small"], lease_seconds=30, now=at(1)):
                mine.append(claim.task.id)
            return mine

        taken = await asyncio.gather(*(claimer(store) for store in stores for _ in range(3)))
        claimed_ids = [task_id for mine in taken for task_id in mine]
        assert len(claimed_ids) == len(set(claimed_ids))
        assert set(claimed_ids) == submitted
        attempts = [a for t in submitted for a in await stores[0].attempts.of_task(t)]
        assert len(attempts) == 60
    finally:
        for store in stores:
            await store.close()


async def test_of_many_finishes_at_once_one_wins(store_url: str, store: Store) -> None:
    lease = (await claimed(store)).lease
    other = await Store.open(store_url)
    verdicts = [judge(Exited(n)) for n in range(4)] + [judge(TimedOut(2))]
    results = await asyncio.gather(
        *((store, other)[n % 2].tasks.finish(Finished.by(lease, v), now=at(2)) for n, v in enumerate(verdicts))
    )
    await other.close()
    assert sorted(results) == [False, False, False, False, True]
    won = verdicts[results.index(True)]
    task = await store.tasks.get(lease.task_id)
    assert (task.state.value, task.exit_code, task.message) == (won.state, won.exit_code, won.message)
    assert len([k for k in await kinds(store, lease.task_id) if k in ("task.finished", "task.failed")]) == 1


async def test_writers_that_read_first_wait_for_each_other_instead_of_failing(store_url: str, store: Store) -> None:
    me = await runner(store)
    leases = [(await claimed(store, me)).lease for _ in range(4)]
    other = await Store.open(store_url)
    try:
        recorded = await asyncio.gather(
            *(
                (store, other)[n % 2].attempts.record_artifacts(lease, {f"log {n}": str(n)})
                for lease in leases
                for n in range(8)
            )
        )
    finally:
        await other.close()
    assert all(recorded)
    for lease in leases:
        attempt = await store.attempts.get(lease.task_id, 1)
        assert attempt is not None and attempt.artifacts == {f"log {n}": str(n) for n in range(8)}
