"""Sends what a process writes, as it is written; then how it ended."""
# ruff: noqa: PTH110

from __future__ import annotations

import os
import select
import sys
import time

from orchestrator.guest.scripts.frames import CHUNK, send
from orchestrator.guest.scripts.place import GROUP, LOGS, RUN, STREAMS, read_file

KINDS = (b"o", b"e", b"t")
SHORTEST, LONGEST = 0.005, 0.1


def follow(token: str, offsets: list[int], limit: int) -> None:
    if read_file(RUN + "/token").decode() != token:
        send(b"n", b"the VM has restarted, and the process is gone")
        return
    Following(offsets, limit).run()


class Following:
    def __init__(self, offsets: list[int], limit: int) -> None:
        self.offsets, self.limit = offsets, limit
        self.files: dict[str, int] = {}
        self.wake = [0]
        try:  # noqa: SIM105
            self.wake.append(os.pidfd_open(int(read_file(RUN + "/pid"))))
        except (OSError, ValueError):
            pass  # it has ended

    def run(self) -> None:
        delay = SHORTEST
        absent_since: float | None = None
        ended_at: float | None = None
        while True:
            record = read_file(RUN + "/exit")
            over = record.endswith(b"\nend\n") and (
                b"\nlaunched=yes\n" not in record
                or all(read_file(f"{RUN}/{name}.state").endswith(b"done") for name in STREAMS)
                or (ended_at is not None and time.monotonic() - ended_at > 10)
            )
            if record and ended_at is None:
                ended_at = time.monotonic()
            if self.move():
                delay = SHORTEST
                continue
            # systemd gave up what writes the record, on a slow disk, say: how it ended is in what there is
            over = over or (ended_at is not None and time.monotonic() - ended_at > 10 and not os.path.exists(GROUP))
            if over:
                break
            if record or os.path.exists(GROUP):
                absent_since = None
            elif absent_since is None:
                absent_since = time.monotonic()
            elif time.monotonic() - absent_since > 10:
                send(b"n", b"the process is gone, and nothing says how it ended")
                return
            awake = select.select(self.wake, [], [], delay)[0]
            if 0 in awake and not os.read(0, 1):
                sys.exit()
            if any(awake):  # the process has ended: the record comes soon
                self.wake, delay = [0], SHORTEST
            delay = min(delay * 1.5, LONGEST)
        cut = b"cut=" + " ".join(self.cut()).encode() + b"\n"
        send(b"x", b"".join([record.removesuffix(b"end\n"), cut, self.traced(), read_file(RUN + "/trace.state")]))

    def move(self) -> bool:
        """Send some of what there is."""
        moved = False
        for number, name in enumerate(STREAMS):
            file = self.file(name)
            if file is None:
                continue
            data = os.pread(file, min(CHUNK, self.limit - self.offsets[number]), self.offsets[number])
            if data:
                send(KINDS[number], data)
                self.offsets[number] += len(data)
                moved = True
        return moved

    def file(self, name: str) -> int | None:
        if name not in self.files:
            try:
                self.files[name] = os.open(f"{LOGS}/{name}", os.O_RDONLY)
            except FileNotFoundError:
                return None
        return self.files[name]

    def cut(self) -> list[str]:
        """The names of the streams that are not whole."""
        names = []
        for number, name in enumerate(STREAMS):
            file = self.file(name)
            if file is None:
                continue
            unsent = os.fstat(file).st_size > self.offsets[number]
            state = read_file(f"{RUN}/{name}.state")
            if unsent or state.startswith(b"cut") or b"\ntrace_cut=" in state or b"\ntrace_lost=" in state:
                names.append(name)
        return names

    def traced(self) -> bytes:
        """There is no tracer, or it has seen that the process was executed; else nothing."""
        state = read_file(RUN + "/trace.state")
        if state.startswith(b"trace=none\n"):
            return b"traced=none\n"
        return b"traced=yes\n" if b"\ntrace_begun=" in state else b""
