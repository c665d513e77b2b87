"""A task, its attempts and the moves that are legal between their states."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class TaskState(StrEnum):
    """Few, to decide with. `Reason` says why."""

    NEW = "NEW"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    WAITING = "WAITING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"

    @property
    def over(self) -> bool:
        """No move leads out of it."""
        return not LEGAL_MOVES[self]


LEGAL_MOVES: dict[TaskState, frozenset[TaskState]] = {
    TaskState.NEW: frozenset({TaskState.QUEUED, TaskState.CANCELED}),
    TaskState.QUEUED: frozenset({TaskState.RUNNING, TaskState.CANCELED, TaskState.FAILED}),
    TaskState.RUNNING: frozenset(
        {TaskState.WAITING, TaskState.FINISHED, TaskState.FAILED, TaskState.CANCELED, TaskState.QUEUED}
    ),
    TaskState.WAITING: frozenset({TaskState.RUNNING, TaskState.FAILED, TaskState.CANCELED, TaskState.QUEUED}),
    TaskState.FINISHED: frozenset(),
    TaskState.FAILED: frozenset(),
    TaskState.CANCELED: frozenset(),
}


class Stage(StrEnum):
    """Where in the attempt. Forward only, in this order; any stage may jump to DESTROYING."""

    PROVISIONING = "PROVISIONING"
    CONNECTING = "CONNECTING"
    PREPARING = "PREPARING"
    SEALING = "SEALING"
    STAGING_IN = "STAGING_IN"
    EXECUTING = "EXECUTING"
    STAGING_OUT = "STAGING_OUT"
    DESTROYING = "DESTROYING"


class Entrypoint(StrEnum):
    """How the command is made of what was submitted: see `orchestrator.decide.entrypoint`."""

    COMMAND = "command"
    DATA_EXCHANGE = "data-exchange"
    BLIND_SANE = "blind-sane"


class TraceProfile(StrEnum):
    """What is recorded. AUDIT: processes, files by name, network. FULL: every system call."""

    AUDIT = "audit"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input: `source` is where the submitter had it, `dest` its path relative to /task/in, `blob` its tree in the
    artifact store (set at submit, when it was read)."""

    source: str
    dest: str
    blob: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one process may use. Seconds of wall-clock; bytes of memory; processes and threads. None: the pool's."""

    timeout_seconds: float | None = None
    memory_bytes: int | None = None
    processes: int | None = None


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """What a frontend asks for: one process to run.

    `command`: argv, no NUL in any; at least one word, unless the entry point makes the command.
    `outputs`: glob patterns relative to /task/out (`**` crosses directories).
    `environment`: further variables for the process.
    """

    pool: str
    command: tuple[str, ...]
    entrypoint: Entrypoint = Entrypoint.COMMAND
    inputs: tuple[InputSpec, ...] = ()
    outputs: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    trace: TraceProfile = TraceProfile.AUDIT
    name: str = ""
