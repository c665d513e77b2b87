"""What people read of a task: the notes that no state tells, and what it waits for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from orchestrator.artifacts import Artifacts
from orchestrator.decide.waiting import Waiting
from orchestrator.domain.outcome import Reason, stopped
from orchestrator.domain.pool import Pool
from orchestrator.domain.task import Entrypoint, Packages, Stage, TaskSpec, TaskState, Terms
from orchestrator.domain.vm import VmState
from orchestrator.reports.task import Report, report_of
from orchestrator.reports.text import lines
from orchestrator.reports.waiting import Line, Standing
from orchestrator.store import Claim, Finished, Requeued, StageEntered, Store, TaskRow, VmMoved, VmRequest
from tests.conformance.queueing import register, submit

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


async def test_a_note_is_in_the_report_of_its_task_and_in_no_other(tmp_path: Path) -> None:
    async with await Store.open(f"sqlite+aiosqlite:///{tmp_path / 'mayfly.db'}") as store:
        artifacts = Artifacts(tmp_path / "artifacts")
        noted, other = [await submit(store, TaskSpec(pool="p", command=("true",)), now=NOW) for _ in range(2)]
        await store.events.append("not all of the outputs were taken", now=NOW, task_id=noted.id, attempt=1)
        report = await report_of(store, artifacts, noted)
        assert report["notes"] == [{"at": NOW, "attempt": 1, "message": "not all of the outputs were taken"}]
        assert "note      not all of the outputs were taken" in list(lines(report))
        assert (await report_of(store, artifacts, other))["notes"] == []


async def test_a_task_waits_for_those_that_were_added_later_too(tmp_path: Path) -> None:
    async with await Store.open(f"sqlite+aiosqlite:///{tmp_path / 'mayfly.db'}") as store:
        plain = TaskSpec(pool="p", command=("true",))
        one, two = [await submit(store, plain, now=NOW + timedelta(seconds=n)) for n in range(2)]
        spec = TaskSpec(pool="p", command=("true",), terms=Terms(depends_on=(two.id,)))
        task = await submit(store, spec, now=NOW + timedelta(seconds=2), hold=True)
        await store.tasks.depend(task.id, [one.id, two.id], now=NOW)
        report = await report_of(store, Artifacts(tmp_path / "artifacts"), task)
        assert report["depends_on"] == [two.id, one.id]
        assert any(f"after {two.id}, {one.id}" in line for line in lines(report))


async def test_a_task_that_waits_says_what_for(tmp_path: Path) -> None:
    pools = {"p": Pool(name="p", image="debian-12", max_vms=1)}
    async with await Store.open(f"sqlite+aiosqlite:///{tmp_path / 'mayfly.db'}") as store:
        now = store.clock.now()
        task = await submit(store, TaskSpec(pool="p", command=("true",)), now=now)
        behind = await submit(store, TaskSpec(pool="p", command=("true",)), now=now + timedelta(milliseconds=9))

        async def standing(task: TaskRow, pools: Mapping[str, Pool] = pools) -> Standing:
            found = await Line(store, pools).standing(await store.tasks.get(task.id))
            assert found is not None
            return found

        assert (await standing(task, {})).waiting.reason is Reason.NO_SUCH_POOL
        assert (await standing(task)).waiting.reason is Reason.NO_RUNNER
        runner = await register(store, host="here", pid=1, pools=("p",), now=now)
        assert (await standing(task)).waiting.message == "it is the next one"
        assert (await standing(behind)).waiting.message == "1 task is before it"
        assert [(await standing(each)).position for each in (task, behind)] == [1, 2]
        vm = VmRequest(pool="p", image_version="v", runner_id=runner.id, deadline_at=now + timedelta(minutes=1))
        assert await store.vms.request(vm, now=now) is not None
        full = await standing(task)
        assert full.waiting == Waiting(Reason.MAX_VMS, "pool p may have 1 machines, and has 1")
        report = await report_of(store, Artifacts(tmp_path / "artifacts"), task, standing=full)
        assert f"waits     {full.waiting.message}" in list(lines(report))
        assert report["waits_for"]["reason"] == "max_vms"
        canceled = await store.tasks.request_cancel(task.id, now=now)
        assert await Line(store, pools).standing(canceled) is None


async def test_canceling_is_shown_until_the_machine_is_gone(tmp_path: Path) -> None:
    async with await Store.open(f"sqlite+aiosqlite:///{tmp_path / 'mayfly.db'}") as store:
        artifacts = Artifacts(tmp_path / "artifacts")
        task, claim = await submitted_and_claimed(store)
        now = store.clock.now()
        vm = VmRequest(
            *("p", "v", claim.lease.runner_id, now + timedelta(minutes=1)),
            lease=claim.lease,
        )
        made = await store.vms.request(vm, now=now)
        assert made is not None

        async def report() -> Report:
            return await report_of(store, artifacts, await store.tasks.get(task.id))

        assert (await report())["canceling"] is False
        await store.tasks.request_cancel(task.id, now=now)
        assert (await report())["canceling"] is True
        assert "state     RUNNING, canceling" in list(lines(await report()))
        assert await store.tasks.finish(Finished.by(claim.lease, stopped(None)), now=now)
        after = await report()
        assert (after["state"], after["canceling"]) == ("CANCELED", True)
        for state, more in (
            (VmState.DESTROYING, {"deadline_at": now + timedelta(minutes=1)}),
            (VmState.DESTROYED, {"close_proof": "OpenNebula says DONE of VM 7"}),
        ):
            assert await store.vms.move(VmMoved(made.id, state, claim.lease.runner_id, **more), now=now)
        assert (await report())["canceling"] is False


async def test_every_attempt_says_how_it_ended(tmp_path: Path) -> None:
    async with await Store.open(f"sqlite+aiosqlite:///{tmp_path / 'mayfly.db'}") as store:
        task, first = await submitted_and_claimed(store)
        now = store.clock.now()
        again = Requeued(first.lease, Reason.UNREACHABLE, "no SSH", not_before=None, deadline_at=now + timedelta(1))
        assert await store.tasks.requeue(again, now=now)
        _, second = await submitted_and_claimed(store, task)
        assert await store.tasks.finish(Finished(second.lease, TaskState.FINISHED, message="exited 0"), now=now)
        report = await report_of(store, Artifacts(tmp_path / "artifacts"), await store.tasks.get(task.id))
        told = [(each["number"], each["requeued"], each["reason"], each["message"]) for each in report["attempts"]]
        assert told == [(1, True, "unreachable", "no SSH"), (2, False, None, "exited 0")]
        assert "attempt 1 (tried again): no SSH" in list(lines(report))


async def submitted_and_claimed(store: Store, task: TaskRow | None = None) -> tuple[TaskRow, Claim]:
    """A task (a new one, unless given), and a runner's claim to it."""
    now = store.clock.now()
    task = task or await submit(store, TaskSpec(pool="p", command=("true",)), now=now)
    runner = await register(store, host="here", pid=1, pools=("p",), now=now)
    limits = {"max_vms": {"p": 9}, "lease_seconds": 60.0, "deadline": lambda _: now + timedelta(hours=1)}
    [claim] = await store.tasks.claim(runner.id, {"p": 1}, now=now, only=task.id, **limits)
    return task, claim


