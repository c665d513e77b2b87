"""The attendant: sends what a process writes, as it is written; then how it ended; then its outputs, when asked.

Words: token of the launch, the offsets in stdout, stderr and trace from which to send, bytes of each stream to send.
Writes frames: one byte of kind, four of length (big-endian), the payload.

    o e t   bytes of stdout, stderr, trace
    x       the exit record, lines of key=value; everything written has been sent before it
    n       there is no such process, and why
    l       entries of /task/out, each "kind mode size mtime name" and a NUL;  k  that was all of it
    f       a file begins, of that many bytes;  d  its bytes;  h  its sha256, and "same" or "changed"
    !       a listing, or the file whose turn it is, was refused, and why

Reads requests, after x or n: "list MAX", or "read LENGTH", which LENGTH bytes of paths follow, each ended by a NUL.
When its input ends, it ends.
"""
# ruff: noqa: PTH118, PTH123, PTH208

from __future__ import annotations

import os
import stat
import sys

from orchestrator.guest.scripts.follow import follow
from orchestrator.guest.scripts.frames import CHUNK, send

TYPE_CHECKING = False
if TYPE_CHECKING:  # to load typing takes too long in an emulated machine
    from typing import Any

OUT = "/task/out"


def kind_of(mode: int) -> str:
    for letter, test in (("f", stat.S_ISREG), ("d", stat.S_ISDIR), ("l", stat.S_ISLNK), ("p", stat.S_ISFIFO)):
        if test(mode):
            return letter
    return "s" if stat.S_ISSOCK(mode) else "b"


def listing(most: int) -> str | None:
    """As root, for names only: a directory closed by its owner is listed too. The process has ended by now."""
    waiting, batch, count = [b""], b"", 0
    while waiting:
        below = waiting.pop()
        directory = os.open(os.path.join(OUT.encode(), below), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            names = sorted(os.fsencode(name) for name in os.listdir(directory))
            for name in names:
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
                    send(b"l", batch)
                    batch = b""
                if kind == "d":
                    waiting.append(path)
        finally:
            os.close(directory)
    send(b"l", batch)
    send(b"k", b"")
    return None


def become_task() -> None:
    """For good: what this program reads from here on, the process could have read."""
    if os.geteuid() == 0:
        with open("/etc/passwd") as users:
            uid, gid = next(map(int, line.split(":")[2:4]) for line in users if line.startswith("task:"))
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)


def send_file(path: bytes, sha256: Any) -> str | None:
    """Part by part, no link followed on the way."""
    *above, name = path.split(b"/")
    directory = os.open(OUT, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in above:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
            os.close(directory)
            directory = inner
        before = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISREG(before.st_mode):
            return "not a regular file"
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
        file = os.open(name, flags, dir_fd=directory)
    finally:
        os.close(directory)
    try:
        before = os.fstat(file)
        if not stat.S_ISREG(before.st_mode):
            return "not a regular file"
        send(b"f", b"%d" % before.st_size)
        hashed, left = sha256(), before.st_size
        while left and (data := os.read(file, min(CHUNK, left))):
            hashed.update(data)
            send(b"d", data)
            left -= len(data)
        after = os.fstat(file)
        same = not left and (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
        send(b"h", b"%s %s" % (hashed.hexdigest().encode(), b"same" if same else b"changed"))
    finally:
        os.close(file)
    return None


def sha256_of_c() -> Any:
    """Written in C either way; the smaller one loads faster."""
    try:
        import _sha256 as made_in_c  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        import hashlib as made_in_c  # type: ignore[no-redef,unused-ignore]
    return made_in_c.sha256


def serve(requests: Any) -> None:
    sha256 = None
    while line := requests.readline():
        words = line.split()
        if words[0] == b"list":
            answer(listing, int(words[1]))
            continue
        become_task()
        sha256 = sha256 or sha256_of_c()
        for path in requests.read(int(words[1])).split(b"\0")[:-1]:
            answer(send_file, path, sha256)


def answer(work: Any, *words: Any) -> None:
    """One refusal ends no other's turn."""
    try:
        why = work(*words)
    except OSError as error:
        why = error.strerror
    if why:
        send(b"!", why.encode())


if __name__ == "__main__":
    follow(sys.argv[2], [int(word) for word in sys.argv[3:6]], int(sys.argv[6]))
    serve(os.fdopen(0, "rb"))
