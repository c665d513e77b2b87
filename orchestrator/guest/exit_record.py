"""How the process ended, from what systemd and its cgroup said: the one place where an Outcome is made."""

from __future__ import annotations

import re

from orchestrator.domain.outcome import Exited, Lost, Outcome, OutOfMemory, Signaled, TimedOut, Usage
from orchestrator.guest.errors import LaunchFailed, StepFailed, printable
from orchestrator.guest.launch import Launch

_SIGNAL = re.compile(r"[A-Z][A-Z0-9+-]{1,11}")


def parse_record(text: bytes) -> dict[str, str]:
    """The fields of a record, as `scripts/record.sh` wrote it and the attendant sent it."""
    lines = text[:65536].decode(errors="replace").splitlines()
    return {key: printable(value) for key, _, value in (line.partition("=") for line in lines)}


def usage_of(record: dict[str, str]) -> Usage:
    """What the process and its children used; None for what the record does not tell."""
    cpu, before, peak = record.get("cpu_usec", ""), record.get("cpu_usec_before", "0"), record.get("memory_peak", "")
    return Usage(
        cpu_seconds=max(0, int(cpu) - int(before)) / 1e6 if _number(cpu) and _number(before) else None,
        memory_peak_bytes=int(peak) if _number(peak) else None,
    )


def outcome_of(record: dict[str, str], launch: Launch) -> Outcome:
    """What systemd.exec(5) calls $SERVICE_RESULT, $EXIT_CODE and $EXIT_STATUS, read together with the cgroup's count of
    out-of-memory kills, which is certain when systemd heard of the process's end first.

    Raises LaunchFailed when the process was never started, so that a status of systemd's or strace's own is not taken
    for the job's; StepFailed when the record is no record.
    """
    result, code, status = (record.get(key, "") for key in ("result", "code", "status"))
    if not result:
        raise StepFailed("the exit record cannot be read")
    ran_too_long = "expired" in record and _ran_too_long(record, launch)
    if "launched" not in record and not ran_too_long:
        raise LaunchFailed(f"systemd did not start the process: result {result}, {code} {status}")
    oom_kills = record.get("oom_kill", "0")
    if result == "oom-kill" or (_number(oom_kills) and int(oom_kills) > 0):
        return OutOfMemory(launch.memory_bytes)
    if ran_too_long:
        return TimedOut(launch.timeout_seconds)
    if "traced" not in record:
        raise LaunchFailed(f"strace did not start the process: result {result}, {code} {status}; its stderr says why")
    match code:
        case "exited" if _number(status) and int(status) < 256:
            return Exited(int(status))
        case "killed" | "dumped" if _SIGNAL.fullmatch(status):
            return Signaled(status)
        case _:
            return Lost(f"systemd says result {result}, {code or 'no code'} {status}".strip())


def _ran_too_long(record: dict[str, str], launch: Launch) -> bool:
    """False: it had ended by itself, just before its time was over."""
    began = record.get("began_usec", "")
    ended = record.get("ExecMainExitTimestampMonotonic", "")
    if not (_number(began) and _number(ended)):
        return True
    return (int(ended) - int(began)) / 1e6 >= launch.timeout_seconds


def _number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 20
