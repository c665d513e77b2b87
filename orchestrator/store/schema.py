"""The tables. Only the store sees these rows; what leaves it are the frozen views of `views`.

A change here needs a migration in `migrations/versions`: a test compares both.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Table,
    false,
)
from sqlmodel import AutoString, Field

from orchestrator.domain.task import Delivery, Stage, TaskState
from orchestrator.domain.vm import VmState
from orchestrator.store.apart import Installation, Leader, Schedule, Share
from orchestrator.store.columns import SafeText, SafeWord, UtcDateTime
from orchestrator.store.conditions import (
    HELD,
    OVER,
    SQL_HELD,
    SQL_OPEN,
    SQL_PENDING,
    SQL_READY,
    SQL_SPARE,
    SQL_UNLAID,
    SQL_UNSTATED,
    SQL_VM_OPEN,
    one_of,
)
from orchestrator.store.metadata import Rows, partial
from orchestrator.store.views import Decision

_held, _over = one_of(HELD), one_of(OVER)


class Runner(Rows, table=True):
    __tablename__ = "runners"

    id: str = Field(primary_key=True)
    host: str
    pid: int
    pools: Any = Field(sa_type=JSON, nullable=False)
    started_at: datetime = Field(sa_type=UtcDateTime)
    heartbeat_at: datetime = Field(sa_type=UtcDateTime)
    left_at: datetime | None = Field(sa_type=UtcDateTime)
    name: str
    draining_at: datetime | None = Field(sa_type=UtcDateTime)


class Task(Rows, table=True):
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
        CheckConstraint(f"delivery IN {one_of(Delivery)}", name="delivery"),
        CheckConstraint(f"state IN {_over} OR deadline_at IS NOT NULL", name="deadline"),
        Index("ix_tasks_state_pool_id", "state", "pool", "id"),
        partial("ix_tasks_ready", "pool", "priority", "frontend", "id", where=SQL_READY),
        # SQLite's planner takes it, and not the first one, because it begins with what that begins with.
        partial("ix_tasks_pending", "state", "not_before", where=SQL_PENDING),
        partial("ix_tasks_held", "pool", "frontend", where=SQL_HELD),
        partial("ix_tasks_held_by", "runner_id", where=SQL_HELD),
        partial("ix_tasks_deadline_at", "deadline_at", where=SQL_OPEN),
        partial("ix_tasks_pool_finished_at", "pool", "finished_at", where="finished_at IS NOT NULL"),
        partial(
            "ix_tasks_idempotency_key", "frontend", "idempotency_key", where="idempotency_key IS NOT NULL", unique=True
        ),
        partial("ix_tasks_unlaid", "state", "id", where=SQL_UNLAID),
        partial("ix_tasks_layer", "layer", where="layer IS NOT NULL"),
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
    frontend: str = Field(sa_column_kwargs={"server_default": "local"})
    priority: int
    admitted_at: datetime | None = Field(sa_type=UtcDateTime)
    not_before: datetime | None = Field(sa_type=UtcDateTime)
    idempotency_key: str | None
    delivery: str
    deadline_at: datetime | None = Field(sa_type=UtcDateTime)
    avoid: Any = Field(sa_type=JSON, nullable=False)
    submitted_by: str = Field(sa_column_kwargs={"server_default": ""})
    brings_packages: bool = Field(sa_column_kwargs={"server_default": false()})
    layer: str | None


class Dependency(Rows, table=True):
    """`task_id` waits for `on_task_id` to have FINISHED."""

    __tablename__ = "dependencies"
    __table_args__ = (Index("ix_dependencies_on_task_id", "on_task_id"),)

    task_id: str = Field(primary_key=True, foreign_key="tasks.id")
    on_task_id: str = Field(primary_key=True, foreign_key="tasks.id")


class Queue(Rows, table=True):
    """What is said of a pool's queue, from its first task on. `turn`: when it was last served, in microseconds since
    1970, or one more than the time before. One that is drained is paused, too. `rotated_at`: machines of older image
    versions that were made before are to be replaced."""

    __tablename__ = "queues"
    __table_args__ = (CheckConstraint("drained_at IS NULL OR paused_at IS NOT NULL", name="drained"),)

    pool: str = Field(primary_key=True)
    paused_at: datetime | None = Field(sa_type=UtcDateTime)
    paused_because: str = Field(sa_type=SafeText)
    blocked_reason: str | None
    blocked_message: str = Field(sa_type=SafeText)
    blocked_at: datetime | None = Field(sa_type=UtcDateTime)
    turn: int = Field(sa_type=BigInteger)
    drained_at: datetime | None = Field(sa_type=UtcDateTime)
    drained_because: str = Field(sa_type=SafeText)
    rotated_at: datetime | None = Field(sa_type=UtcDateTime)


LAUNCHES = ("ok", "failed")


class Vm(Rows, table=True):
    """For no attempt (`task_id` is NULL): a spare. `launch`: how it went, once that is known."""

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
        CheckConstraint(
            "(launch IS NULL AND launch_at IS NULL) OR "
            f"(launch IS NOT NULL AND launch IN {one_of(LAUNCHES)} AND launch_at IS NOT NULL)",
            name="launch",
        ),
        partial("ix_vms_open", "pool", where=SQL_VM_OPEN),
        partial("ix_vms_launch_at", "launch_at", where="launch_at IS NOT NULL"),
        partial("ix_vms_destroyed_at", "destroyed_at", where=f"{SQL_SPARE} AND destroyed_at IS NOT NULL"),
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
    host_public_key: str | None
    host: str | None
    launch: str | None
    launch_message: str | None = Field(sa_type=SafeText)
    launch_seconds: float | None
    launch_at: datetime | None = Field(sa_type=UtcDateTime)


class Attempt(Rows, table=True):
    __tablename__ = "attempts"
    __table_args__ = (
        CheckConstraint("number >= 1", name="number"),
        CheckConstraint(f"stage IS NULL OR stage IN {one_of(Stage)}", name="stage"),
        CheckConstraint(
            "(receipt_sha256 IS NULL AND receipt_at IS NULL) OR "
            "(receipt_sha256 IS NOT NULL AND receipt_at IS NOT NULL AND finished_at IS NOT NULL)",
            name="receipt",
        ),
        partial("ix_attempts_vm_id", "vm_id", where="vm_id IS NOT NULL"),
        partial("ix_attempts_unstated", "task_id", "number", where=SQL_UNSTATED),
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
    verdict: Any | None = Field(sa_type=JSON(none_as_null=True))
    host: str | None
    read_bytes: int | None = Field(sa_type=BigInteger)
    written_bytes: int | None = Field(sa_type=BigInteger)
    receipt_sha256: str | None
    receipt_at: datetime | None = Field(sa_type=UtcDateTime)


class Layer(Rows, table=True):
    """What comes of the packages of all tasks that name its key. `task_id`: its builder, and `blob` what that made; it
    goes with it. No foreign key leads here: tasks and layers would refer to each other."""

    __tablename__ = "layers"
    __table_args__ = (
        CheckConstraint(
            "(ready_at IS NULL AND blob IS NULL AND resolved IS NULL) OR "
            "(ready_at IS NOT NULL AND blob IS NOT NULL AND resolved IS NOT NULL)",
            name="ready",
        ),
        Index("ix_layers_task_id", "task_id", unique=True),
        partial("ix_layers_unready", "key", where="ready_at IS NULL"),
    )

    key: str = Field(primary_key=True)
    image_version: str
    task_id: str = Field(foreign_key="tasks.id")
    blob: str | None
    resolved: Any | None = Field(sa_type=JSON(none_as_null=True))
    made_at: datetime = Field(sa_type=UtcDateTime)
    ready_at: datetime | None = Field(sa_type=UtcDateTime)


class Review(Rows, table=True):
    """What somebody decided of the results of a task that is over."""

    __tablename__ = "reviews"
    __table_args__ = (CheckConstraint(f"decision IN {one_of(Decision)}", name="decision"),)

    task_id: str = Field(primary_key=True, foreign_key="tasks.id")
    decision: str
    by: str = Field(sa_type=SafeText)
    why: str = Field(sa_type=SafeText)
    at: datetime = Field(sa_type=UtcDateTime)


class Event(Rows, table=True):
    """Append-only. `number` grows and is never used again."""

    __tablename__ = "events"
    __table_args__ = (
        ForeignKeyConstraint(["task_id"], ["tasks.id"]),
        ForeignKeyConstraint(["vm_id"], ["vms.id"]),
        Index("ix_events_task_id_number", "task_id", "number"),
        partial("ix_events_vm_id", "vm_id", where="vm_id IS NOT NULL"),
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


METADATA: MetaData = Rows.metadata
for _column in (column for table in METADATA.tables.values() for column in table.columns):
    if isinstance(_column.type, AutoString):
        _column.type = SafeWord()


def _table(rows: type[Rows]) -> Table:
    return METADATA.tables[str(rows.__tablename__)]


INSTALLATION = _table(Installation)
RUNNERS = _table(Runner)
TASKS = _table(Task)
VMS = _table(Vm)
ATTEMPTS = _table(Attempt)
EVENTS = _table(Event)
DEPENDENCIES = _table(Dependency)
QUEUES = _table(Queue)
SHARES = _table(Share)
LEADERS = _table(Leader)
SCHEDULES = _table(Schedule)
LAYERS = _table(Layer)
REVIEWS = _table(Review)