async def test_where_the_time_went_in_several_attempts(tmp_path: Path) -> None:
    async with await Store.open(f"sqlite+aiosqlite:///{tmp_path / 'mayfly.db'}") as store:
        artifacts = Artifacts(tmp_path / "artifacts")
        task = await submit(store, TaskSpec(pool="p", command=("true",)), now=store.clock.now())

        async def shown(in_seconds: float) -> list[str]:
            """The lines that tell where the time went, as somebody sees them so much later."""
            report = await report_of(store, artifacts, await store.tasks.get(task.id))
            now = store.clock.now() + timedelta(seconds=in_seconds)
            return [line for line in lines(report, now) if line.startswith(("attempt", "  ")) and "B" not in line]

        [wait] = await shown(3600)
        assert re.fullmatch(r"  QUEUED +36\d\d\.\d\d s …", wait)
        _, first = await submitted_and_claimed(store, task)
        for stage in (Stage.PROVISIONING, Stage.CONNECTING):
            assert await store.tasks.enter_stage(StageEntered(first.lease, stage), now=store.clock.now())
        head, queued, *stages = await shown(100)
        assert (head, queued.split()[0]) == ("attempt 1", "QUEUED")
        assert [line.split()[0] for line in stages if "CLAIMED" not in line] == ["PROVISIONING", "CONNECTING"]
        assert re.fullmatch(r"  CONNECTING +1\d\d\.\d\d s …", stages[-1])
        now = store.clock.now()
        again = Requeued(first.lease, Reason.UNREACHABLE, "no SSH", not_before=None, deadline_at=now + timedelta(1))
        assert await store.tasks.requeue(again, now=now)
        assert (await shown(50))[-1].startswith("  QUEUED") and (await shown(50))[-1].endswith("…")
        _, second = await submitted_and_claimed(store, task)  # and this one has a ready machine
        assert await store.tasks.enter_stage(StageEntered(second.lease, Stage.STAGING_IN), now=store.clock.now())
        assert await store.tasks.finish(Finished(second.lease, TaskState.FINISHED), now=store.clock.now())
        told = await shown(100)
        assert not [line for line in told if line.endswith("…")]
        of_second = told[told.index("attempt 2") :]
        assert [line.split()[0] for line in of_second if "CLAIMED" not in line] == ["attempt", "QUEUED", "STAGING_IN"]
        report = await report_of(store, artifacts, await store.tasks.get(task.id))
        requeued, last = report["attempts"]
        assert requeued["queued_at"] == report["submitted_at"]
        assert last["queued_at"] == requeued["finished_at"]


