"""What people read of a task: the notes that no state tells, and what it waits for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from orchestrator.artifacts import Artifacts
from orchestrator.domain.pool import Pool
from orchestrator.domain.task import TaskSpec
from orchestrator.reports.task import report_of, waits_for
from orchestrator.reports.text import lines
from orchestrator.store import Store, VmRequest
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


async def test_a_task_that_waits_says_what_for(tmp_path: Path) -> None:
    pools = {"p": Pool(name="p", image="debian-12", max_vms=1)}
    async with await Store.open(f"sqlite+aiosqlite:///{tmp_path / 'mayfly.db'}") as store:
        task = await submit(store, TaskSpec(pool="p", command=("true",)), now=NOW)
        assert "no pool 'p'" in str(await waits_for(store, task, {}, now=NOW))
        assert "no runner is alive" in str(await waits_for(store, task, pools, now=NOW))
        runner = await register(store, host="here", pid=1, pools=("p",), now=NOW)
        assert await waits_for(store, task, pools, now=NOW) is None
        vm = VmRequest(pool="p", image_version="v", runner_id=runner.id, deadline_at=NOW + timedelta(minutes=1))
        assert await store.vms.request(vm, now=NOW) is not None
        waiting = await waits_for(store, task, pools, now=NOW)
        assert waiting == "no room: pool p may have 1 machines, and has 1"
        report = await report_of(store, Artifacts(tmp_path / "artifacts"), task, waiting=waiting)
        assert f"waits     {waiting}" in list(lines(report))
        canceled = await store.tasks.request_cancel(task.id, now=NOW)
        assert await waits_for(store, canceled, pools, now=NOW) is None
