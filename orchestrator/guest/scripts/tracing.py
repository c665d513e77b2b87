"""The trace on its way from strace to the disk: its lines are looked at, compressed as they come, and counted by system
call once there is no more room for them.

strace writes into a pipe, so it can neither fill the disk nor get ahead of who reads; and no line wakes the keeper
while it rests. What becomes of the trace is written down as lines of key=value, see `Trace.close`.
"""

from __future__ import annotations

import os
import time

from orchestrator.guest.scripts.place import LOGS, RUN, read_file, write_file

TYPE_CHECKING = False
if TYPE_CHECKING:  # who arms looks at the tracer only
    import zlib

SET_PIPE_SIZE = 1031
ROOM = 1 << 20
"""Bytes that the pipe holds, and of plain text in a member of the compressed file."""

REST_SECONDS, REST_WHEN_BUSY = 0.2, 0.05
BUSY = ROOM // 4
TRAILER = 64
"""More than what ends a member."""

MAX_NAMES = 600
GZIP, LEVEL = 31, 1
MAX_SAID = 4096


def look_at_tracer() -> None:
    """Write down whether the launcher, which waits, has a tracer, and whether that one is stopped only at system calls
    that it records: then the kernel counts one seccomp filter more of the launcher than of its tracer."""
    launcher = status_of(read_file(RUN + "/pid").strip())
    tracer = launcher.get(b"TracerPid", b"0")
    if tracer == b"0":
        word = b"none"
    else:
        filters = [each.get(b"Seccomp_filters", b"") for each in (launcher, status_of(tracer))]
        word = b"unknown" if b"" in filters else b"fast" if int(filters[0]) > int(filters[1]) else b"slow"
    write_file(RUN + "/tracing", word)


def status_of(pid: bytes) -> dict[bytes, bytes]:
    lines = read_file(f"/proc/{pid.decode()}/status").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(b":") for line in lines)}


