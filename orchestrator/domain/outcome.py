"""How a process ended (`Outcome`), and what we say of the task then (`Verdict`). Values, never exceptions."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import assert_never

from orchestrator.domain.task import TaskState


class Reason(StrEnum):
    """Why a task is where it is: to tell people with. Logic never branches on its text."""

    # the process ended
    EXIT_NONZERO = "exit_nonzero"
    SIGNALED = "signaled"
    OUT_OF_MEMORY = "out_of_memory"
    TIMED_OUT = "timed_out"
    DISK_FULL = "disk_full"
    OUTPUT_MISSING = "output_missing"
    # the platform failed
    PROVISION_FAILED = "provision_failed"
    UNREACHABLE = "unreachable"
    WRONG_HOST_KEY = "wrong_host_key"
    CONNECTION_LOST = "connection_lost"
    GUEST_FAILED = "guest_failed"
    SEAL_BROKEN = "seal_broken"
    STAGING_FAILED = "staging_failed"
    HOST_DISK_FULL = "host_disk_full"
    RUNNER_LOST = "runner_lost"
    INTERNAL = "internal"
    # it took too long, and nobody's process is to blame
    DEADLINE_PASSED = "deadline_passed"
    # it can never run
    DEPENDENCY_FAILED = "dependency_failed"
    LAYER_FAILED = "layer_failed"
    # somebody wanted it
    CANCELED = "canceled"
    # it waits
    NOT_RELEASED = "not_released"
    NOT_BEFORE = "not_before"
    DEPENDS_ON = "depends_on"
    LAYER = "layer"
    RETRY = "retry"
    POOL_PAUSED = "pool_paused"
    NO_SUCH_POOL = "no_such_pool"
    NO_RUNNER = "no_runner"
    QUOTA = "quota"
    NO_CAPACITY = "no_capacity"
    MAX_VMS = "max_vms"
    IN_LINE = "in_line"


@dataclass(frozen=True, slots=True)
class Usage:
    """What the process used, from cgroup accounting: seconds of CPU, peak bytes of memory, bytes read from and
    written to the disk. None: not known."""

    cpu_seconds: float | None = None
    memory_peak_bytes: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Exited:
    """The process ended by itself with `code`, 0 to 255."""

    code: int


@dataclass(frozen=True, slots=True)
class Signaled:
    """The process was ended by a signal: `name` without "SIG", as systemd gives it: "KILL", "SEGV"."""

    name: str


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """The kernel killed the process, or one of its own, at the memory limit, in bytes. peak_bytes: the most that it
    had; None: not known."""

    limit_bytes: int
    peak_bytes: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class DiskFull:
    """The process ended badly, and the room in `where` (/task/out, /task/tmp, the disk) was used up: `limit_bytes`."""

    where: str
    limit_bytes: int
    code: int


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The process ran for `seconds`, its limit, and was ended."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Lost:
    """Nobody can say how the process ended: its VM, or the way to it, is gone."""

    why: str


Outcome = Exited | Signaled | OutOfMemory | TimedOut | DiskFull | Lost


@dataclass(frozen=True, slots=True)
class Verdict:
    """What we say of a task when an attempt is over.

    `exit_code` is what `mayfly run` exits with: the job's own, 128 + n for signal n as a shell has it, 124 for a
    time-out as coreutils' `timeout` has it, 137 for out of memory (a SIGKILL), 130 when it was canceled (as after
    Ctrl-C), 125 when it is Mayfly that says no: the platform failed, or an output that was asked for is not there.
    """

    state: TaskState
    reason: Reason | None
    message: str
    exit_code: int


PLATFORM_EXIT = 125
TIMEOUT_EXIT = 124
CANCELED_EXIT = 130

_SIGNALS = {
    "HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "BUS": 7, "FPE": 8, "KILL": 9, "USR1": 10,
    "SEGV": 11, "USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": 15, "STKFLT": 16, "XCPU": 24, "XFSZ": 25,
    "VTALRM": 26, "PROF": 27, "IO": 29, "PWR": 30, "SYS": 31,
}  # fmt: skip
"""Signal numbers of Linux on x86 and ARM: signal(7)."""

_MEANING = {
    126: "the command was found but could not be executed",
    127: "the command was not found",
}


def judge(outcome: Outcome, *, missing_outputs: tuple[str, ...] = ()) -> Verdict:
    """What an outcome means for the task. `missing_outputs`: a line for each pattern that matched nothing."""
    match outcome:
        case Exited(0) if missing_outputs:
            return Verdict(TaskState.FAILED, Reason.OUTPUT_MISSING, "; ".join(missing_outputs), PLATFORM_EXIT)
        case Exited(0):
            return Verdict(TaskState.FINISHED, None, "exited with 0", 0)
        case Exited(code):
            meaning = f": {_MEANING[code]}" if code in _MEANING else ""
            return Verdict(TaskState.FAILED, Reason.EXIT_NONZERO, f"exited with {code}{meaning}", code)
        case Signaled(name):
            return Verdict(TaskState.FAILED, Reason.SIGNALED, f"ended by SIG{name}", 128 + _SIGNALS.get(name, 0))
        case OutOfMemory(limit, peak):
            most = "" if peak is None else f"; it had {peak // 2**20} MiB"
            message = f"out of memory: killed at its limit of {limit // 2**20} MiB{most}"
            return Verdict(TaskState.FAILED, Reason.OUT_OF_MEMORY, message, 128 + 9)
        case DiskFull(where, limit, code):
            message = f"disk full: no room was left in {where}, of {limit // 2**20} MiB; exited with {code}"
            return Verdict(TaskState.FAILED, Reason.DISK_FULL, message, code)
        case TimedOut(seconds):
            return Verdict(TaskState.FAILED, Reason.TIMED_OUT, f"timed out after {seconds:g} s", TIMEOUT_EXIT)
        case Lost(why):
            return Verdict(TaskState.FAILED, Reason.CONNECTION_LOST, f"lost: {why}", PLATFORM_EXIT)
        case _:
            assert_never(outcome)


def failed(reason: Reason | None, message: str) -> Verdict:
    """The platform failed, and how; None when nobody foresaw it."""
    return Verdict(TaskState.FAILED, reason or Reason.INTERNAL, message, PLATFORM_EXIT)


def stopped(outcome: Outcome | None) -> Verdict:
    """The task was canceled; `outcome` says how its process ended, None if it never began."""
    how = "" if outcome is None else f", and its process {judge(outcome).message}"
    return Verdict(TaskState.CANCELED, Reason.CANCELED, f"canceled{how}", CANCELED_EXIT)
