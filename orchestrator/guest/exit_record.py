"""How the process ended, from what systemd and its cgroup said: the one place where an Outcome is made."""

from __future__ import annotations

import re

from orchestrator.domain.outcome import DiskFull, Exited, Lost, Outcome, OutOfMemory, Signaled, TimedOut, Usage
from orchestrator.guest.errors import LaunchFailed, StepFailed, printable
from orchestrator.guest.launch import Launch

_SPARE_BYTES, _SPARE_SHARE = 64 * 1024, 1024
"""Room that is as good as none: so much, or such a part of all that there is. A write that does not fit as a whole
leaves a little."""

_SIGNAL = re.compile(r"[A-Z][A-Z0-9+-]{1,11}")


def parse_record(text: bytes) -> dict[str, str]:
    """The fields of a record, as `scripts/record.sh` wrote it and the attendant sent it."""
    lines = text[:65536].decode(errors="replace").splitlines()
    return {key: printable(value) for key, _, value in (line.partition("=") for line in lines)}


def usage_of(record: dict[str, str]) -> Usage:
    """What the process and its children used; None for what the record does not tell. What strace wrote of them is in
    what they wrote."""
    return Usage(
        cpu_seconds=None if (cpu := _used(record, "cpu_usec", "cpu_usec_before")) is None else cpu / 1e6,
        memory_peak_bytes=_used(record, "memory_peak"),
        read_bytes=_used(record, "io_read", "io_read_before"),
        written_bytes=_used(record, "io_written"),
    )


def _used(record: dict[str, str], key: str, before: str = "") -> int | None:
    at_end, at_start = record.get(key, ""), record.get(before, "0")
    return max(0, int(at_end) - int(at_start)) if _number(at_end) and _number(at_start) else None


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
        return OutOfMemory(launch.memory_bytes, _used(record, "memory_peak"))
    if ran_too_long:
        return TimedOut(launch.timeout_seconds)
    if "traced" not in record:
        raise LaunchFailed(f"strace did not start the process: result {result}, {code} {status}; its stderr says why")
    match code:
        case "exited" if _number(status) and int(status) < 256:
            return _full(record, launch, int(status)) or Exited(int(status))
        case "killed" | "dumped" if _SIGNAL.fullmatch(status):
            return Signaled(status)
        case _:
            return Lost(f"systemd says result {result}, {code or 'no code'} {status}".strip())


def _full(record: dict[str, str], launch: Launch, code: int) -> DiskFull | None:
    """It ended badly, and there was no room: in its outputs, its scratch, or on the whole disk."""
    if code == 0:
        return None
    rooms = (("out", "/task/out", launch.output_bytes), ("scratch", "/task/tmp", launch.scratch_bytes), ("disk", "", 0))
    for name, where, limit in rooms:
        told = record.get(f"{name}_room", "").split()
        if limit is None or len(told) != 3 or not all(map(_number, told)):
            continue
        free, total = int(told[0]) * int(told[2]), int(told[1]) * int(told[2])
        bounded = 0 < total <= limit + int(told[2])  # else it is the disk's: it holds no quotas
        if (bounded or not where) and free < max(_SPARE_BYTES, total // _SPARE_SHARE):
            return DiskFull(where or "the disk", total, code)
    return None


def _ran_too_long(record: dict[str, str], launch: Launch) -> bool:
    """False: it had ended by itself, just before its time was over."""
    began = record.get("began_usec", "")
    ended = record.get("ExecMainExitTimestampMonotonic", "")
    if not (_number(began) and _number(ended)):
        return True
    return (int(ended) - int(began)) / 1e6 >= launch.timeout_seconds


def _number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18
