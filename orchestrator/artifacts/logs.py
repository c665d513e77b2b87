"""Logs of an attempt, which grow while the process runs and are read meanwhile.

A trace comes from its machine as gzip members, and is stored as it comes: see `members`. It is read as plain text.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from orchestrator.artifacts.disk import full_told, write_bulk, write_whole
from orchestrator.artifacts.members import Members
from orchestrator.artifacts.patience import Patience

DEFAULT_LIMIT_BYTES = 1 << 30
COMPRESSED = frozenset({"trace"})
"""The logs that come as gzip members."""

MAX_LINE_BYTES = 1 << 18
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class LogState:
    """Bytes as they are stored. kept_bytes: what can be read. seen_bytes: what the process wrote; more than kept when
    the log was cut, and None when it was cut nobody knows how far from the end."""

    kept_bytes: int
    seen_bytes: int | None

    @property
    def cut(self) -> bool:
        return self.seen_bytes is None or self.seen_bytes > self.kept_bytes


class Log:
    """One log, to be followed. Reading never changes anything; a log that nobody has written to yet is empty."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._members = Members()
        self._stored_at = self._plain_at = 0
        """Where `_members` is, in the file and in its plain text."""

    @property
    def _mark(self) -> Path:
        return self.path.with_name(self.path.name + ".cut")

    def state(self) -> LogState:
        try:
            kept = self.path.stat().st_size
        except FileNotFoundError:
            kept = 0
        try:
            seen = json.loads(self._mark.read_bytes())["seen_bytes"]
        except FileNotFoundError:
            seen = kept
        return LogState(kept, None if seen is None else max(kept, int(seen)))

    def read(self, offset: int = 0, limit: int = _READ_BYTES) -> bytes:
        """At most `limit` bytes of plain text from `offset` on; empty at the end, which may move. Of a compressed log,
        to go on where the last read ended takes no longer than that; to go elsewhere, all that is before."""
        try:
            with self.path.open("rb") as file:
                if self.path.name in COMPRESSED:
                    return self._read_members(file, offset, limit)
                file.seek(offset)
                return file.read(limit)
        except FileNotFoundError:
            return b""

    def lines(self) -> Iterator[bytes]:
        """The lines that there are now, without their ends; a longer one is cut to MAX_LINE_BYTES. The log is read as
        the lines are taken, a piece at a time."""
        log, rest, offset = Log(self.path), b"", 0
        while text := log.read(offset):
            offset += len(text)
            *lines, rest = (rest + text).split(b"\n")
            for line in lines:
                yield line if len(line) <= MAX_LINE_BYTES else line[:MAX_LINE_BYTES]
            rest = rest[:MAX_LINE_BYTES]
        if rest:
            yield rest

    def digest(self) -> str:
        """The sha256, in hex, of the log as it is stored: of a trace, of its members."""
        digest = hashlib.sha256()
        try:
            with self.path.open("rb") as file:
                while data := file.read(_READ_BYTES):
                    digest.update(data)
        except FileNotFoundError:
            pass
        return digest.hexdigest()

    def _read_members(self, file: BinaryIO, offset: int, limit: int) -> bytes:
        if offset < self._plain_at:
            self._members, self._stored_at, self._plain_at = Members(), 0, 0
        file.seek(self._stored_at)
        while self._plain_at < offset:
            if not self._advance(file, min(offset - self._plain_at, _READ_BYTES)):
                return b""
        text = bytearray()
        while len(text) < limit and (more := self._advance(file, limit - len(text))):
            text += more
        return bytes(text)

    def _advance(self, file: BinaryIO, limit: int) -> bytes:
        """Some of the plain text, at most so much; empty at the end."""
        text = self._members.feed(b"", limit)
        while not text and (stored := file.read(_READ_BYTES)):
            self._stored_at += len(stored)
            text = self._members.feed(stored, limit)
        self._plain_at += len(text)
        return text


class LogWriter(Log):
    """Writes the log. Past `limit_bytes` it only counts, and leaves a mark beside the log that says so. The same where
    the plain text of a compressed one would be more than that, or where it is no gzip: no reader meets either.

    Writes go to the place in the log that they have in the stream, and nothing is ever cut off: whoever goes on with a
    stream goes on where the log ends, and a former writer that wakes up can only write what is there already.
    """

    def __init__(
        self,
        path: Path,
        *,
        scratch: Path,
        limit_bytes: int = DEFAULT_LIMIT_BYTES,
        patience: Patience | None = None,
    ) -> None:
        super().__init__(path)
        self._scratch = scratch
        self._limit = limit_bytes
        self._patience = patience or Patience()
        state = self.state()
        self._kept = state.kept_bytes
        self.offset = state.kept_bytes if state.seen_bytes is None else state.seen_bytes
        """Bytes seen so far, kept or not: where the next `write` goes on."""
        self._written: Members | None = None
        self._plain = 0

    async def mark_cut(self) -> None:
        """Say that there was more, of which nobody knows how much. Raises HostDiskFull."""
        await self._patience.through(partial(self._put_mark, self._kept, None))

    async def write(self, data: bytes) -> None:
        """Append. Raises HostDiskFull, and then `offset` has not moved: the next `write` begins there again."""
        await self._patience.through(partial(self.append, data))

    def append(self, data: bytes) -> None:
        """`write`, blocking."""
        fits = b"" if self.offset > self._kept else data[: max(0, self._limit - self._kept)]
        sound, plain = self._look_into(fits) if fits and self.path.name in COMPRESSED else (self._written, 0)
        if sound and (sound.broken or self._plain + plain > self._limit):
            fits = b""
        kept, seen = self._kept + len(fits), self.offset + len(data)
        with full_told():
            if fits:
                self._extend(fits)
            if seen > kept:
                self._put_mark(kept, seen)
        self._kept, self.offset = kept, seen
        if fits:
            self._written, self._plain = sound, self._plain + plain

    def _look_into(self, data: bytes) -> tuple[Members, int]:
        """What reads the log up to the end of `data`, which is to follow, and the bytes of plain text in that."""
        if self._written is None:
            self._written = Members()
            self._plain = self._measure_kept(self._written)
        members = self._written.copy()
        return members, members.measure(data, self._limit - self._plain)

    def _measure_kept(self, members: Members) -> int:
        """That of another writer before this one."""
        plain, left = 0, self._kept
        if not left:
            return 0
        with self.path.open("rb") as file:
            while data := file.read(min(left, _READ_BYTES)):
                left -= len(data)
                plain += members.measure(data, self._limit - plain)
        return plain

    def _put_mark(self, kept: int, seen: int | None) -> None:
        state = self.state()
        if state.seen_bytes is None:
            return
        mark = {
            "kept_bytes": kept,
            "seen_bytes": None if seen is None else max(seen, state.seen_bytes),
            "limit_bytes": self._limit,
        }
        write_whole(self._mark, json.dumps(mark).encode(), scratch=self._scratch)

    def _extend(self, data: bytes) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            write_bulk(fd, data, self._kept)
        finally:
            os.close(fd)
