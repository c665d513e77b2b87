"""Attempts: one try of a task in one VM. A runner writes to its own, and only until it is over."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, insert, literal, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.outcome import Outcome, Usage, Verdict
from orchestrator.store.chain import Chain, Columns
from orchestrator.store.conditions import UNSTATED, VM_OPEN
from orchestrator.store.encoding import Timings, outcome_to_json, timings_from_json, timings_to_json, verdict_to_json
from orchestrator.store.engine import Database
from orchestrator.store.grouped import Grouped, guarded
from orchestrator.store.guards import LEASE, given_by
from orchestrator.store.schema import ATTEMPTS, VMS
from orchestrator.store.views import AttemptRow, Lease, attempt_view

_OPEN_BY_V = """attempts.task_id = v.task_id AND attempts.number = v.attempt
  AND attempts.runner_id = v.runner_id AND attempts.finished_at IS NULL"""
"""The guard, as `_open_by`, in a `Chain`."""
NOTE_STAGE = f"""
UPDATE attempts SET stage = v.stage, timings = {{BEGUN}} FROM v JOIN t ON t.task_id = v.task_id WHERE {_OPEN_BY_V}
"""  # noqa: S608  made of our own words alone
"""End the stage that runs and begin v.stage, in a `Chain` that has changed the task's row."""
END_ATTEMPT = f"""
UPDATE attempts SET finished_at = v.at, timings = {{ENDED}} FROM v JOIN t ON t.task_id = v.task_id WHERE {_OPEN_BY_V}
"""  # noqa: S608  made of our own words alone


def _open_by(lease: Lease) -> ColumnElement[bool]:
    """The guard: this runner's attempt, not over. It is ended in the transaction that ends or requeues the task."""
    return and_(
        ATTEMPTS.c.task_id == lease.task_id,
        ATTEMPTS.c.number == lease.attempt,
        ATTEMPTS.c.runner_id == lease.runner_id,
        ATTEMPTS.c.finished_at.is_(None),
    )


async def begin_attempts(connection: AsyncConnection, leases: Sequence[Lease], *, now: datetime) -> None:
    empty: dict[str, Any] = {"timings": {}, "artifacts": {}, "environment": {}, "started_at": now}
    rows = [{"task_id": each.task_id, "number": each.attempt, "runner_id": each.runner_id, **empty} for each in leases]
    await connection.execute(insert(ATTEMPTS), rows)


async def end_attempt(connection: AsyncConnection, lease: Lease, *, now: datetime) -> None:
    timings = await _ended(connection, lease, now=now)
    written = update(ATTEMPTS).where(_open_by(lease)).values(finished_at=now, timings=timings_to_json(timings))
    await connection.execute(written)


async def _ended(connection: AsyncConnection, lease: Lease, *, now: datetime) -> Timings:
    found = await connection.execute(select(ATTEMPTS.c.timings).where(_open_by(lease)))
    timings = timings_from_json(found.scalar_one())
    return {stage: (start, end or now) for stage, (start, end) in timings.items()}


_RECORDED: Columns = {
    "outcome": dict,
    "cpu_seconds": float,
    "memory_peak_bytes": int,
    "read_bytes": int,
    "written_bytes": int,
    "verdict": dict,
    "host": str,
    "artifacts": dict,
    "environment": dict,
}
_NOTHING = dict.fromkeys(_RECORDED)
_RECORD = Chain(
    {**LEASE, **_RECORDED},
    f"""
    UPDATE attempts SET {", ".join(f"{name} = coalesce(v.{name}, attempts.{name})" for name in _RECORDED)}
    FROM v WHERE {_OPEN_BY_V} RETURNING attempts.task_id, attempts.vm_id
    """,  # noqa: S608  made of our own words alone
    returned={"task_id": str, "vm_id": str},
    then=(
        """
        UPDATE vms SET host = v.host FROM v JOIN t ON t.task_id = v.task_id
        WHERE vms.id = t.vm_id AND v.host IS NOT NULL
        """,
    ),
    locked=("attempts", "attempts.task_id = given.task_id AND attempts.number = given.attempt", "attempts.task_id"),
)


def _due() -> ColumnElement[bool]:
    """A receipt is: nothing more will happen to the attempt, or to its machine."""
    machine = select(literal(1)).where(VMS.c.id == ATTEMPTS.c.vm_id, VM_OPEN).correlate(ATTEMPTS).exists()
    return and_(UNSTATED, ~machine)


