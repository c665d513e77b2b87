"""Logs of an attempt, which grow while the process runs and are read meanwhile."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from orchestrator.artifacts.disk import full_told, write_bulk, write_whole
from orchestrator.artifacts.patience import Patience

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
    """Writes the log. Past `limit_bytes` it only counts, and leaves a mark beside the log that says so.

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

    async def mark_cut(self) -> None:
        """Say that there was more, of which nobody knows how much. Raises HostDiskFull."""
        await self._patience.through(partial(self._put_mark, self._kept, None))

    async def write(self, data: bytes) -> None:
        """Append. Raises HostDiskFull, and then `offset` has not moved: the next `write` begins there again."""
        await self._patience.through(partial(self.append, data))

    def append(self, data: bytes) -> None:
        """`write`, blocking."""
        fits = b"" if self.offset > self._kept else data[: max(0, self._limit - self._kept)]
        kept, seen = self._kept + len(fits), self.offset + len(data)
        with full_told():
            if fits:
                self._extend(fits)
            if seen > kept:
                self._put_mark(kept, seen)
        self._kept, self.offset = kept, seen

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
