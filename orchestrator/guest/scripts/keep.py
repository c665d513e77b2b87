"""The keeper: a process outside of the unit, so no kill of it reaches the keeper. It writes down what comes out of the
pipes that are the process's stdout and stderr, and ends the process when its time is over.

(They are pipes, for the process to write to /dev/stdout and /dev/stderr as well: a file of root's it could not open
again, and a file of its own it could cut.)
"""
# ruff: noqa: PTH110

from __future__ import annotations

import os
import select
import time

from orchestrator.guest.scripts.place import GROUP, LOGS, RUN, UNIT, write_file

LEAST_OF_OOM = b"-900"


def keep() -> None:
    """Start it. It leaves nothing of its parent's open."""
    if os.fork():
        return
    try:
        os.setsid()
        nothing = os.open("/dev/null", os.O_RDWR)
        for descriptor in range(3):
            os.dup2(nothing, descriptor)
        os.closerange(3, 1024)
        write_file("/proc/self/oom_score_adj", LEAST_OF_OOM)
        write_file(RUN + "/keeper", b"%d" % os.getpid())
        Keeper().run()
    finally:
        os._exit(0)


class Stream:
    """One pipe, and the file that it goes to."""

    def __init__(self, name: str) -> None:
        self.pipe = os.open(f"{RUN}/{name}", os.O_RDONLY | os.O_NONBLOCK)
        self.file = os.open(f"{LOGS}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self.state = os.open(f"{RUN}/{name}.state", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self.cut = False

    def move(self) -> bool:
        """Move what is there; False when nobody writes to it any more. What does not fit on the disk is dropped: the
        process goes on."""
        try:
            if not self.cut:
                return bool(os.splice(self.pipe, self.file, 1 << 20))
        except BlockingIOError:
            return True
        except OSError:
            self.cut = True
            os.write(self.state, b"cut ")
        try:
            return bool(os.read(self.pipe, 1 << 16))
        except BlockingIOError:
            return True

    def close(self) -> None:
        os.write(self.state, b"done")
        for descriptor in (self.pipe, self.file, self.state):
            os.close(descriptor)


class Keeper:
    def __init__(self) -> None:
        self.poller = select.poll()
        self.streams = {stream.pipe: stream for stream in map(Stream, ("stdout", "stderr"))}
        self.timer = os.open(RUN + "/timer", os.O_RDWR)
        for descriptor in (*self.streams, self.timer):
            self.poller.register(descriptor, select.POLLIN)
        self.until: float | None = None
        self.grace = 0.0
        self.stopping = False

    def run(self) -> None:
        while self.streams or not os.path.exists(RUN + "/exit"):
            for descriptor, _ in self.poller.poll(self.pause()):
                if descriptor == self.timer:
                    self.until, self.grace = map(float, os.read(self.timer, 256).split()[:2])
                elif not self.streams[descriptor].move():
                    self.poller.unregister(descriptor)
                    self.streams.pop(descriptor).close()
            if self.until is not None and time.monotonic() >= self.until:
                self.expire()

    def pause(self) -> float | None:
        """In milliseconds."""
        left = None if self.until is None else max(0.0, self.until - time.monotonic()) * 1000 + 1
        return left if self.streams else min(1000.0, left or 1000.0)

    def expire(self) -> None:
        """systemd: SIGTERM, and SIGKILL when the unit's grace is over; and once more, should it not."""
        if self.stopping:
            write_file(GROUP + "/cgroup.kill", b"1")
            self.until = None
            return
        write_file(RUN + "/expired", b"yes\n")
        os.posix_spawnp("systemctl", ["systemctl", "stop", "--no-block", UNIT], os.environ)
        self.stopping = True
        self.until = time.monotonic() + self.grace + 10
