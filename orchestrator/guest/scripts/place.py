"""Where things are in the guest, and short ways to read and write them. Both directories are root's, mode 0700.

RUN   forgotten with a restart
  lock        held while the unit is armed, and while its process is started
  tracing     whether the launcher has a tracer, see `tracing`
  unbounded   why what the process writes cannot be bounded; empty when it is
  armed       what it was armed for; there once it is
  token       whose process it is; not empty once it has one
  launched    the launcher was told to go on
  began       when that was, and what had been used by then, as key=value
  launch      the text that the launcher runs then
  pid         of the launcher, which becomes the process
  expired     the process was ended because its time was over
  stdout, stderr, go, ready, timer    named pipes
  trace, tracer                       named pipes: strace's output, and what it has to say itself
  said-by-tracer                      the first of that
  stdout.state, stderr.state          "cut", "done": what became of the stream
  trace.state                         the same of the trace, as key=value, and "done"
  exit        how the process ended, as key=value, and "end"
LOGS  kept
  mark        there once the unit was armed: where it is and RUN is not, the machine has restarted since
  stdout, stderr, trace    the last one compressed
"""
# ruff: noqa: PTH110, PTH123

from __future__ import annotations

import os

RUN, LOGS = "/run/mayfly-task", "/var/lib/mayfly-task"
LAYER = "/task/layer"
UNIT = "mayfly-task"
GROUP = "/sys/fs/cgroup/system.slice/mayfly-task.service"
STREAMS = ("stdout", "stderr", "trace")


def read_file(path: str) -> bytes:
    """Its first 64 KiB; nothing when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(1 << 16)
    except OSError:
        return b""


def write_file(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


def used() -> bool:
    """This machine has had a process, or may have had one before it restarted."""
    return bool(read_file(RUN + "/token")) or restarted()


def restarted() -> bool:
    """This machine has restarted since it was armed."""
    return os.path.exists(LOGS + "/mark") and not os.path.exists(RUN)
