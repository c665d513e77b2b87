"""Starts the process of an armed unit, once and never again."""
# ruff: noqa: PTH110

from __future__ import annotations

import os
import time

from orchestrator.guest.scripts.place import GROUP, RUN, read_file, write_file


class Lock:
    """One at a time; it is let go with the program that holds it."""

    def __enter__(self) -> None:
        self.file = os.open(RUN + "/lock", os.O_RDWR | os.O_CREAT, 0o600)
        os.lockf(self.file, os.F_LOCK, 0)

    def __exit__(self, *_: object) -> None:
        os.close(self.file)


def start(token: bytes, seconds: float, grace: float, memory: bytes, tasks: bytes, log: int, launch: bytes) -> str:
    """The answer: "started", now or before, for this token; "refused", this machine has had another's process; or
    "failed" and why."""
    with Lock():
        owner = read_file(RUN + "/token")
        if owner and owner != token:
            return "refused"
        if os.path.exists(RUN + "/launched"):
            return "started"
        try:
            go, timer = (os.open(f"{RUN}/{name}", os.O_WRONLY | os.O_NONBLOCK) for name in ("go", "timer"))
        except OSError as error:
            return f"failed the unit is not there any more: {error.strerror}"
        try:
            write_file(RUN + "/token", token)
            for name, limit in (("memory.max", memory), ("pids.max", tasks)):
                if read_file(f"{GROUP}/{name}").strip() != limit:
                    write_file(f"{GROUP}/{name}", limit)
            write_file(RUN + "/launch", launch)
            now = time.monotonic()
            write_file(RUN + "/began", b"began_usec=%d\n%s" % (int(now * 1e6), used_before()))
            os.write(timer, b"%f %f %d\n" % (now + seconds, grace, log))
            write_file(RUN + "/launched", b"")  # from here on a repeated start is answered with "started"
            os.write(go, b"\n")
        except OSError as error:
            return f"failed {error.strerror}"
        return "started"


def used_before() -> bytes:
    """What the launcher and its tracer had used before, as key=value."""
    told = b""
    for line in read_file(GROUP + "/cpu.stat").splitlines():
        if line.startswith(b"usage_usec "):
            told = b"cpu_usec_before=" + line.split()[1] + b"\n"
    read = sum(int(word[7:]) for word in read_file(GROUP + "/io.stat").split() if word.startswith(b"rbytes="))
    return told + b"io_read_before=%d\n" % read
