"""Outputs out: what there is under /task/out, and regular files of it, read as the user `task`; no link is followed.

Frames:

    l     entries, each "kind mode size mtime name" and a NUL;  k  that was all of it
    w     a small file, whole: its sha256, "same" or "changed", a newline, its bytes
    f     a large file begins, of that many bytes;  d  its bytes;  h  its sha256, and "same" or "changed"
    !     a listing, or the file whose turn it is, was refused, and why

They are gathered: a packet of SSH's for each would take longer than what is in it.
"""
# ruff: noqa: PTH118, PTH123, SIM105

from __future__ import annotations

import fcntl
import os
import stat
from itertools import islice

from orchestrator.guest.scripts.hashing import sha256_for

TYPE_CHECKING = False
if TYPE_CHECKING:  # to load typing takes too long in an emulated machine
    from typing import Any

OUT = "/task/out"
CHUNK = 1 << 16
SMALL = 1 << 16
GATHERED = 1 << 18
PIPE_BYTES, F_SETPIPE_SZ = 1 << 20, 1031
REGULAR = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Gathering:
    """Frames on their way out."""

    def __init__(self) -> None:
        self.data = bytearray()
        try:
            fcntl.fcntl(1, F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            pass  # it is no pipe, or may not be so large: only slower

    def put(self, kind: bytes, *payload: bytes) -> None:
        self.data += kind + sum(map(len, payload)).to_bytes(4, "big")
        for part in payload:
            self.data += part
        if len(self.data) >= GATHERED:
            self.flush()

    def flush(self) -> None:
        view = memoryview(self.data)
        while view:
            view = view[os.write(1, view) :]
        self.data = bytearray()


def kind_of(mode: int) -> str:
    for letter, test in (("f", stat.S_ISREG), ("d", stat.S_ISDIR), ("l", stat.S_ISLNK), ("p", stat.S_ISFIFO)):
        if test(mode):
            return letter
    return "s" if stat.S_ISSOCK(mode) else "b"


def listing(out: Gathering, most: int) -> str | None:
    """As root, for names only: a directory closed by its owner is listed too. The process has ended by now."""
    waiting, batch, count = [b""], b"", 0
    while waiting:
        below = waiting.pop()
        directory = os.open(os.path.join(OUT.encode(), below), FOLDER)
        try:
            with os.scandir(directory) as found:  # no more of them than count: a process may have left millions
                names = [os.fsencode(each.name) for each in islice(found, most - count + 1)]
            for name in sorted(names):
                path = os.path.join(below, name)
                count += 1
                if count > most:
                    return f"more than {most} files and directories"
                if len(path) > 4000:
                    return "a path of more than 4000 bytes"
                about = os.stat(name, dir_fd=directory, follow_symlinks=False)
                kind = kind_of(about.st_mode)
                about_it = f"{kind} {about.st_mode & 0o7777:o} {about.st_size} {int(about.st_mtime)} "
                batch += about_it.encode() + path + b"\0"
                if len(batch) > CHUNK:
                    out.put(b"l", batch)
                    batch = b""
                if kind == "d":
                    waiting.append(path)
        finally:
            os.close(directory)
    out.put(b"l", batch)
    out.put(b"k")
    return None


def become_task() -> None:
    """For good: what this program reads from here on, the process could have read."""
    if os.geteuid() == 0:
        with open("/etc/passwd") as users:
            uid, gid = next(map(int, line.split(":")[2:4]) for line in users if line.startswith("task:"))
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)


class Folders:
    """Opened part by part, no link followed on the way; the last one stays open for its next file."""

    def __init__(self) -> None:
        self.path: bytes | None = None
        self.opened = -1

    def open(self, path: bytes) -> int:
        if path != self.path:
            self.close()
            self.opened = os.open(OUT, FOLDER)
            for part in path.split(b"/") if path else ():
                inner = os.open(part, FOLDER, dir_fd=self.opened)
                os.close(self.opened)
                self.opened = inner
            self.path = path
        return self.opened

    def close(self) -> None:
        if self.opened >= 0:
            os.close(self.opened)
        self.path, self.opened = None, -1


def send_file(out: Gathering, folders: Folders, path: bytes, offset: int) -> str | None:
    """From `offset` on, which is there already; the hash is that of all of it."""
    above, _, name = path.rpartition(b"/")
    directory = folders.open(above)
    try:
        file = os.open(name, REGULAR, dir_fd=directory)
    except OSError:
        if not stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            return "not a regular file"
        raise
    try:
        before = os.fstat(file)
        if not stat.S_ISREG(before.st_mode):
            return "not a regular file"
        if before.st_size <= SMALL and not offset:
            data = os.read(file, SMALL + 1)
            hashed = sha256_for(len(data))
            hashed.update(data)
            out.put(b"w", state(file, before, hashed, len(data)), b"\n", data)
        else:
            send_large(out, file, before, offset)
    finally:
        os.close(file)
    return None


def send_large(out: Gathering, file: int, before: os.stat_result, offset: int) -> None:
    out.put(b"f", b"%d" % before.st_size)
    hashed, done = sha256_for(before.st_size), 0
    while done < before.st_size and (data := os.read(file, min(CHUNK, before.st_size - done))):
        hashed.update(data)
        done += len(data)
        if done > offset:
            out.put(b"d", data[-(done - offset) :])
    out.put(b"h", state(file, before, hashed, done))


def state(file: int, before: os.stat_result, hashed: Any, done: int) -> bytes:
    after = os.fstat(file)
    same = (before.st_size, before.st_mtime_ns, done) == (after.st_size, after.st_mtime_ns, before.st_size)
    return b"%s %s" % (hashed.hexdigest().encode(), b"same" if same else b"changed")


def answer(out: Gathering, work: Any, *words: Any) -> None:
    """One refusal ends no other's turn."""
    try:
        why = work(out, *words)
    except OSError as error:
        why = error.strerror
    if why:
        out.put(b"!", why.encode())


def serve(requests: Any) -> None:
    """Read requests until the input ends: "list MAX"; or "read LENGTH OFFSET", which LENGTH bytes of paths follow, each
    ended by a NUL: of the first, OFFSET bytes are there already."""
    out = Gathering()
    while line := requests.readline():
        words = line.split()
        if words[0] == b"list":
            answer(out, listing, int(words[1]))
        else:
            become_task()
            folders, offset = Folders(), int(words[2])
            for path in requests.read(int(words[1])).split(b"\0")[:-1]:
                answer(out, send_file, folders, path, offset)
                offset = 0
            folders.close()
        out.flush()
