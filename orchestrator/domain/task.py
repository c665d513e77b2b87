"""A task, its attempts and the moves that are legal between their states."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
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
    LAYER = "layer"


class TraceProfile(StrEnum):
    """What is recorded. AUDIT: processes, files by name, network. FULL: every system call. NONE: nothing; the process
    runs without a tracer."""

    AUDIT = "audit"
    FULL = "full"
    NONE = "none"


class Delivery(StrEnum):
    """AT_LEAST_ONCE: when nobody can say whether a process ended, another may be started. AT_MOST_ONCE: never a second
    process once one may have started; the task fails instead."""

    AT_LEAST_ONCE = "at_least_once"
    AT_MOST_ONCE = "at_most_once"


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input: `source` is where the submitter had it, `dest` its path relative to /task/in, `blob` its tree in the
    artifact store (set at submit, when it was read). code: it is a program that somebody may have approved, and no
    data. pinned: the tree that was approved, as "sha256:" and 64 hexadecimal digits; another is refused.
    """

    source: str
    dest: str
    blob: str = ""
    code: bool = False
    pinned: str = ""


@dataclass(frozen=True, slots=True)
class Packages:
    """What is to be installed for a task, without its data: `requirements` is the text of a requirements.txt of pip's,
    `debian` are names of Debian packages. What comes of it is a *layer*: see `orchestrator.decide.layers`."""

    requirements: str = ""
    debian: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.requirements.strip() or self.debian)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one process may use. Seconds of wall-clock; bytes of memory; processes and threads; files open at once, of
    each process; bytes in /task/out, and in /task/tmp and /tmp together. None: the pool's."""

    timeout_seconds: float | None = None
    memory_bytes: int | None = None
    processes: int | None = None
    open_files: int | None = None
    output_bytes: int | None = None
    scratch_bytes: int | None = None


MIN_PRIORITY, MAX_PRIORITY = -100, 100


@dataclass(frozen=True, slots=True)
class Terms:
    """How a task waits, and what a failure is answered with.

    priority: MIN_PRIORITY to MAX_PRIORITY, the higher goes first. not_before: an aware instant. depends_on: ids of
    tasks of the same frontend, each of which must be FINISHED first. max_attempts: None is the pool's.
    retry_job: a process that ended badly by itself is tried again too; the platform's failures always are.
    """

    priority: int = 0
    not_before: datetime | None = None
    depends_on: tuple[str, ...] = ()
    delivery: Delivery = Delivery.AT_LEAST_ONCE
    max_attempts: int | None = None
    retry_job: bool = False


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """What a frontend asks for: one process to run.

    `command`: argv, no NUL in any; at least one word, unless the entry point makes the command.
    `outputs`: glob patterns relative to /task/out (`**` crosses directories).
    `environment`: further variables for the process.
    `seal`: the name of a seal profile that the pool allows; "" is the pool's own.
    """

    pool: str
    command: tuple[str, ...]
    entrypoint: Entrypoint = Entrypoint.COMMAND
    inputs: tuple[InputSpec, ...] = ()
    outputs: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    trace: TraceProfile = TraceProfile.AUDIT
    seal: str = ""
    packages: Packages = field(default_factory=Packages)
    name: str = ""
    terms: Terms = field(default_factory=Terms)
