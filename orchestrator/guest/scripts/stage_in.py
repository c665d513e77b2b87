"""Inputs in: what comes is written under /task/in as root's, and hashed while it is written. Its input's end ends it.

Words: its number, higher than that of any asked for before; another folder than /task/in, if it is to go there: made
for root alone.

Reads frames (one byte of kind, four of length, big-endian, the payload):

    d     directories, each "mode path" and a NUL
    b     files: four bytes of the length of their list, the list, each "mode size path" and a NUL; their contents
    q     asks how much there is of the file of that path
    o     a file begins, or goes on where it was asked about: "mode offset path"; c  its next bytes; e  that was all
    l     symbolic links, each path NUL target NUL
    B C   like b and c, the payload compressed by zlib

Writes frames:

    h     the sha256 of the payload of a "b" (what it was before it was compressed); after "e", that of the whole file
    p     what there is of the file asked about: "size sha256"
    !     nothing more can be written, and why
"""
# ruff: noqa: B905, PTH101, PTH103, PTH108, PTH120, PTH211, SIM105

from __future__ import annotations

import fcntl
import os
import signal
import stat
import sys

from orchestrator.guest.scripts.frames import send
from orchestrator.guest.scripts.hashing import sha256_for

TYPE_CHECKING = False
if TYPE_CHECKING:  # to load typing takes too long in an emulated machine
    from typing import Any

IN = b"/task/in"
TURN = "/run/mayfly-stage-in"
PIPE_BYTES, F_SETPIPE_SZ = 1 << 20, 1031
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
ASIDE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


def take_turn(number: int) -> None:
    """End one that was left behind by a dropped connection: what it has still to write must not be written later. One
    that is left behind itself, and comes late, gives way."""
    turn = os.open(TURN, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)  # stays open, and with it the lock
    while True:
        try:
            fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if former := os.pread(turn, 40, 0).split():
                if int(former[1]) > number:
                    sys.exit(1)
                try:
                    os.kill(int(former[0]), signal.SIGKILL)
                except ProcessLookupError:
                    pass  # it has just ended by itself
                fcntl.flock(turn, fcntl.LOCK_EX)
                break
    os.ftruncate(turn, 0)
    os.pwrite(turn, b"%d %d\n" % (os.getpid(), number), 0)


def write_all(file: int, data: memoryview) -> None:
    while data:
        data = data[os.write(file, data) :]


class Input:
    """The frames. A payload is only there until the next is read."""

    def __init__(self) -> None:
        self.room = bytearray(1 << 19)

    def fill(self, size: int) -> memoryview | None:
        if size > len(self.room):
            self.room = bytearray(size)
        view, got = memoryview(self.room)[:size], 0
        while got < size:
            count = os.readv(0, [view[got:]])
            if not count:
                return None
            got += count
        return view

    def frame(self) -> tuple[bytes, memoryview]:
        """A frame that was cut short is none: nothing of it is written."""
        head = self.fill(5)
        if head is None:
            sys.exit()
        kind, length = bytes(head[:1]), int.from_bytes(head[1:], "big")
        payload = self.fill(length)
        if payload is None:
            sys.exit()
        return kind, payload


class Tree:
    """/task/in, which is the working directory. `at` is what is being done, for a message."""

    def __init__(self) -> None:
        self.at = b""
        self.path = b""
        self.file = -1
        self.size = 0
        self.hashed: Any = None

    def make(self, path: bytes, mode: int) -> int:
        """A new file in the place of whatever was there."""
        self.at = path
        while True:
            try:
                return os.open(path, NEW, mode)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(path), 0o755)
            except FileExistsError:
                os.unlink(path)

    def directories(self, payload: memoryview) -> None:
        for each in bytes(payload).split(b"\0")[:-1]:
            mode, self.at = each.split(b" ", 1)
            os.makedirs(self.at, 0o755, exist_ok=True)
            os.chmod(self.at, int(mode, 8))

    def files(self, payload: memoryview) -> None:
        at = 4 + int.from_bytes(payload[:4], "big")
        for each in bytes(payload[4:at]).split(b"\0")[:-1]:
            mode, size, path = each.split(b" ", 2)
            end = at + int(size)
            file = self.make(path, int(mode, 8))
            write_all(file, payload[at:end])
            os.close(file)
            at = end
        hashed = sha256_for(len(payload))
        hashed.update(payload)
        send(b"h", hashed.hexdigest().encode())

    def look(self, path: bytes) -> None:
        """Tell how much there is of a file, and keep it, with its hash, to go on with it."""
        self.close()
        self.path = self.at = path
        self.size, self.hashed = 0, sha256_for(0)
        try:
            if stat.S_ISREG(os.lstat(path).st_mode):
                self.file = os.open(path, ASIDE)
                self.hashed = sha256_for(os.fstat(self.file).st_size)
                while data := os.read(self.file, 1 << 18):
                    self.hashed.update(data)
                    self.size += len(data)
        except (FileNotFoundError, NotADirectoryError):
            pass
        send(b"p", b"%d %s" % (self.size, self.hashed.hexdigest().encode()))

    def begin(self, payload: memoryview) -> None:
        mode, offset, size, path = bytes(payload).split(b" ", 3)
        if int(offset) == 0 or (path, int(offset)) != (self.path, self.size) or self.file < 0:
            self.close()
            self.file, self.path, self.size, self.hashed = self.make(path, int(mode, 8)), path, 0, sha256_for(int(size))
        self.at = path
        os.fchmod(self.file, int(mode, 8))

    def more(self, payload: memoryview) -> None:
        write_all(self.file, payload)
        self.hashed.update(payload)
        self.size += len(payload)

    def end(self) -> None:
        send(b"h", self.hashed.hexdigest().encode())
        self.close()

    def links(self, payload: memoryview) -> None:
        words = bytes(payload).split(b"\0")[:-1]
        for path, target in zip(words[::2], words[1::2]):
            self.at = path
            while True:
                try:
                    os.symlink(target, path)
                    break
                except FileNotFoundError:
                    os.makedirs(os.path.dirname(path), 0o755)
                except FileExistsError:
                    os.unlink(path)

    def close(self) -> None:
        if self.file >= 0:
            os.close(self.file)
        self.file, self.path = -1, b""


def inflated(payload: memoryview) -> memoryview:
    import zlib

    return memoryview(zlib.decompress(payload))


def receive(tree: Tree, frames: Input) -> None:
    while True:
        kind, payload = frames.frame()
        if kind in b"BC":
            kind, payload = kind.lower(), inflated(payload)
        if kind == b"d":
            tree.directories(payload)
        elif kind == b"b":
            tree.files(payload)
        elif kind == b"q":
            tree.look(bytes(payload))
        elif kind == b"o":
            tree.begin(payload)
        elif kind == b"c":
            tree.more(payload)
        elif kind == b"e":
            tree.end()
        else:
            tree.links(payload)


def main() -> None:
    tree = Tree()
    try:
        take_turn(int(sys.argv[2]))
        os.umask(0)
        if sys.argv[3:]:
            os.makedirs(sys.argv[3], 0o700, exist_ok=True)
        os.chdir(sys.argv[3] if sys.argv[3:] else IN)
        try:
            fcntl.fcntl(0, F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            pass  # it is no pipe, or may not be so large: only slower
        receive(tree, Input())
    except OSError as error:
        send(b"!", tree.at + b": " + (error.strerror or str(error)).encode())
        sys.exit(1)


if __name__ == "__main__":
    main()
