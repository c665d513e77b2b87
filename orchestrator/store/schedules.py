"""Recurring tasks: what to submit, and when next."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from orchestrator.domain.errors import NotFound, NotPossible
from orchestrator.domain.task import TaskSpec
from orchestrator.store.encoding import spec_from_json, spec_to_json
from orchestrator.store.engine import Database
from orchestrator.store.schema import SCHEDULES
from orchestrator.store.tasks import Tasks
from orchestrator.store.views import Row, TaskRow


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """A recurring task: by a `cron` line in `time_zone`, or every `interval_seconds`. `catch_up`: whether instants that
    were missed are made up for. `next_at`: the next instant."""

    name: str
    spec: TaskSpec
    frontend: str
    cron: str | None
    interval_seconds: float | None
    time_zone: str
    catch_up: bool
    next_at: datetime
    paused_at: datetime | None = None
    last_task_id: str | None = None


def key_of(name: str, instant: datetime) -> str:
    """The idempotency key of the task that a schedule submits for an instant.

    >>> key_of("nightly", datetime(2026, 1, 1, 2, tzinfo=UTC))
    'schedule:nightly:2026-01-01T02:00:00+00:00'
    """
    return f"schedule:{name}:{instant.astimezone(UTC).isoformat()}"


class Schedules:
    def __init__(self, database: Database, tasks: Tasks) -> None:
        self._database = database
        self._tasks = tasks

    async def add(self, schedule: ScheduleRow, *, now: datetime) -> ScheduleRow:
        """Raises NotPossible when the name is taken. The rule and the spec are taken as valid."""
        row = {name: getattr(schedule, name) for name in ScheduleRow.__dataclass_fields__}
        row |= {"spec": spec_to_json(schedule.spec), "made_at": now}
        try:
            async with self._database.writing() as connection:
                made = (await connection.execute(insert(SCHEDULES).values(row).returning(SCHEDULES))).mappings().one()
                return _view(made)
        except IntegrityError as error:
            problem = f"there is a schedule {schedule.name!r} already"
            raise NotPossible("name", problem, "remove it first, or take another name") from error

    async def list(self) -> tuple[ScheduleRow, ...]:
        """All, by name."""
        async with self._database.reading() as connection:
            rows = (await connection.execute(select(SCHEDULES).order_by(SCHEDULES.c.name))).mappings()
            return tuple(_view(row) for row in rows)

    async def get(self, name: str) -> ScheduleRow:
        """Raises NotFound."""
        for schedule in await self.list():
            if schedule.name == name:
                return schedule
        raise NotFound("name", f"no schedule {name!r}", "see `mayfly schedule list`")

    async def remove(self, name: str) -> bool:
        """Submit no more of it. False: there is none."""
        async with self._database.writing() as connection:
            return (await connection.execute(delete(SCHEDULES).where(SCHEDULES.c.name == name))).rowcount == 1

    async def pause(self, name: str, *, now: datetime) -> bool:
        """False: there is none, or it is paused already."""
        paused = update(SCHEDULES).where(SCHEDULES.c.name == name, SCHEDULES.c.paused_at.is_(None))
        async with self._database.writing() as connection:
            return (await connection.execute(paused.values(paused_at=now))).rowcount == 1

    async def resume(self, name: str, *, next_at: datetime) -> bool:
        """Go on, at `next_at` for the first time. False: there is none, or it is not paused."""
        resumed = update(SCHEDULES).where(SCHEDULES.c.name == name, SCHEDULES.c.paused_at.is_not(None))
        async with self._database.writing() as connection:
            return (await connection.execute(resumed.values(paused_at=None, next_at=next_at))).rowcount == 1

    async def advance(
        self,
        name: str,
        expected_next_at: datetime,
        spec: TaskSpec | None,
        next_at: datetime,
        *,
        now: datetime,
        deadline_at: datetime,
    ) -> TaskRow | None:
        """Submit the task of the instant `expected_next_at` and go on to `next_at`, in one transaction; without `spec`
        the instant is passed over. None: passed over, or stale: another has advanced it, or it is paused or gone.

        Raises what `tasks.submit` does.
        """
        guarded = update(SCHEDULES).where(
            SCHEDULES.c.name == name, SCHEDULES.c.next_at == expected_next_at, SCHEDULES.c.paused_at.is_(None)
        )
        async with self._database.writing() as connection:
            advanced = guarded.values(next_at=next_at).returning(SCHEDULES.c.frontend)
            row = (await connection.execute(advanced)).first()
            if row is None or spec is None:
                return None
            task = await self._tasks.submit_in(
                connection,
                spec,
                now=now,
                deadline_at=deadline_at,
                frontend=row.frontend,
                idempotency_key=key_of(name, expected_next_at),
            )
            await connection.execute(update(SCHEDULES).where(SCHEDULES.c.name == name).values(last_task_id=task.id))
        self._tasks.ring()
        return task


def _view(row: Row) -> ScheduleRow:
    fields = {name: row[name] for name in ScheduleRow.__dataclass_fields__}
    return ScheduleRow(**{**fields, "spec": spec_from_json(row["spec"])})