class Attempts:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._record = guarded(database, _RECORD, "task_id")
        self._merge = Grouped(self._merge_all, key=lambda item: item[0].task_id)

    async def get(self, task_id: str, number: int) -> AttemptRow | None:
        for attempt in await self.of_task(task_id):
            if attempt.number == number:
                return attempt
        return None

    async def of_task(self, task_id: str) -> tuple[AttemptRow, ...]:
        """All attempts of a task, first one first."""
        query = select(ATTEMPTS).where(ATTEMPTS.c.task_id == task_id).order_by(ATTEMPTS.c.number)
        async with self._database.reading() as connection:
            return tuple(attempt_view(row) for row in (await connection.execute(query)).mappings())

    async def record_outcome(self, lease: Lease, outcome: Outcome, usage: Usage | None = None) -> bool:
        """How the process ended, and what it used. False: stale."""
        used = usage or Usage()
        return await self._record(
            {
                **_NOTHING,
                **given_by(lease),
                "outcome": outcome_to_json(outcome),
                "cpu_seconds": used.cpu_seconds,
                "memory_peak_bytes": used.memory_peak_bytes,
                "read_bytes": used.read_bytes,
                "written_bytes": used.written_bytes,
            }
        )

    async def record_artifacts(self, lease: Lease, artifacts: Mapping[str, str]) -> bool:
        """Add references (name → reference in the artifact store) to those recorded. False: stale."""
        return await self._merge((lease, "artifacts", artifacts))

    async def record_environment(self, lease: Lease, facts: Mapping[str, Any]) -> bool:
        """Add facts of the machine to those recorded; their values must be JSON. False: stale."""
        json.dumps(dict(facts), allow_nan=False)  # which nobody else's write is to fail for
        return await self._merge((lease, "environment", facts))

    async def record_verdict(self, lease: Lease, verdict: Verdict) -> bool:
        """What will be said of the task once its machine is gone, by whoever sees that. False: stale."""
        return await self._record({**_NOTHING, **given_by(lease), "verdict": verdict_to_json(verdict)})

    async def record_host(self, lease: Lease, host: str) -> bool:
        """On which host of the cloud the attempt's machine is; written to both. False: stale."""
        return await self._record({**_NOTHING, **given_by(lease), "host": host})

    async def receipt_due(
        self, limit: int = 100, *, after: tuple[str, int] | None = None
    ) -> tuple[tuple[str, int], ...]:
        """Attempts, as task and number, that are over, whose machine is gone or was never made, and of which nothing
        was signed yet; oldest task first. `after`: those behind this one, so that one that fails keeps none back."""
        query = select(ATTEMPTS.c.task_id, ATTEMPTS.c.number).where(_due())
        if after is not None:
            query = query.where(tuple_(ATTEMPTS.c.task_id, ATTEMPTS.c.number) > tuple_(*after))
        query = query.order_by(ATTEMPTS.c.task_id, ATTEMPTS.c.number).limit(limit)
        async with self._database.reading() as connection:
            return tuple((row[0], row[1]) for row in await connection.execute(query))

    async def record_receipt(self, task_id: str, number: int, sha256: str, *, now: datetime) -> bool:
        """The signed statement of an attempt is in the artifact store. False: there was one, or none is due."""
        mine = and_(ATTEMPTS.c.task_id == task_id, ATTEMPTS.c.number == number, _due())
        written = update(ATTEMPTS).where(mine).values(receipt_sha256=sha256, receipt_at=now)
        async with self._database.writing() as connection:
            return (await connection.execute(written)).rowcount == 1

    async def _merge_all(self, items: Sequence[tuple[Lease, str, Mapping[str, Any]]]) -> Sequence[bool]:
        """Not by the database, as it does with timings: PostgreSQL takes no JSON apart that has odd text in it."""
        tasks = [lease.task_id for lease, *_ in items]
        open_ones = select(ATTEMPTS).where(ATTEMPTS.c.task_id.in_(tasks), ATTEMPTS.c.finished_at.is_(None))
        locked = open_ones.order_by(ATTEMPTS.c.task_id).with_for_update(key_share=True)
        async with self._database.writing() as connection:
            found = (await connection.execute(locked)).mappings()
            kept = {Lease(row["task_id"], row["number"], row["runner_id"]): row for row in found}
            merged = [
                {**_NOTHING, **given_by(lease), column: {**kept[lease][column], **more}}
                for lease, column, more in items
                if lease in kept
            ]
            if merged:
                await _RECORD.run_last(connection, merged)
        return [lease in kept for lease, *_ in items]
