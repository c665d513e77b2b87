"""Outputs out: regular files only, read over there as the user `task`: nothing comes out that it could not read.

A guest in which a process has run is hostile: names, sizes and counts are bounded and checked here once more, and a
path that it names is never used as one.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from orchestrator.domain.errors import StagingFailed, Unstageable
from orchestrator.guest.attendant import Attendant
from orchestrator.guest.errors import Refused, StepFailed, printable

Progress = Callable[[int, int], None]

STALLED_SECONDS = 120.0
MAX_PATH = 4000
MAX_ENTRIES = 100_000


class OutputKind(Enum):
    """What an entry of /task/out is. Only a FILE can be taken."""

    FILE = "f"
    DIRECTORY = "d"
    SYMLINK = "l"
    FIFO = "p"
    SOCKET = "s"
    DEVICE = "b"


_SAYS = {
    OutputKind.DIRECTORY: "a directory",
    OutputKind.SYMLINK: "a symbolic link, which is never followed",
    OutputKind.FIFO: "a named pipe",
    OutputKind.SOCKET: "a socket",
    OutputKind.DEVICE: "a device",
}


@dataclass(frozen=True, slots=True)
class OutputEntry:
    """One entry of /task/out.

    path: relative to it, bytes that are not UTF-8 as surrogate escapes; checked: not absolute, no part empty, "." or
    "..". size in bytes; mode: permission bits; mtime: seconds since the epoch, as the guest has it.
    """

    path: str
    kind: OutputKind
    size: int
    mode: int
    mtime: int


class OutputWriter(Protocol):
    """Where one file goes. Ended by exactly one of: commit (sha256 in hex, the same on both ends), abort."""

    async def write(self, data: bytes, /) -> None: ...
    async def commit(self, sha256: str, /) -> None: ...
    async def abort(self) -> None: ...


class OutputSink(Protocol):
    """Where outputs go."""

    async def open(self, entry: OutputEntry, /) -> OutputWriter: ...


async def read_listing(attendant: Attendant, most: int) -> tuple[OutputEntry, ...]:
    """Ask for every entry of /task/out. Raises StagingFailed when there are more than `most`, or a name is too long."""
    await attendant.send(b"list %d\n" % most)
    entries: list[OutputEntry] = []
    while True:
        kind, payload = await _frame(attendant)
        match kind:
            case b"l":
                entries += [_entry(line) for line in payload.split(b"\0")[:-1]]
                if len(entries) > most:
                    raise Unstageable(f"more than {most} outputs")
            case b"k":
                return tuple(sorted(entries, key=lambda entry: entry.path))
            case b"!":
                raise StagingFailed(f"the outputs cannot be listed: {printable(payload.decode(errors='replace'))}")
            case _:
                raise StepFailed(f"the guest sent a frame of kind {kind!r} for a listing")


def _entry(line: bytes) -> OutputEntry:
    try:
        kind, mode, size, mtime, path = line.split(b" ", 4)
        name = path.decode(errors="surrogateescape")
        if len(path) > MAX_PATH or any(part in ("", ".", "..") for part in name.split("/")):
            raise ValueError(f"path '{printable(name)}'")
        return OutputEntry(name, OutputKind(kind.decode()), int(size), int(mode, 8) & 0o7777, int(mtime))
    except ValueError as error:
        raise StepFailed(f"the guest's listing cannot be read: {error}") from error


def takeable(entries: Sequence[OutputEntry]) -> tuple[list[OutputEntry], list[Refused]]:
    """The regular files among them, and the others."""
    files = [entry for entry in entries if entry.kind is OutputKind.FILE]
    others = [
        Refused(entry.path, f"it is {_SAYS[entry.kind]}; only regular files are taken")
        for entry in entries
        if entry.kind is not OutputKind.FILE
    ]
    return files, others


class _NotTaken(Exception):
    """The file whose turn it is does not come out. The message says why."""


class Taking:
    """Taking files, in order, from one attendant or more: what was committed stays when a connection drops. `refused`:
    those that would not come out; they keep no other from it.

    Raises StagingFailed when all are more than `limit` bytes.
    """

    def __init__(self, entries: Sequence[OutputEntry], sink: OutputSink, limit: int, progress: Progress | None) -> None:
        self._left, self.refused = takeable(entries)
        self._count = len(self._left)
        self._sink = sink
        self._limit = limit
        self._progress = progress
        self._total = sum(entry.size for entry in self._left)
        self._taken = 0
        if self._total > limit:
            raise Unstageable(f"the outputs have {self._total} bytes, and at most {limit} are taken")

    @property
    def done(self) -> int:
        """Files committed or refused."""
        return self._count - len(self._left)

    async def take(self, attendant: Attendant) -> None:
        """Ask for the files that are left and write each to the sink. Raises Dropped, StagingFailed, StepFailed."""
        if not self._left:
            return
        names = b"".join(entry.path.encode(errors="surrogateescape") + b"\0" for entry in self._left)
        await attendant.send(b"read %d\n" % len(names) + names)
        while self._left:
            try:
                await self._take_one(attendant, self._left[0])
            except _NotTaken as why:
                self.refused.append(Refused(self._left[0].path, str(why)))
            self._left.pop(0)

    async def _take_one(self, attendant: Attendant, entry: OutputEntry) -> None:
        kind, payload = await _frame(attendant)
        if kind == b"!":
            raise _NotTaken(printable(payload.decode(errors="replace")))
        size = int(payload) if kind == b"f" and payload.isdigit() and len(payload) < 20 else -1
        if size < 0:
            raise StepFailed(f"the guest sent a frame of kind {kind!r} where a file was to begin")
        if self._taken + size > self._limit:
            raise Unstageable(f"output {printable(entry.path)}: more than {self._limit} bytes in all")
        writer = await self._sink.open(entry)
        try:
            sha256 = await self._copy(attendant, entry, writer, size)
        except BaseException:
            await writer.abort()
            raise
        await writer.commit(sha256)
        self._taken += size

    async def _copy(self, attendant: Attendant, entry: OutputEntry, writer: OutputWriter, size: int) -> str:
        hashed = hashlib.sha256()
        done = 0
        while True:
            kind, payload = await _frame(attendant)
            match kind:
                case b"d":
                    done += len(payload)
                    if done > size:
                        raise StepFailed("the guest sent more of a file than it announced")
                    hashed.update(payload)
                    await writer.write(payload)
                    if self._progress:
                        self._progress(self._taken + done, self._total)
                case b"h":
                    theirs, _, state = payload.partition(b" ")
                    if state != b"same" or done != size or size != entry.size:
                        raise _NotTaken("it changed while it was read")
                    if theirs.decode("ascii", "replace") != hashed.hexdigest():
                        raise _NotTaken("its sha256 in the guest is not what came")
                    return hashed.hexdigest()
                case b"!":
                    raise _NotTaken(printable(payload.decode(errors="replace")))
                case _:
                    raise StepFailed(f"the guest sent a frame of kind {kind!r} in the middle of a file")


async def _frame(attendant: Attendant) -> tuple[bytes, bytes]:
    try:
        async with asyncio.timeout(STALLED_SECONDS):
            return await attendant.frame()
    except TimeoutError as error:
        raise StagingFailed(f"the guest sent no output for {STALLED_SECONDS:g} s") from error
