"""What the scheduler measures: the database, the rounds of chores, attempts that upkeep ended."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.artifacts import Artifacts
from orchestrator.domain.outcome import Exited, Reason
from orchestrator.domain.pool import Pool
from orchestrator.domain.task import Stage, TaskSpec, TaskState, Terms
from orchestrator.domain.vm import VmState
from orchestrator.localcloud.hypervisors.simulated import SimulatedHypervisor
from orchestrator.localcloud.knobs import CloudSettings
from orchestrator.localcloud.server import LocalCloud
from orchestrator.opennebula import Cloud
from orchestrator.reports.ended import ended
from orchestrator.scheduler.deadlines import Deadlines
from orchestrator.scheduler.loop import CHORES, serve
from orchestrator.scheduler.measure import Measure
from orchestrator.scheduler.upkeep import Upkeep
from orchestrator.store import Claim, Finished, Requeued, RunnerRow, StageEntered, Store, TaskRow, VmMoved, VmRequest
from orchestrator.telemetry import Metrics, Telemetry

POOLS = {"small": Pool(name="small", image="debian-12"), "large": Pool(name="large", image="debian-12")}
DAY = timedelta(days=1)


@pytest.fixture
def upkeep(store: Store, tmp_path: Path) -> Upkeep:
    async def read_pools() -> Mapping[str, Pool]:
        return POOLS

    metrics = Metrics(POOLS)
    metrics.exposed = True
    nowhere = Cloud("http://127.0.0.1:9/RPC2", "nobody:nothing")
    artifacts = Artifacts(tmp_path / "artifacts")
    return Upkeep(store, artifacts, nowhere, dict(POOLS), read_pools, telemetry=Telemetry(metrics))


def values(upkeep: Upkeep) -> dict[tuple[str, ...], float]:
    """(name, label values in the order of their names) → value."""
    shown = generate_latest(upkeep.telemetry.metrics.registry).decode()
    return {
        (sample.name.removeprefix("mayfly_"), *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(shown)
        for sample in family.samples
    }


async def submit(
    store: Store, pool: str = "small", *, ago: float = 0, deadline: timedelta = DAY, **terms: Any
) -> TaskRow:
    now = store.clock.now()
    spec = TaskSpec(pool=pool, command=("true",), terms=Terms(**terms))
    return await store.tasks.submit(spec, now=now - timedelta(seconds=ago), deadline_at=now + deadline)


async def register(store: Store, *pools: str) -> RunnerRow:
    now = store.clock.now()
    return await store.runners.register(name=f"r{now.timestamp()}", host="here", pid=1, pools=pools, now=now)


async def take(store: Store, runner: RunnerRow, pool: str = "small", *, deadline: timedelta = DAY) -> Claim:
    now = store.clock.now()
    limits: dict[str, Any] = {"max_vms": {pool: 100}, "lease_seconds": 60, "deadline": lambda _: now + deadline}
    [claim] = await store.tasks.claim(runner.id, {pool: 1}, now=now, **limits)
    return claim


@asynccontextmanager
async def measured(upkeep: Upkeep) -> AsyncIterator[None]:
    """What is over at the end of the block has been measured."""
    async with upkeep.telemetry.going(partial(ended, upkeep.store)):
        yield


async def test_the_chore_counts_vms_queues_and_runners(store: Store, upkeep: Upkeep) -> None:
    for ago in (10, 1000, 5):
        await submit(store, ago=ago)
    await submit(store, ago=5000, not_before=store.clock.now() + DAY)
    await submit(store, "gone from the inventory")
    runner = await register(store, "small", "large")
    await take(store, runner)  # the one that waited longest
    drains = await register(store, "small")
    await store.runners.drain(drains.id, now=store.clock.now())
    in_an_hour = store.clock.now() + timedelta(hours=1)
    for count, path in ((3, ()), (2, (VmState.BOOTING,)), (1, (VmState.BOOTING, VmState.READY))):
        for _ in range(count):
            now = store.clock.now()
            vm = await store.vms.request(VmRequest("large", "v1", runner.id, in_an_hour), now=now)
            assert vm is not None
            for state in path:
                assert await store.vms.move(VmMoved(vm.id, state, runner.id, deadline_at=in_an_hour), now=now)
    assert await Measure(upkeep).run_once() == []
    told = values(upkeep)
    assert [told["vms", "large", state] for state in ("REQUESTED", "BOOTING", "READY", "IN_USE")] == [3, 2, 1, 0]
    assert told["vms", "small", "READY"] == 0
    assert (told["ready_vms", "large"], told["ready_vms", "small"]) == (1, 0)
    assert [told["tasks_waiting", pool] for pool in ("small", "large", "other")] == [3, 0, 1]
    assert [told["tasks_held", pool] for pool in ("small", "large")] == [1, 0]
    assert 10 <= told["oldest_wait_seconds", "small"] < 900
    assert told["oldest_wait_seconds", "large"] == 0
    assert [told["runners", pool] for pool in ("small", "large")] == [1, 1]
    assert (told["quarantined", "version"], told["quarantined", "host"]) == (0, 0)


async def test_a_version_whose_launches_fail_counts_as_quarantined(store: Store, upkeep: Upkeep) -> None:
    runner = await register(store, "small")
    for _ in range(POOLS["small"].warm.max_failures):
        now = store.clock.now()
        vm = await store.vms.request(VmRequest("small", "v1", runner.id, now + DAY), now=now)
        assert vm is not None
        assert await store.vms.record_launch(vm.id, ok=False, message="no SSH", host="", now=now)
    await Measure(upkeep).run_once()
    assert values(upkeep)["quarantined", "version"] == 1


@pytest.mark.parametrize(("hosts", "kind"), [(1, "version"), (2, "host")])
async def test_what_is_quarantined_is_told_as_runners_see_it(
    store: Store, upkeep: Upkeep, tmp_path: Path, hosts: int, kind: str
) -> None:
    runner = await register(store, "small")
    for _ in range(POOLS["small"].warm.max_failures):
        now = store.clock.now()
        vm = await store.vms.request(VmRequest("small", "v1", runner.id, now + DAY), now=now)
        assert vm is not None
        assert await store.vms.record_launch(vm.id, ok=False, message="no SSH", host="localhost", now=now)
    hypervisor = SimulatedHypervisor()
    with LocalCloud(tmp_path / "cloud", hypervisor=hypervisor, knobs=CloudSettings(hosts=hosts)) as local:
        async with Cloud(local.url, local.session) as cloud:
            await Measure(dataclasses.replace(upkeep, cloud=cloud)).run_once()
    hypervisor.close()
    told = values(upkeep)
    assert {each: told["quarantined", each] for each in ("version", "host")} == {
        "version": kind == "version",
        "host": kind == "host",
    }


async def test_without_anybody_to_read_them_nothing_is_looked_at(store: Store, upkeep: Upkeep) -> None:
    upkeep.telemetry.metrics.exposed = False
    await store.close()
    assert await Measure(upkeep).run_once() == []


async def test_a_look_that_fails_leaves_no_old_one(store: Store, upkeep: Upkeep) -> None:
    chore = Measure(upkeep)
    await chore.run_once()
    assert ("vms", "small", "READY") in values(upkeep)
    async with store._database.writing() as connection:
        await connection.execute(text("ALTER TABLE queues RENAME TO elsewhere"))
    with pytest.raises(SQLAlchemyError):
        await chore.run_once()
    assert ("vms", "small", "READY") not in values(upkeep)


async def test_the_rounds_of_chores_are_timed_and_their_failures_counted(upkeep: Upkeep) -> None:
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(upkeep, stop))
    try:
        async with asyncio.timeout(60):
            awaited = ("admit", "ok"), ("measure", "ok"), ("reap", "failed")
            while not all(values(upkeep).get(("chore_seconds_count", *each), 0) > 0 for each in awaited):
                await asyncio.sleep(0.02)
        told = values(upkeep)
        assert told["scheduler_leads",] == 1
        assert ("chore_last_success_timestamp_seconds", "admit") in told
        assert ("chore_last_success_timestamp_seconds", "reap") not in told  # OpenNebula is nowhere
        assert ("tasks_waiting", "small") in told
        assert {
            name for kind, name, *_ in (key for key in told if len(key) == 3) if kind == "chore_seconds_count"
        } == set(CHORES)
    finally:
        stop.set()
        await serving
    told = values(upkeep)
    assert told["scheduler_leads",] == 0
    assert ("tasks_waiting", "small") not in told


async def test_an_attempt_that_upkeep_ends_is_measured(store: Store, upkeep: Upkeep) -> None:
    runner = await register(store, "small")
    await submit(store)
    claim = await take(store, runner, deadline=-timedelta(seconds=1))
    entered = StageEntered(claim.lease, Stage.EXECUTING)
    assert await store.tasks.enter_stage(entered, now=store.clock.now())
    async with measured(upkeep):
        await Deadlines(upkeep).run_once()
    told = values(upkeep)
    assert told["attempts_ended_total", "small", "deadline_passed", "failed"] == 1
    assert told["stage_seconds_count", "small", "EXECUTING"] == 1
    assert told["start_seconds_count", "small", "warm"] == 1


async def test_attempts_are_read_again_as_the_database_has_them(store: Store) -> None:
    runner = await register(store, "small")
    task = await submit(store, ago=30)
    first = await take(store, runner)
    assert await ended(store, task.id, 1) is None
    now = store.clock.now()
    again = Requeued(first.lease, Reason.UNREACHABLE, "no SSH", not_before=None, deadline_at=now + DAY)
    assert await store.tasks.requeue(again, now=now)
    second = await take(store, runner)
    for stage in (Stage.STAGING_IN, Stage.EXECUTING):
        assert await store.tasks.enter_stage(StageEntered(second.lease, stage), now=store.clock.now())
    await store.attempts.record_outcome(second.lease, Exited(0))
    assert await store.tasks.finish(Finished(second.lease, TaskState.FINISHED), now=store.clock.now())
    requeued, finished = await ended(store, task.id, 1), await ended(store, task.id, 2)
    assert requeued is not None and finished is not None
    assert (requeued.result, requeued.reason, requeued.message) == ("requeued", Reason.UNREACHABLE, "no SSH")
    assert (requeued.stages, requeued.start_seconds) == ({}, None)
    assert 29 < (requeued.started_at - requeued.queued_at).total_seconds() < 300
    assert (finished.result, finished.reason, finished.outcome) == ("finished", None, "Exited")
    assert finished.queued_at == requeued.finished_at
    assert list(finished.stages) == [Stage.STAGING_IN, Stage.EXECUTING]
    assert finished.warm and finished.runner_id == runner.id
    assert await ended(store, task.id, 3) is None
