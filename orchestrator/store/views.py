"""What the store hands out: frozen copies of rows, in the words of the domain. Instants are aware, in UTC."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy.engine import RowMapping

from orchestrator.domain.outcome import Outcome, Reason, Usage, Verdict
from orchestrator.domain.task import Stage, TaskSpec, TaskState
from orchestrator.domain.vm import VmState
from orchestrator.store.encoding import (
    Timings,
    outcome_from_json,
    spec_from_json,
    timings_from_json,
    verdict_from_json,
)

Row = RowMapping | dict[str, Any]


@dataclass(frozen=True, slots=True)
class Lease:
    """A claim: this runner holds this attempt of this task. Every write of a runner names it; once somebody else has
    taken the task on, or it is over, such a write does nothing and says so."""

    task_id: str
    attempt: int
    runner_id: str


@dataclass(frozen=True, slots=True)
class TaskRow:
    """`attempt` is 0 until the first claim. `exit_code`: what `mayfly run` exits with, once known.

    admitted_at: since when nothing but room kept it from being claimed; None: it is not ready. not_before: when it may
    become so. deadline_at: by when it must have left its state; None once it is over. avoid: hosts that failed it.
    submitted_by: who; "" when nobody said. layer: key of what its packages make, once that is known.
    """

    id: str
    spec: TaskSpec
    state: TaskState
    stage: Stage | None
    reason: Reason | None
    message: str
    exit_code: int | None
    attempt: int
    runner_id: str | None
    lease_expires_at: datetime | None
    cancel_requested_at: datetime | None
    submitted_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    frontend: str
    priority: int
    admitted_at: datetime | None
    not_before: datetime | None
    idempotency_key: str | None
    deadline_at: datetime | None
    avoid: tuple[str, ...]
    submitted_by: str
    layer: str | None

    @property
    def lease(self) -> Lease | None:
        """Who holds the task; None unless RUNNING or WAITING."""
        return None if self.runner_id is None else Lease(self.id, self.attempt, self.runner_id)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a runner gets: the task as it is now, and the lease to name in every write. vm_id: the VM that the attempt
    has already: a ready one that was taken with the task, or that of an attempt that was adopted."""

    task: TaskRow
    lease: Lease
    vm_id: str | None = None


@dataclass(frozen=True, slots=True)
class Beat:
    """The answer to a heartbeat: how long the lease is good for now, and whether somebody wants the task canceled."""

    lease_expires_at: datetime
    cancel_requested: bool


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """`artifacts`: name (stdout, stderr, trace, console, outputs) → reference in the artifact store.
    `environment`: facts of the machine. `verdict`: what will be said of the task once the machine is gone.
    `host`: of the hypervisor. `receipt_sha256`: of the signed statement of it, once there is one."""

    task_id: str
    number: int
    runner_id: str
    vm_id: str | None
    stage: Stage | None
    timings: Timings
    outcome: Outcome | None
    usage: Usage
    artifacts: dict[str, str]
    environment: dict[str, Any]
    started_at: datetime
    finished_at: datetime | None
    verdict: Verdict | None
    host: str | None
    receipt_sha256: str | None
    receipt_at: datetime | None


@dataclass(frozen=True, slots=True)
class VmRow:
    """`cloud_id` is None until OpenNebula has answered. `host_key`: fingerprint of the key that we made for it,
    `host_public_key`: its whole public line. `host`: of the hypervisor, when known. `deadline_at`: until when it may
    stay in this state. `close_proof`: how we know that it is gone. `launch`: "ok" or "failed", once that is known, with
    what was said of it and what it took."""

    id: str
    cloud_id: int | None
    pool: str
    image_version: str
    state: VmState
    host_key: str | None
    address: str | None
    task_id: str | None
    attempt: int | None
    runner_id: str | None
    created_at: datetime
    moved_at: datetime
    deadline_at: datetime | None
    destroyed_at: datetime | None
    close_proof: str | None
    host_public_key: str | None
    host: str | None
    launch: str | None = None
    launch_message: str = ""
    launch_seconds: float | None = None
    launch_at: datetime | None = None

    @property
    def spare(self) -> bool:
        """It is for no attempt (yet)."""
        return self.task_id is None


@dataclass(frozen=True, slots=True)
class VmCount:
    """How many open VMs a runner has in a state. `spare`: those that are for no attempt, or the others."""

    pool: str
    runner_id: str | None
    state: VmState
    spare: bool
    count: int


@dataclass(frozen=True, slots=True)
class Launch:
    """How the launch of a VM went, `at` that instant. `host`: of the hypervisor, empty when it is not known."""

    vm_id: str
    pool: str
    image_version: str
    host: str
    ok: bool
    message: str
    seconds: float | None
    at: datetime


