"""New tasks are written: their rows, whom they wait for, and that they were submitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.task import TaskSpec, TaskState
from orchestrator.store.chain import Chain, Columns
from orchestrator.store.columns import as_utc
from orchestrator.store.events import EventKind, write_events
from orchestrator.store.ids import new_id
from orchestrator.store.schema import DEPENDENCIES
from orchestrator.store.views import TaskRow, task_view

Row = dict[str, Any]

_GIVEN: Columns = {
    "id": str,
    "name": str,
    "pool": str,
    "spec": dict,
    "state": str,
    "submitted_at": datetime,
    "frontend": str,
    "priority": int,
    "admitted_at": datetime,
    "not_before": datetime,
    "idempotency_key": str,
    "delivery": str,
    "deadline_at": datetime,
    "submitted_by": str,
    "brings_packages": bool,
}
_NAMES = ", ".join(_GIVEN)
_VALUES = ", ".join(f"v.{name}" for name in _GIVEN)
_INSERT = f"""
INSERT INTO tasks ({_NAMES}, message, attempt, avoid) SELECT {_VALUES}, '', 0, '[]' FROM v RETURNING tasks.id AS task_id
"""  # noqa: S608  made of our own words alone
_TOLD = f"""
INSERT INTO events (at, kind, task_id, data)
SELECT v.submitted_at, '{EventKind.TASK_SUBMITTED}', v.id, '{{}}' FROM v ORDER BY v.place
"""  # noqa: S608
_PUT = Chain(_GIVEN, _INSERT, returned={"task_id": str}, events=_TOLD)
_PUT_UNTOLD = Chain(_GIVEN, _INSERT, returned={"task_id": str})
_OTHERWISE: Row = {
    "stage": None,
    "reason": None,
    "message": "",
    "exit_code": None,
    "attempt": 0,
    "runner_id": None,
    "lease_expires_at": None,
    "cancel_requested_at": None,
    "started_at": None,
    "finished_at": None,
    "avoid": [],
    "layer": None,
}
"""What no new task has."""


@dataclass(frozen=True, slots=True, eq=False)
class Submission:
    """One call: tasks that are written together or not at all. `encoded`: the specs as JSON."""

    specs: Sequence[TaskSpec]
    encoded: Sequence[str]
    now: datetime
    deadline_at: datetime
    frontend: str = "local"
    key: str | None = None
    hold: bool = False
    max_waiting: int | None = None
    submitted_by: str = ""

    @property
    def depends(self) -> bool:
        return any(spec.terms.depends_on for spec in self.specs)

    def made(self, rows: Sequence[Row]) -> tuple[TaskRow, ...]:
        """What the caller gets once they are written."""
        return tuple(task_view(row, spec) for row, spec in zip(rows, self.specs, strict=True))

    def waits(self, rows: Sequence[Row]) -> list[Row]:
        """Who waits for whom."""
        return [
            {"task_id": row["id"], "on_task_id": other}
            for row, spec in zip(rows, self.specs, strict=True)
            for other in dict.fromkeys(spec.terms.depends_on)
        ]

    def rows(self, states: Mapping[str, TaskState]) -> list[Row]:
        """With new ids, in this order. `states`: of the tasks that these wait for."""
        now = as_utc(self.now)
        ids: set[str] = set()
        while len(ids) < len(self.specs):
            ids.add(new_id(now))
        rows: list[Row] = []
        for task_id, spec, data in zip(sorted(ids), self.specs, self.encoded, strict=True):
            terms = spec.terms
            due = (terms.not_before is None or terms.not_before <= now) and all(
                states[other] is TaskState.FINISHED for other in terms.depends_on
            )
            due = due and not spec.packages  # whose layer is to be found out first
            rows.append(
                {
                    **_OTHERWISE,
                    "id": task_id,
                    "name": spec.name,
                    "pool": spec.pool,
                    "spec": data,
                    "state": TaskState.NEW if self.hold else TaskState.QUEUED,
                    "submitted_at": now,
                    "frontend": self.frontend,
                    "priority": terms.priority,
                    "admitted_at": now if due and not self.hold else None,
                    "not_before": None if terms.not_before is None else as_utc(terms.not_before),
                    "idempotency_key": self.key,
                    "delivery": terms.delivery.value,
                    "deadline_at": as_utc(self.deadline_at),
                    "submitted_by": self.submitted_by,
                    "brings_packages": bool(spec.packages),
                }
            )
        return rows


async def put(connection: AsyncConnection, rows: Sequence[Row]) -> None:
    """Write new tasks that wait for no others: one statement on PostgreSQL."""
    await _PUT.run(connection, rows)


async def put_waiting(connection: AsyncConnection, rows: Sequence[Row], waits: Sequence[Row], now: datetime) -> None:
    """Write new tasks, and whom they wait for: rows of `dependencies`."""
    await _PUT_UNTOLD.run(connection, rows)
    await connection.execute(insert(DEPENDENCIES), waits)
    await write_events(connection, EventKind.TASK_SUBMITTED, [{"task_id": row["id"]} for row in rows], now=now)
