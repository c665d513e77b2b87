"""What the store hands out: frozen copies of rows, in the words of the domain. Instants are aware, in UTC."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.engine import RowMapping

from orchestrator.domain.outcome import Outcome, Reason, Usage
from orchestrator.domain.task import Stage, TaskSpec, TaskState
from orchestrator.domain.vm import VmState
from orchestrator.store.encoding import Timings, outcome_from_json, spec_from_json, timings_from_json

Row = RowMapping


@dataclass(frozen=True, slots=True)
class Lease:
    """A claim: this runner holds this attempt of this task. Every write of a runner names it; once somebody else has
    taken the task on, or it is over, such a write does nothing and says so."""

    task_id: str
    attempt: int
    runner_id: str


@dataclass(frozen=True, slots=True)
class TaskRow:
    """`attempt` is 0 until the first claim. `exit_code`: what `mayfly run` exits with, once known."""

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

    @property
    def lease(self) -> Lease | None:
        """Who holds the task; None unless RUNNING or WAITING."""
        return None if self.runner_id is None else Lease(self.id, self.attempt, self.runner_id)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a runner gets: the task as it is now, and the lease to name in every write."""

    task: TaskRow
    lease: Lease


@dataclass(frozen=True, slots=True)
class Beat:
    """The answer to a heartbeat: how long the lease is good for now, and whether somebody wants the task canceled."""

    lease_expires_at: datetime
    cancel_requested: bool


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """`artifacts`: name (stdout, stderr, trace, console, outputs) → reference in the artifact store.
    `environment`: facts of the machine."""

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


@dataclass(frozen=True, slots=True)
class VmRow:
    """`cloud_id` is None until OpenNebula has answered. `host_key`: fingerprint of the key that we made for it.
    `deadline_at`: until when it may stay in this state. `close_proof`: how we know that it is gone."""

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
    id: str
    host: str
    pid: int
    pools: tuple[str, ...]
    started_at: datetime
    heartbeat_at: datetime
    left_at: datetime | None


def task_view(row: Row) -> TaskRow:
    return TaskRow(
        id=row["id"],
        spec=spec_from_json(row["spec"]),
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
        usage=Usage(row["cpu_seconds"], row["memory_peak_bytes"]),
        artifacts=dict(row["artifacts"]),
        environment=dict(row["environment"]),
        started_at=row["started_at"],
        finished_at=row["finished_at"],
    )


def vm_view(row: Row) -> VmRow:
    fields = {name: row[name] for name in VmRow.__dataclass_fields__}
    return VmRow(**{**fields, "state": VmState(row["state"])})


def event_view(row: Row) -> EventRow:
    return EventRow(**{name: row[name] for name in EventRow.__dataclass_fields__})


def runner_view(row: Row) -> RunnerRow:
    fields = {name: row[name] for name in RunnerRow.__dataclass_fields__}
    return RunnerRow(**{**fields, "pools": tuple(row["pools"])})
