"""Outputs of an attempt, as they come out of its machine: blobs, and one manifest at the end.

Who takes them may be replaced by another, and not know it: the manifest is written by the one who began last.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

from orchestrator.artifacts.blobs import Blobs, BlobWriter
from orchestrator.artifacts.disk import full_told, locked, write_whole
from orchestrator.artifacts.media import HEAD_BYTES, media_type
from orchestrator.artifacts.names import checked_path
from orchestrator.artifacts.patience import Patience
from orchestrator.artifacts.trees import Entry, EntryKind, Tree
from orchestrator.domain.errors import StagingFailed, Unstageable

MAX_FILES = 100_000
MAX_DEPTH = 2000
"""No path that is taken at all has more folders: see `names.LONGEST_PATH`."""


_Names = dict[str, "_Names | None"]
"""What is in a folder: folders, and None for a file. It is as large as the names that it holds, however deep."""


class NamedFile(Protocol):
    """What the machine says of a file."""

    @property
    def path(self) -> str: ...
    @property
    def mode(self) -> int: ...


class WholeFile(Protocol):
    """A small file that came out of the machine, and what the machine says its sha256 is."""

    @property
    def entry(self) -> NamedFile: ...
    @property
    def data(self) -> bytes: ...
    @property
    def sha256(self) -> str: ...


class OutputWriter:
    """One output that is being written; ended by one `commit` or `abort`."""

    def __init__(
        self,
        file: NamedFile,
        outputs: OutputsWriter,
        begun: tuple[AbstractContextManager[BlobWriter], BlobWriter],
        patience: Patience,
    ) -> None:
        self._path = file.path
        self._mode = file.mode & 0o777
        self._outputs = outputs
        self._context, self._blob = begun
        self._patience = patience
        self._head = b""
        self._open = True

    async def write(self, data: bytes) -> None:
        """Raises HostDiskFull, StagingFailed when all outputs together are over their limit."""
        self._outputs.count(len(data))
        await self._patience.through(partial(self._blob.write, data))
        self._head += data[: HEAD_BYTES - len(self._head)]

    @property
    def sha256(self) -> str:
        """Of what was written so far."""
        return self._blob.sha256

    async def commit(self, sha256: str) -> None:
        """Keep it. `sha256`: of what the machine read; StagingFailed if it is not what was written here."""
        if self._blob.sha256 != sha256:
            self.close()
            raise StagingFailed(f"output {self._path!r} came out changed: its sha256 is not the machine's")
        blob_id = await self._patience.through(self._blob.commit)
        kind = media_type(self._head)
        self._outputs.add(
            Entry(self._path, EntryKind.FILE, self._mode, self._blob.size, blob_id, media_type=kind),
        )
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

    def __init__(
        self, blobs: Blobs, *, max_files: int, max_depth: int, max_bytes: int | None, patience: Patience
    ) -> None:
        self._blobs = blobs
        self._patience = patience
        self._max_files = max_files
        self._max_depth = max_depth
        self._max_bytes = max_bytes
        self._bytes = 0
        self._opened: list[OutputWriter] = []
        self._taken = 0
        self._names: _Names = {}
        self.entries: list[Entry] = []

    async def open(self, entry: NamedFile) -> OutputWriter:
        """Begin an output. Raises StagingFailed for a name that is bad, twice there or both file and folder, and for
        too many or too deep; HostDiskFull."""
        self._name(entry)
        writer = OutputWriter(entry, self, await self._patience.through(self._begin), self._patience)
        self._opened.append(writer)
        return writer

    async def put(self, files: Sequence[WholeFile]) -> None:
        """Take small ones, together. Raises as `open`, `OutputWriter.write` and `commit`, when those are taken that can
        be; HostDiskFull, and then none is."""
        entries: list[Entry] = []
        wrong: StagingFailed | None = None
        for each in files:
            try:
                path = self._name(each.entry)
                self.count(len(each.data))
            except StagingFailed as error:
                wrong = error
                break
            facts = path, EntryKind.FILE, each.entry.mode & 0o777, len(each.data), each.sha256
            entries.append(Entry(*facts, media_type=media_type(each.data)))
        contents = [each.data for each in files[: len(entries)]]
        ids = await self._patience.through(partial(self._blobs.put_all, contents))
        for entry, blob_id in zip(entries, ids, strict=True):
            if entry.sha256 == blob_id:
                self.entries.append(entry)
            else:
                wrong = StagingFailed(f"output {entry.path!r} came out changed: its sha256 is not the machine's")
        if wrong:
            raise wrong

    def _name(self, entry: NamedFile) -> str:
        """Its path, taken from now on."""
        path = checked_path(entry.path)
        *above, name = path.split("/")
        if len(above) > self._max_depth:
            shown = repr(path[:200])
            raise Unstageable(f"output {shown} is {len(above)} folders deep; at most {self._max_depth} are taken")
        if self._taken >= self._max_files:
            raise Unstageable(f"more than {self._max_files} outputs")
        folder: _Names | None = self._names
        for part in above:
            folder = None if folder is None else folder.setdefault(part, {})
        if folder is None or name in folder:
            raise Unstageable(f"output {path!r} is there twice")
        folder[name] = None
        self._taken += 1
        return path

    def _begin(self) -> tuple[AbstractContextManager[BlobWriter], BlobWriter]:
        blob = self._blobs.writer()
        return blob, blob.__enter__()

    def count(self, size: int) -> None:
        self._bytes += size
        if self._max_bytes is not None and self._bytes > self._max_bytes:
            raise Unstageable(f"outputs are larger than {self._max_bytes} bytes in all")

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)

    def close(self) -> None:
        """Drop what is still open."""
        for writer in self._opened:
            writer.close()


class _Turn:
    """Whose turn it is to write a manifest: a file beside it says so, and the lock of their folder guards both."""

    def __init__(self, manifest: Path) -> None:
        self._mark = manifest.with_suffix(".taker")
        self._name = secrets.token_hex(8)

    def take(self) -> None:
        """It is ours from now on, whose ever it was. Raises HostDiskFull."""
        with full_told(), self._held():
            self._mark.write_text(self._name)

    def use(self, write: Callable[[], None]) -> None:
        """Call `write` if it is still ours; then it is nobody's. When `write` raises, it is still ours."""
        with self._held():
            if self._mark.is_file() and self._mark.read_text() == self._name:
                write()
                self._mark.unlink()

    @contextmanager
    def _held(self) -> Iterator[None]:
        fd = os.open(self._mark.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with locked(fd):
                yield
        finally:
            os.close(fd)


@asynccontextmanager
async def collecting(
    manifest: Path,
    blobs: Blobs,
    *,
    max_files: int = MAX_FILES,
    max_depth: int = MAX_DEPTH,
    max_bytes: int | None = None,
    patience: Patience | None = None,
) -> AsyncIterator[OutputsWriter]:
    """Take outputs inside the block; at its end write the manifest of all that were committed, in the place of any that
    was there; unless somebody else has begun to take them since, for then it is theirs to write.

    When the block fails, what came out whole is evidence: it is kept, and the manifest says that it is not complete.
    """
    patience = patience or Patience()
    turn = _Turn(manifest)
    await patience.through(turn.take)
    writer = OutputsWriter(blobs, max_files=max_files, max_depth=max_depth, max_bytes=max_bytes, patience=patience)
    complete = False
    try:
        yield writer
        complete = True
    finally:
        writer.close()
        tree = Tree.of(writer.entries, complete=complete)
        write = partial(turn.use, partial(write_whole, manifest, tree.to_json(), scratch=blobs.scratch))
        # a block that failed has waited long enough, or is not to wait at all
        await (patience if complete else Patience()).through(write)
