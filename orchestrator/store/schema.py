"""The tables. Only the store sees these rows; what leaves it are the frozen views of `views`.

A change here needs a migration in `migrations/versions`: a test compares both.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, CheckConstraint, ForeignKeyConstraint, Index, Integer, MetaData, Table
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel

from orchestrator.domain.task import Stage, TaskState
from orchestrator.domain.vm import VmState
from orchestrator.store.columns import SafeText, UtcDateTime

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


def one_of(values: Iterable[str]) -> str:
    """The right side of SQL's IN.

    >>> one_of(["A", "B"])
    "('A', 'B')"
    """
    return "(" + ", ".join(f"'{value}'" for value in values) + ")"


HELD = (TaskState.RUNNING, TaskState.WAITING)
"""The states in which a runner holds the task, under a lease."""
OVER = tuple(state for state in TaskState if state.over)

_held, _over = one_of(HELD), one_of(OVER)


class _Base(SQLModel, registry=registry(metadata=MetaData(naming_convention=NAMING))):
    """Tables of this database alone: other parts of the program may use SQLModel for theirs."""


class Installation(_Base, table=True):
    """One row: which installation this database belongs to."""

    __tablename__ = "installation"
    __table_args__ = (CheckConstraint("single = 1", name="single"),)

    single: int = Field(default=1, primary_key=True, sa_column_kwargs={"autoincrement": False})
    id: str
    made_at: datetime = Field(sa_type=UtcDateTime)


class Runner(_Base, table=True):
    __tablename__ = "runners"

    id: str = Field(primary_key=True)
    host: str
    pid: int
    pools: Any = Field(sa_type=JSON, nullable=False)
    started_at: datetime = Field(sa_type=UtcDateTime)
    heartbeat_at: datetime = Field(sa_type=UtcDateTime)
    left_at: datetime | None = Field(sa_type=UtcDateTime)


class Task(_Base, table=True):
    __tablename__ = "tasks"
    __table_args__ = (
        CheckConstraint(f"state IN {one_of(TaskState)}", name="state"),
        CheckConstraint(f"stage IS NULL OR stage IN {one_of(Stage)}", name="stage"),
        CheckConstraint(
            f"(state IN {_held} AND runner_id IS NOT NULL AND lease_expires_at IS NOT NULL) OR "
            f"(state NOT IN {_held} AND runner_id IS NULL AND lease_expires_at IS NULL AND stage IS NULL)",
            name="held",
        ),
        CheckConstraint(
            f"(state IN {_over} AND finished_at IS NOT NULL) OR (state NOT IN {_over} AND finished_at IS NULL)",
            name="over",
        ),
        CheckConstraint("attempt >= 0", name="attempt"),
        Index("ix_tasks_state_pool_id", "state", "pool", "id"),
    )

    id: str = Field(primary_key=True)
    name: str = Field(sa_type=SafeText)
    pool: str
    spec: Any = Field(sa_type=JSON, nullable=False)
    state: str
    stage: str | None
    reason: str | None
    message: str = Field(sa_type=SafeText)
    exit_code: int | None
    attempt: int
    runner_id: str | None = Field(foreign_key="runners.id")
    lease_expires_at: datetime | None = Field(sa_type=UtcDateTime)
    cancel_requested_at: datetime | None = Field(sa_type=UtcDateTime)
    submitted_at: datetime = Field(sa_type=UtcDateTime)
    started_at: datetime | None = Field(sa_type=UtcDateTime)
    finished_at: datetime | None = Field(sa_type=UtcDateTime)


class Vm(_Base, table=True):
    __tablename__ = "vms"
    __table_args__ = (
        CheckConstraint(f"state IN {one_of(VmState)}", name="state"),
        CheckConstraint(
            f"(state = '{VmState.DESTROYED}' AND destroyed_at IS NOT NULL AND close_proof IS NOT NULL) OR "
            f"(state <> '{VmState.DESTROYED}' AND destroyed_at IS NULL AND deadline_at IS NOT NULL)",
            name="closed_on_proof",
        ),
        CheckConstraint(f"state <> '{VmState.IN_USE}' OR task_id IS NOT NULL", name="in_use_by"),
        CheckConstraint(
            "(task_id IS NULL AND attempt IS NULL) OR (task_id IS NOT NULL AND attempt IS NOT NULL)", name="attempt"
        ),
        Index("ix_vms_state", "state"),
        Index("ix_vms_task_id_attempt", "task_id", "attempt"),
    )

    id: str = Field(primary_key=True)
    cloud_id: int | None
    pool: str
    image_version: str
    state: str
    host_key: str | None
    address: str | None
    task_id: str | None = Field(foreign_key="tasks.id")
    attempt: int | None
    runner_id: str | None = Field(foreign_key="runners.id")
    created_at: datetime = Field(sa_type=UtcDateTime)
    moved_at: datetime = Field(sa_type=UtcDateTime)
    deadline_at: datetime | None = Field(sa_type=UtcDateTime)
    destroyed_at: datetime | None = Field(sa_type=UtcDateTime)
    close_proof: str | None = Field(sa_type=SafeText)


class Attempt(_Base, table=True):
    __tablename__ = "attempts"
    __table_args__ = (
        CheckConstraint("number >= 1", name="number"),
        CheckConstraint(f"stage IS NULL OR stage IN {one_of(Stage)}", name="stage"),
    )

    task_id: str = Field(primary_key=True, foreign_key="tasks.id")
    number: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    runner_id: str = Field(foreign_key="runners.id")
    vm_id: str | None = Field(foreign_key="vms.id")
    stage: str | None
    timings: Any = Field(sa_type=JSON, nullable=False)
    outcome: Any | None = Field(sa_type=JSON(none_as_null=True))
    cpu_seconds: float | None
    memory_peak_bytes: int | None = Field(sa_type=BigInteger)
    artifacts: Any = Field(sa_type=JSON, nullable=False)
    environment: Any = Field(sa_type=JSON, nullable=False)
    started_at: datetime = Field(sa_type=UtcDateTime)
    finished_at: datetime | None = Field(sa_type=UtcDateTime)


class Event(_Base, table=True):
    """Append-only. `number` grows and is never used again."""

    __tablename__ = "events"
    __table_args__ = (
        ForeignKeyConstraint(["task_id"], ["tasks.id"]),
        ForeignKeyConstraint(["vm_id"], ["vms.id"]),
        Index("ix_events_task_id_number", "task_id", "number"),
        {"sqlite_autoincrement": True},
    )

    number: int | None = Field(default=None, primary_key=True, sa_type=BigInteger().with_variant(Integer, "sqlite"))
    at: datetime = Field(sa_type=UtcDateTime)
    kind: str
    task_id: str | None
    attempt: int | None
    vm_id: str | None
    runner_id: str | None
    data: Any = Field(sa_type=JSON, nullable=False)


METADATA: MetaData = _Base.metadata


def _table(name: str) -> Table:
    return METADATA.tables[name]


INSTALLATION = _table("installation")
RUNNERS = _table("runners")
TASKS = _table("tasks")
VMS = _table("vms")
ATTEMPTS = _table("attempts")
EVENTS = _table("events")