async def test_a_task_that_waits_for_its_packages_says_who_installs_them(tmp_path: Path) -> None:
    pools = {"p": Pool(name="p", image="debian-12")}
    async with await Store.open(f"sqlite+aiosqlite:///{tmp_path / 'mayfly.db'}") as store:
        now = store.clock.now()
        await register(store, host="here", pid=1, pools=("p", "builds"), now=now)
        spec = TaskSpec(pool="p", command=("true",), packages=Packages("numpy"))
        task = await submit(store, spec, now=now)
        held = await submit(store, spec, now=now, hold=True)

        async def waits(task: TaskRow) -> Waiting:
            found = await Line(store, pools).standing(await store.tasks.get(task.id))
            assert found is not None
            return found.waiting

        unknown = "it is about to be found out whether its packages are installed already"
        assert await waits(task) == Waiting(Reason.LAYER, unknown)
        assert (await waits(held)).reason is Reason.NOT_RELEASED
        until = now + timedelta(hours=1)
        builder = TaskSpec("builds", (), entrypoint=Entrypoint.LAYER)
        layer = await store.layers.order("k", "v", builder, for_tasks=[task.id], now=now, deadline_at=until)
        assert await waits(task) == Waiting(Reason.LAYER, f"its packages are installed by task {layer.task_id}")
        [claim] = await store.tasks.claim(
            (await register(store, host="here", pid=2, pools=("builds",), now=now)).id,
            {"builds": 1},
            max_vms={},
            lease_seconds=30,
            now=now,
            deadline=lambda _: until,
        )
        assert await store.tasks.finish(Finished(claim.lease, TaskState.FINISHED, exit_code=0), now=now)
        assert (await waits(task)).reason is Reason.LAYER, "what was built is not kept yet"
        assert await store.layers.ready("k", "blob", [], now=now)
        assert (await waits(task)).reason is Reason.IN_LINE
