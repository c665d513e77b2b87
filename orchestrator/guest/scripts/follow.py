"""Sends what a process writes, as it is written; then how it ended."""
# ruff: noqa: PTH110, PTH123

from __future__ import annotations

import os
import select
import sys
import time

from orchestrator.guest.scripts.frames import CHUNK, send

RUN, LOGS = "/run/mayfly-task", "/var/lib/mayfly-task"
GROUP = "/sys/fs/cgroup/system.slice/mayfly-task.service"
STREAMS = ("stdout", "stderr", "trace")
KINDS = (b"o", b"e", b"t")


def read_file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(CHUNK)
    except OSError:
        return b""


def ends_well(trace: int) -> bool:
    """Its last line is the end of a process: strace wrote all that there was to write."""
    size = os.fstat(trace).st_size
    return os.pread(trace, 5, max(0, size - 5)) == b" +++\n"


def follow(token: str, offsets: list[int], limit: int) -> None:
    if read_file(RUN + "/token").decode().strip() != token:
        send(b"n", b"the VM has restarted, and the process is gone")
        return
    files: dict[str, int] = {}
    delay = 0.005
    absent_since: float | None = None
    ended_at: float | None = None
    while True:
        record = read_file(RUN + "/exit")
        over = record.endswith(b"\nend\n") and (
            b"\nlaunched=yes\n" not in record
            or all(os.path.exists(RUN + "/" + name + ".done") for name in STREAMS[:2])
            or (ended_at is not None and time.monotonic() - ended_at > 10)
        )
        if record and ended_at is None:
            ended_at = time.monotonic()
        moved = False
        for number, name in enumerate(STREAMS):
            if name not in files:
                try:
                    files[name] = os.open(LOGS + "/" + name, os.O_RDONLY)
                except FileNotFoundError:
                    continue
            data = os.pread(files[name], min(CHUNK, limit - offsets[number]), offsets[number])
            if data:
                send(KINDS[number], data)
                offsets[number] += len(data)
                moved = True
        if moved:
            delay = 0.005
            continue
        if over:
            break
        if record or os.path.exists(GROUP):
            absent_since = None
        elif absent_since is None:
            absent_since = time.monotonic()
        elif time.monotonic() - absent_since > 10:
            send(b"n", b"the process is gone, and nothing says how it ended")
            return
        if select.select([0], [], [], delay)[0] and not os.read(0, 1):
            sys.exit()
        delay = min(delay * 1.5, 0.1)
    cut = [
        name
        for number, name in enumerate(STREAMS)
        if os.path.exists(RUN + "/" + name + ".cut")
        or (name in files and os.fstat(files[name]).st_size > offsets[number])
        or (name == "trace" and name in files and not ends_well(files[name]))
    ]
    send(b"x", record[: -len(b"end\n")] + b"cut=" + " ".join(cut).encode() + b"\n")
