"""Outputs of an attempt, as they come out of its machine: blobs, and one manifest at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

from orchestrator.artifacts.blobs import Blobs, BlobWriter
from orchestrator.artifacts.disk import in_thread, write_whole
from orchestrator.artifacts.names import checked_path
from orchestrator.artifacts.trees import Entry, EntryKind, Tree
from orchestrator.domain.errors import StagingFailed

MAX_FILES = 100_000


class NamedFile(Protocol):
    """What the machine says of a file."""

    @property
    def path(self) -> str: ...
    @property
    def mode(self) -> int: ...


class OutputWriter:
    """One output that is being written; ended by one `commit` or `abort`."""

    def __init__(self, file: NamedFile, outputs: OutputsWriter, blob: AbstractContextManager[BlobWriter]) -> None:
        self._path = file.path
        self._mode = file.mode & 0o777
        self._outputs = outputs
        self._context = blob
        self._blob = blob.__enter__()
        self._open = True

    async def write(self, data: bytes) -> None:
        """Raises HostDiskFull, StagingFailed when all outputs together are over their limit."""
        self._outputs.count(len(data))
        await in_thread(self._blob.write, data)

    async def commit(self, sha256: str) -> None:
        """Keep it. `sha256`: of what the machine read; StagingFailed if it is not what was written here."""
        if self._blob.sha256 != sha256:
            self.close()
            raise StagingFailed(f"output {self._path!r} came out changed: its sha256 is not the machine's")
        blob_id = await in_thread(self._blob.commit)
        self._outputs.add(Entry(self._path, EntryKind.FILE, self._mode, self._blob.size, blob_id))
        self.close()

    async def abort(self) -> None:
        """Drop it. Idempotent."""
        self.close()

    def close(self) -> None:
        """Drop what is not committed."""
        if self._open:
            self._open = False
            self._context.__exit__(None, None, None)


class OutputsWriter:
    """Takes outputs one by one. Names are the machine's, so they are checked here, whoever checked them before."""

    def __init__(self, blobs: Blobs, *, max_files: int, max_bytes: int | None) -> None:
        self._blobs = blobs
        self._max_files = max_files
        self._max_bytes = max_bytes
        self._bytes = 0
        self._opened: list[OutputWriter] = []
        self._names: set[str] = set()
        self._folders: set[str] = set()
        self.entries: list[Entry] = []

    async def open(self, entry: NamedFile) -> OutputWriter:
        """Begin an output. Raises StagingFailed for a name that is bad, twice there or both file and folder, and for
        too many; HostDiskFull."""
        path = checked_path(entry.path)
        parts = path.split("/")
        above = {"/".join(parts[:n]) for n in range(1, len(parts))}
        if path in self._names or path in self._folders or above & self._names:
            raise StagingFailed(f"output {path!r} is there twice")
        if len(self._names) >= self._max_files:
            raise StagingFailed(f"more than {self._max_files} outputs")
        writer = OutputWriter(entry, self, self._blobs.writer())
        self._names.add(path)
        self._folders |= above
        self._opened.append(writer)
        return writer

    def count(self, size: int) -> None:
        self._bytes += size
        if self._max_bytes is not None and self._bytes > self._max_bytes:
            raise StagingFailed(f"outputs are larger than {self._max_bytes} bytes in all")

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)

    def close(self) -> None:
        """Drop what is still open."""
        for writer in self._opened:
            writer.close()


@asynccontextmanager
async def collecting(
    manifest: Path, blobs: Blobs, *, max_files: int = MAX_FILES, max_bytes: int | None = None
) -> AsyncIterator[OutputsWriter]:
    """Take outputs inside the block; at its end write the manifest of all that were committed.

    When the block fails, what came out whole is evidence: it is kept, and the manifest says that it is not complete.
    """
    writer = OutputsWriter(blobs, max_files=max_files, max_bytes=max_bytes)
    complete = False
    try:
        yield writer
        complete = True
    finally:
        writer.close()
        tree = Tree.of(writer.entries, complete=complete)
        await in_thread(write_whole, manifest, tree.to_json(), scratch=blobs.scratch)
