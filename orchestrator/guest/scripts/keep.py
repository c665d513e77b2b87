"""The keeper: a process outside of the unit, so no kill of it reaches the keeper. It writes down what comes out of the
pipes that are the process's stdout and stderr and strace's output, and ends the process when its time is over.

(They are pipes, for the process to write to /dev/stdout and /dev/stderr as well: a file of root's it could not open
again, and a file of its own it could cut.)
"""
# ruff: noqa: PTH110

from __future__ import annotations

import os
import select
import time

from orchestrator.guest.scripts.place import GROUP, LOGS, RUN, UNIT, read_file, write_file
from orchestrator.guest.scripts.tracing import MAX_SAID, Trace

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


class Said:
    """What strace itself has to say, and the launcher before it is the process: the first of it is kept."""

    def __init__(self) -> None:
        self.pipe = os.open(RUN + "/tracer", os.O_RDONLY | os.O_NONBLOCK)
        self.file = os.open(RUN + "/said-by-tracer", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self.room = MAX_SAID

    def move(self) -> bool:
        """Take what is there; False when nobody has it open any more."""
        try:
            said = os.read(self.pipe, 1 << 16)
        except BlockingIOError:
            return True
        if kept := said[: self.room]:
            self.room -= os.write(self.file, kept)
        return bool(said)

    def close(self) -> None:
        for descriptor in (self.pipe, self.file):
            os.close(descriptor)


class Keeper:
    def __init__(self) -> None:
        self.poller = select.poll()
        self.trace = Trace()
        streams = (Stream("stdout"), Stream("stderr"), Said(), self.trace)
        self.streams: dict[int, Stream | Said | Trace] = {stream.pipe: stream for stream in streams}
        self.timer = os.open(RUN + "/timer", os.O_RDWR | os.O_NONBLOCK)
        for descriptor in (*self.streams, self.timer):
            self.poller.register(descriptor, select.POLLIN)
        self.until: float | None = None
        self.grace = 0.0
        self.launched = self.stopping = self.resting = False

    def run(self) -> None:
        while self.streams or not os.path.exists(RUN + "/exit"):
            ready = self.poller.poll(self.pause())
            if not self.launched:
                self.launch()
            for descriptor, _ in ready:
                stream = self.streams.get(descriptor)
                if stream and not stream.move():
                    self.end(descriptor)
            self.let_rest()
            if self.until is not None and time.monotonic() >= self.until:
                self.expire()

    def launch(self) -> None:
        """Has the process been started? That is said before it is, so what the trace says of it comes later."""
        try:
            until, grace, limit = os.read(self.timer, 256).split()[:3]
        except BlockingIOError:
            return
        self.until, self.grace, self.trace.limit = float(until), float(grace), int(limit)
        self.launched = True
        self.poller.unregister(self.timer)
        if read_file(RUN + "/tracing") == b"none" and self.trace.pipe in self.streams:
            self.end(self.trace.pipe)

    def end(self, descriptor: int) -> None:
        self.poller.unregister(descriptor)
        self.streams.pop(descriptor).close()

    def let_rest(self) -> None:
        """After each look at the trace, none for a while, whatever strace writes; but its end is heard of."""
        resting = time.monotonic() < self.trace.wake_at
        if resting != self.resting and self.trace.pipe in self.streams:
            self.poller.modify(self.trace.pipe, 0 if resting else select.POLLIN)
            self.resting = resting

    def pause(self) -> float | None:
        """In milliseconds."""
        now = time.monotonic()
        waits = [max(0.0, self.until - now) * 1000 + 1] if self.until is not None else []
        if self.resting and self.trace.pipe in self.streams:
            waits.append(max(0.0, self.trace.wake_at - now) * 1000 + 1)
        if not self.streams:
            waits.append(1000.0)
        return min(waits, default=None)

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
