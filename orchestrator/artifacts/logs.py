"""Logs of an attempt, which grow while the process runs and are read meanwhile."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from orchestrator.artifacts.disk import full_told, in_thread, make_folder, write_bulk, write_whole

DEFAULT_LIMIT_BYTES = 1 << 30
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class LogState:
    """kept_bytes: what can be read. seen_bytes: what the process wrote; more than kept when the log was cut, and None
    when it was cut nobody knows how far from the end."""

    kept_bytes: int
    seen_bytes: int | None

    @property
    def cut(self) -> bool:
        return self.seen_bytes is None or self.seen_bytes > self.kept_bytes


class Log:
    """One log, to be followed. Reading never changes anything; a log that nobody has written to yet is empty."""

    def __init__(self, path: Path) -> None:
        self.path = path

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
        """At most `limit` bytes from `offset` on; empty at the end, which may move."""
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                return file.read(limit)
        except FileNotFoundError:
            return b""


class LogWriter(Log):
    """The log's one writer. Past `limit_bytes` it only counts, and leaves a mark beside the log that says so."""

    def __init__(self, path: Path, *, scratch: Path, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        super().__init__(path)
        self._scratch = scratch
        self._limit = limit_bytes
        state = self.state()
        self._kept = state.kept_bytes
        self.offset = state.kept_bytes if state.seen_bytes is None else state.seen_bytes
        """Bytes seen so far, kept or not: where the next `write` goes on."""

    async def mark_cut(self) -> None:
        """Say that there was more, of which nobody knows how much. Raises HostDiskFull."""
        await in_thread(self._put_mark, None)

    async def write(self, data: bytes) -> None:
        """Append. Raises HostDiskFull, and then nothing of `data` is in the log."""
        await in_thread(self.append, data)

    def append(self, data: bytes) -> None:
        """`write`, blocking."""
        fits = b"" if self.offset > self._kept else data[: max(0, self._limit - self._kept)]
        if fits:
            with full_told():
                self._extend(fits)
            self._kept += len(fits)
        self.offset += len(data)
        if self.offset > self._kept:
            self._put_mark(self.offset)

    def _put_mark(self, seen: int | None) -> None:
        mark = {"kept_bytes": self._kept, "seen_bytes": seen, "limit_bytes": self._limit}
        write_whole(self._mark, json.dumps(mark).encode(), scratch=self._scratch)

    def _extend(self, data: bytes) -> None:
        make_folder(self.path.parent)
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            write_bulk(fd, data)
        except OSError:
            os.ftruncate(fd, self._kept)  # all or nothing: the next try begins at `offset`
            raise
        finally:
            os.close(fd)
