"""What people read of a task: the notes that no state tells are in its report."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from orchestrator.artifacts import Artifacts
from orchestrator.domain.task import TaskSpec
from orchestrator.reports.task import report_of
from orchestrator.reports.text import lines
from orchestrator.store import Store

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


async def test_a_note_is_in_the_report_of_its_task_and_in_no_other(tmp_path: Path) -> None:
    async with await Store.open(f"sqlite+aiosqlite:///{tmp_path / 'mayfly.db'}") as store:
        artifacts = Artifacts(tmp_path / "artifacts")
        noted, other = [await store.tasks.submit(TaskSpec(pool="p", command=("true",)), now=NOW) for _ in range(2)]
        await store.events.append("not all of the outputs were taken", now=NOW, task_id=noted.id, attempt=1)
        report = await report_of(store, artifacts, noted)
        assert report["notes"] == [{"at": NOW, "attempt": 1, "message": "not all of the outputs were taken"}]
        assert "note      not all of the outputs were taken" in list(lines(report))
        assert (await report_of(store, artifacts, other))["notes"] == []