class Trace:
    """What comes out of strace's pipe. It begins with the process's own execve: of what the launcher did before it was
    told to go on, that of itself, nothing is kept. `limit`: bytes of detail, plain and as stored."""

    def __init__(self) -> None:
        import fcntl
        import zlib

        self.zlib = zlib
        # the file first: who opens the pipe for writing knows that it is empty
        self.file = os.open(LOGS + "/trace", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self.pipe = os.open(RUN + "/trace", os.O_RDONLY | os.O_NONBLOCK)
        try:  # noqa: SIM105
            fcntl.fcntl(self.pipe, SET_PIPE_SIZE, ROOM)
        except OSError:
            pass
        self.limit = 0
        self.member, self.in_member = self.new_member(), 0
        self.plain = self.stored = 0
        self.rest, self.executed = b"", 0
        self.launcher = b""
        self.full = self.cut = self.main_ended = self.whole = False
        self.counts: dict[bytes, int] = {}
        self.used: set[bytes] = set()
        self.wake_at = 0.0

    def new_member(self) -> zlib._Compress:
        return self.zlib.compressobj(LEVEL, self.zlib.DEFLATED, GZIP)

    def move(self) -> bool:
        """Take what is there; False when strace has ended."""
        try:
            data = os.read(self.pipe, ROOM)
        except BlockingIOError:
            return True
        self.wake_at = time.monotonic() + (REST_WHEN_BUSY if len(data) >= BUSY else REST_SECONDS)
        if data:
            whole, newline, self.rest = (self.rest + data).rpartition(b"\n")
            if newline:
                self.take(whole + newline)
        return bool(data)

    def take(self, text: bytes) -> None:
        """Whole lines."""
        text = text if self.executed > 1 else self.from_second_execve(text)
        if not text:
            return
        self.notice(text)
        fits = self.fitting(text)
        if fits and not self.keep(fits):
            fits = b""
        if len(fits) < len(text):
            self.cut = True
            self.count(text[len(fits) :])

    def fitting(self, text: bytes) -> bytes:
        """As many of these lines as there is room for; once cut, none."""
        room = self.limit - self.plain
        if self.cut or len(text) <= room:
            return b"" if self.cut else text
        return text[: text.rfind(b"\n", 0, room) + 1]

    def from_second_execve(self, text: bytes) -> bytes:
        """From the line on that says that a program is executed, the second one: the first one is the launcher. A line:
        number, time, call."""
        at = 0
        while (end := text.find(b"\n", at)) >= 0:
            self.executed += call_of(text[at:end]).startswith(b"execve(")
            if self.executed > 1:
                return text[at:]
            at = end + 1
        return b""

    def notice(self, text: bytes) -> None:
        """What a process does that can hide something from its tracer; the end of the process itself."""
        for word, mark, name in HIDING:
            if word not in self.used and mark in text and self.has(text, mark, name):
                self.used.add(word)
        if b" +++ " in text:
            launcher = (self.launcher or read_file(RUN + "/pid").strip()) + b" "
            self.main_ended = self.main_ended or any(
                call_of(line).startswith((b"+++ exited", b"+++ killed"))
                for line in text.split(b"\n")
                if line.startswith(launcher)
            )
        self.whole = text.endswith(b" +++\n")

    def has(self, text: bytes, mark: bytes, names: tuple[bytes, ...]) -> bool:
        """A call of that name has the mark in it, and not only a string in some other."""
        return any(mark in line and call_of(line).startswith(names) for line in text.split(b"\n"))

    def keep(self, text: bytes) -> bool:
        """Compress and write; False when that is more than may be, or the disk is full."""
        near = self.stored + len(text) + TRAILER > self.limit
        before = self.member.copy() if near else None
        data = self.member.compress(text) + self.member.flush(self.zlib.Z_SYNC_FLUSH)
        if before and self.stored + len(data) + TRAILER > self.limit:
            self.member = before
            return False
        if not self.write(data):
            return False
        self.plain += len(text)
        self.in_member += len(text)
        if self.in_member >= ROOM:
            return self.end_member()
        return True

    def end_member(self) -> bool:
        written = self.write(self.member.flush())
        self.member, self.in_member = self.new_member(), 0
        return written

    def write(self, data: bytes) -> bool:
        try:
            view = memoryview(data)
            while view and not self.full:
                written = os.write(self.file, view)
                self.stored += written
                view = view[written:]
        except OSError:
            self.full = True
        return not self.full

    def count(self, text: bytes) -> None:
        """Calls that begin, by name. A process may make calls that have no name: these are numbered without end."""
        counts = self.counts
        for line in text.split(b"\n"):
            name, begins, _ = call_of(line).partition(b"(")
            if begins and name.replace(b"_", b"").isalnum():
                if name not in counts and len(counts) >= MAX_NAMES:
                    name = b"others"
                counts[name] = counts.get(name, 0) + 1

    def close(self) -> None:
        """Write down what became of it.

        trace           none: there is no tracer; fast, slow, unknown: see `look_at_tracer`
        trace_begun     it says that the process was executed
        trace_bytes     of plain text
        trace_cut       there was more than there is room for
        trace_counts    NAME:NUMBER … of calls from there on
        trace_lost      the tracer ended before the process, or before others that it had started
        trace_used      words of HIDING
        trace_said      what strace itself had to say
        """
        if self.in_member and not self.full:
            self.end_member()
        tracing = read_file(RUN + "/tracing")
        told = [b"trace=" + tracing, b"trace_bytes=%d" % self.plain]
        if tracing != b"none":
            if self.executed > 1:
                told.append(b"trace_begun=yes")
            if self.executed > 1 and not (self.main_ended and self.whole and not self.rest):
                told.append(b"trace_lost=" + (b"others" if self.main_ended else b"process"))
            if self.cut:
                told.append(b"trace_cut=yes")
            told.append(b"trace_used=" + b" ".join(sorted(self.used)))
            told.append(b"trace_counts=" + b" ".join(b"%s:%d" % each for each in self.counts.items()))
        said = read_file(RUN + "/said-by-tracer")[:MAX_SAID]
        told.append(b"trace_said=" + b" ".join(said.split()))
        write_file(RUN + "/trace.state", b"\n".join(told) + b"\ndone")
        for descriptor in (self.pipe, self.file):
            os.close(descriptor)


def call_of(line: bytes) -> bytes:
    words = line.split(None, 2)
    return words[2] if len(words) == 3 else b""


HIDING = (
    (b"ptrace", b" ptrace(", (b"ptrace(",)),
    (b"seccomp", b"SECCOMP_SET_MODE_", (b"seccomp(",)),
    (b"seccomp", b"PR_SET_SECCOMP", (b"prctl(",)),
    (b"io_uring", b" io_uring_setup(", (b"io_uring_setup(",)),
    (b"untraced_child", b"CLONE_UNTRACED", (b"clone(", b"clone3(")),
)
"""Word, what to look for, and the calls that it must stand in."""