class Decision(StrEnum):
    """Of whoever saw a task's results first: others may see them, or nobody ever will."""

    RELEASED = "released"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class EventRow:
    number: int
    at: datetime
    kind: str
    task_id: str | None
    attempt: int | None
    vm_id: str | None
    runner_id: str | None
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RunnerRow:
    """`draining_at`: since when it takes no more tasks."""

    id: str
    name: str
    host: str
    pid: int
    pools: tuple[str, ...]
    started_at: datetime
    heartbeat_at: datetime
    left_at: datetime | None
    draining_at: datetime | None


@dataclass(frozen=True, slots=True)
class QueueRow:
    """What is said of a pool's queue. `blocked_reason`, `blocked_message`: why nothing of it can be placed now, as the
    runner saw it that looked last. `waiting`, `held`: how many of its tasks are QUEUED, or held by a runner; 0 when
    they were not counted. `drained_at`: since when it is to have no machines; it is paused as long. `rotated_at`:
    machines made before then of an older image version are to be replaced."""

    pool: str
    paused_at: datetime | None
    paused_because: str
    blocked_reason: Reason | None
    blocked_message: str
    blocked_at: datetime | None
    waiting: int
    held: int
    drained_at: datetime | None = None
    drained_because: str = ""
    rotated_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class QueuePlace:
    """What is before a ready task: those of `higher` priority, earlier ones of its own frontend, and how many each
    other frontend of the same priority has. Each is counted to a bound; `bounded`: one of them was reached."""

    higher: int
    own_before: int
    others: tuple[int, ...]
    bounded: bool


@dataclass(frozen=True, slots=True)
class Throughput:
    """`ended`: tasks that ran and ended within the window; `mean_seconds`: from their first claim to their end."""

    ended: int
    window_seconds: float
    mean_seconds: float | None


def task_view(row: Row, spec: TaskSpec | None = None) -> TaskRow:
    """`spec`: that of the row, where it has been read already."""
    return TaskRow(
        id=row["id"],
        spec=spec_from_json(row["spec"]) if spec is None else spec,
        state=TaskState(row["state"]),
        stage=None if row["stage"] is None else Stage(row["stage"]),
        reason=None if row["reason"] is None else Reason(row["reason"]),
        message=row["message"],
        exit_code=row["exit_code"],
        attempt=row["attempt"],
        runner_id=row["runner_id"],
        lease_expires_at=row["lease_expires_at"],
        cancel_requested_at=row["cancel_requested_at"],
        submitted_at=row["submitted_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        frontend=row["frontend"],
        priority=row["priority"],
        admitted_at=row["admitted_at"],
        not_before=row["not_before"],
        idempotency_key=row["idempotency_key"],
        deadline_at=row["deadline_at"],
        avoid=tuple(row["avoid"]),
        submitted_by=row["submitted_by"],
        layer=row["layer"],
    )


def attempt_view(row: Row) -> AttemptRow:
    return AttemptRow(
        task_id=row["task_id"],
        number=row["number"],
        runner_id=row["runner_id"],
        vm_id=row["vm_id"],
        stage=None if row["stage"] is None else Stage(row["stage"]),
        timings=timings_from_json(row["timings"]),
        outcome=None if row["outcome"] is None else outcome_from_json(row["outcome"]),
        usage=Usage(row["cpu_seconds"], row["memory_peak_bytes"], row["read_bytes"], row["written_bytes"]),
        artifacts=dict(row["artifacts"]),
        environment=dict(row["environment"]),
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        verdict=None if row["verdict"] is None else verdict_from_json(row["verdict"]),
        host=row["host"],
        receipt_sha256=row["receipt_sha256"],
        receipt_at=row["receipt_at"],
    )


def vm_view(row: Row) -> VmRow:
    fields = {name: row[name] for name in VmRow.__dataclass_fields__}
    return VmRow(**{**fields, "state": VmState(row["state"]), "launch_message": row["launch_message"] or ""})


def launch_view(row: Row) -> Launch:
    return Launch(
        vm_id=row["id"],
        pool=row["pool"],
        image_version=row["image_version"],
        host=row["host"] or "",
        ok=row["launch"] == "ok",
        message=row["launch_message"] or "",
        seconds=row["launch_seconds"],
        at=row["launch_at"],
    )


def event_view(row: Row) -> EventRow:
    return EventRow(**{name: row[name] for name in EventRow.__dataclass_fields__})


def runner_view(row: Row) -> RunnerRow:
    fields = {name: row[name] for name in RunnerRow.__dataclass_fields__}
    return RunnerRow(**{**fields, "pools": tuple(row["pools"])})
