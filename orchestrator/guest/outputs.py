"""Outputs out: regular files only, read over there as the user `task`: nothing comes out that it could not read.

A guest in which a process has run is hostile: names, sizes and counts are bounded and checked here once more, and a
path that it names is never used as one.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
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
MAX_LISTING = 1 << 25
"""Bytes of names and what is said of them, in all: a listing is held in memory, and takes a few times as much there."""
GATHERED_BYTES, GATHERED_FILES = 1 << 22, 512
"""Small files are put away when there are so many."""


_LEAST_ABOUT = 4096
"""What a frame of a listing counts for besides what is in it, so that it does not come as very many that are empty."""


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


@dataclass(frozen=True, slots=True)
class WholeOutput:
    """A small file that came out: its content, and the sha256 of that in hex, the same on both ends."""

    entry: OutputEntry
    data: bytes
    sha256: str


class OutputWriter(Protocol):
    """Where one large file goes. `sha256`, in hex: of what was written so far. Ended by exactly one of: commit (of the
    sha256 on both ends), abort."""

    @property
    def sha256(self) -> str: ...
    async def write(self, data: bytes, /) -> None: ...
    async def commit(self, sha256: str, /) -> None: ...
    async def abort(self) -> None: ...


class OutputSink(Protocol):
    """Where outputs go."""

    async def open(self, entry: OutputEntry, /) -> OutputWriter: ...
    async def put(self, files: Sequence[WholeOutput], /) -> None: ...


async def read_listing(attendant: Attendant, most: int) -> tuple[OutputEntry, ...]:
    """Ask for every entry of /task/out. Raises StagingFailed when there are more than `most`, a name is too long, or
    all are."""
    await attendant.send(b"list %d\n" % most)
    entries: list[OutputEntry] = []
    heard = 0
    while True:
        kind, payload = await _frame(attendant)
        heard += _LEAST_ABOUT + len(payload)
        if heard > MAX_LISTING:
            raise Unstageable(f"the names of the outputs are more than {MAX_LISTING} bytes")
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


@dataclass(slots=True)
class _Half:
    """A large file that is coming out: `done` bytes of `size` are written."""

    entry: OutputEntry
    writer: OutputWriter
    size: int
    done: int = 0


class Taking:
    """Taking files, in order, from one attendant or more: what came stays when a connection drops, and of a large file
    only the rest is asked for. `refused`: those that would not come out; they keep no other from it.

    Raises StagingFailed when all are more than `limit` bytes.
    """

    def __init__(self, entries: Sequence[OutputEntry], sink: OutputSink, limit: int, progress: Progress | None) -> None:
        files, self.refused = takeable(entries)
        self._left = deque(files)
        self._sink = sink
        self._limit = limit
        self._progress = progress
        self._total = sum(entry.size for entry in files)
        self._came = 0
        self._half: _Half | None = None
        self._gathered: list[WholeOutput] = []
        self._gathered_bytes = 0
        self._settled = 0
        self._putting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._putting.set_result(None)
        if self._total > limit:
            raise Unstageable(f"the outputs have {self._total} bytes, and at most {limit} are taken")

    @property
    def done(self) -> int:
        """Rises with each file that came or was refused, and with each byte."""
        return self._settled + self._came + (self._half.done if self._half else 0)

    async def take(self, attendant: Attendant) -> None:
        """Ask for what is left and write it to the sink. Raises Dropped, StagingFailed, StepFailed."""
        if self._left:
            names = b"".join(entry.path.encode(errors="surrogateescape") + b"\0" for entry in self._left)
            await attendant.send(b"read %d %d\n" % (len(names), self._half.done if self._half else 0) + names)
        while self._left:
            entry = self._left[0]
            try:
                await self._take_one(attendant, entry)
            except _NotTaken as why:
                await self.drop()
                self.refused.append(Refused(entry.path, str(why)))
            self._left.popleft()
            self._settled += 1
        await self.keep()

    async def keep(self) -> None:
        """Put away what came whole and is not put away yet."""
        await self._put_gathered()
        await self._putting

    async def drop(self) -> None:
        """Forget what did not come whole. Idempotent."""
        half, self._half = self._half, None
        if half:
            await half.writer.abort()

    async def end(self) -> None:
        """Leave nothing under way. Idempotent, never raises."""
        self._putting.cancel()
        await asyncio.gather(self._putting, return_exceptions=True)
        await self.drop()

    async def _take_one(self, attendant: Attendant, entry: OutputEntry) -> None:
        kind, payload = await _frame(attendant)
        match kind:
            case b"w":
                await self.drop()
                about, _, data = payload.partition(b"\n")
                self._count(entry, len(data))
                _check(entry, about, len(data), lambda: hashlib.sha256(data).hexdigest())
                await self._gather(entry, data, about[:64].decode())
            case b"f":
                await self._take_large(attendant, entry, payload)
            case b"!":
                raise _NotTaken(printable(payload.decode(errors="replace")))
            case _:
                raise StepFailed(f"the guest sent a frame of kind {kind!r} where a file was to begin")

    async def _take_large(self, attendant: Attendant, entry: OutputEntry, payload: bytes) -> None:
        size = int(payload) if payload.isdigit() and len(payload) < 20 else -1
        if size < 0:
            raise StepFailed("the guest announced a file of a size that is none")
        self._count(entry, size)
        half = self._half
        if half is None:
            await self._put_gathered()
            half = self._half = _Half(entry, await self._sink.open(entry), size)
        elif half.size != size:
            raise _NotTaken("it changed while it was read")
        about = await self._copy(attendant, half)
        _check(entry, about, half.done, lambda: half.writer.sha256)
        await half.writer.commit(half.writer.sha256)
        self._half = None
        self._came += size

    async def _copy(self, attendant: Attendant, half: _Half) -> bytes:
        while True:
            kind, payload = await _frame(attendant)
            match kind:
                case b"d" if payload:
                    if half.done + len(payload) > half.size:
                        raise StepFailed("the guest sent more of a file than it announced")
                    await half.writer.write(payload)
                    half.done += len(payload)
                    self._tell(self._came + half.done)
                case b"h":
                    return payload
                case b"!":
                    raise _NotTaken(printable(payload.decode(errors="replace")))
                case _:
                    raise StepFailed(f"the guest sent a frame of kind {kind!r} in the middle of a file")

    async def _gather(self, entry: OutputEntry, data: bytes, sha256: str) -> None:
        self._gathered.append(WholeOutput(entry, data, sha256))
        self._gathered_bytes += len(data)
        self._came += len(data)
        self._tell(self._came)
        if self._gathered_bytes >= GATHERED_BYTES or len(self._gathered) >= GATHERED_FILES:
            await self._put_gathered()

    async def _put_gathered(self) -> None:
        """While they are put away, the next ones come; but no more than those."""
        await self._putting
        files, self._gathered, self._gathered_bytes = self._gathered, [], 0
        if files:
            self._putting = asyncio.ensure_future(self._sink.put(files))

    def _count(self, entry: OutputEntry, size: int) -> None:
        if self._came + size > self._limit:
            raise Unstageable(f"output {printable(entry.path)}: more than {self._limit} bytes in all")

    def _tell(self, done: int) -> None:
        if self._progress:
            self._progress(done, self._total)


def _check(entry: OutputEntry, about: bytes, size: int, ours: Callable[[], str]) -> None:
    """What the guest says of a file that came, against what came and what was listed."""
    theirs, _, state = about.partition(b" ")
    if state != b"same" or size != entry.size:
        raise _NotTaken("it changed while it was read")
    if theirs != ours().encode():
        raise _NotTaken("its sha256 in the guest is not what came")


async def _frame(attendant: Attendant) -> tuple[bytes, bytes]:
    try:
        async with asyncio.timeout(STALLED_SECONDS):
            return await attendant.frame()
    except TimeoutError as error:
        raise StagingFailed(f"the guest sent no output for {STALLED_SECONDS:g} s") from error
