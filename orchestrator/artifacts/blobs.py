"""Contents by their sha256. A blob is written once and never changed; the same content is kept once.

Its time of change says when it was last committed: young blobs are not swept, for what names them may come later.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from orchestrator.artifacts.disk import (
    fresh_file,
    full_told,
    locked,
    make_folder,
    new_file,
    sync_file,
    sync_folder,
    write_bulk,
)
from orchestrator.domain.errors import PlatformError

CHUNK = 1 << 20
_SYNCS_AT_ONCE = 8
_ID = re.compile(r"[0-9a-f]{64}")


class BlobWriter:
    """A blob that is being written: `write` its bytes, then `commit`. Blocking."""

    def __init__(self, fd: int, fresh: Path, blobs: Blobs) -> None:
        self._fd = fd
        self._fresh = fresh
        self._blobs = blobs
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> None:
        """Raises HostDiskFull, and then it may be written again."""
        with full_told():
            try:
                write_bulk(self._fd, data, self.size)
            except BaseException:
                os.ftruncate(self._fd, self.size)
                raise
        self._hash.update(data)
        self.size += len(data)

    @property
    def sha256(self) -> str:
        """Of what was written so far."""
        return self._hash.hexdigest()

    def commit(self) -> str:
        """Keep it; its id. Raises HostDiskFull, and then it may be committed again."""
        blob_id = self.sha256
        path = self._blobs.path(blob_id)
        with full_told():
            if self._blobs.renew(blob_id):
                return blob_id
            os.fchmod(self._fd, 0o400)
            os.fsync(self._fd)
            make_folder(path.parent)
            self._fresh.rename(path)
            sync_folder(path.parent)
        return blob_id


class Blobs:
    """`root/blobs/ab/ab12…`; what is being written is in `root/tmp`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.scratch = root / "tmp"

    def path(self, blob_id: str) -> Path:
        """Where a blob is, or would be. Raises ValueError for what is no id."""
        if not _ID.fullmatch(blob_id):
            raise ValueError(f"not a sha256: {blob_id!r}")
        return self._root / "blobs" / blob_id[:2] / blob_id

    def has(self, blob_id: str) -> bool:
        return self.path(blob_id).is_file()

    def open(self, blob_id: str) -> BinaryIO:
        """Raises PlatformError when it is not there."""
        try:
            return self.path(blob_id).open("rb")
        except FileNotFoundError as error:
            raise PlatformError(f"{blob_id} is not in the artifact store any more") from error

    def renew(self, blob_id: str) -> bool:
        """Make it as young as if it had been written now, if it is there."""
        with self._lock(shared=True):
            try:
                os.utime(self.path(blob_id))
            except FileNotFoundError:
                return False
            return True

    def remove(self, blob_id: str, before: float) -> int | None:
        """Take it away, if it was committed before that instant (seconds since the epoch): its bytes, else None."""
        with self._lock():
            try:
                found = self.path(blob_id).stat()
            except FileNotFoundError:
                return None
            if found.st_mtime >= before:
                return None
            self.path(blob_id).unlink()
            return found.st_size

    @contextmanager
    def _lock(self, *, shared: bool = False) -> Iterator[None]:
        fd = os.open(make_folder(self._root) / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with locked(fd, shared=shared):
                yield
        finally:
            os.close(fd)

    @contextmanager
    def writer(self) -> Iterator[BlobWriter]:
        """A new blob; nothing stays of it unless it is committed inside the block. Raises HostDiskFull."""
        with ExitStack() as stack:
            with full_told():
                fd, fresh = stack.enter_context(fresh_file(make_folder(self.scratch)))
            yield BlobWriter(fd, fresh, self)

    def put(self, data: bytes) -> str:
        """Keep `data`; its id."""
        with self.writer() as writer:
            writer.write(data)
            return writer.commit()

    def put_all(self, contents: Sequence[bytes]) -> list[str]:
        """Keep them all; their ids. Each is on the disk before it is in its place, but the disk is asked once for many,
        not once for each. Raises HostDiskFull, and then it may be tried again."""
        ids = [hashlib.sha256(data).hexdigest() for data in contents]
        fresh: dict[str, Path] = {}
        try:
            with full_told():
                for blob_id, data in zip(ids, contents, strict=True):
                    if blob_id not in fresh and not self.renew(blob_id):
                        fresh[blob_id] = self._write(data)
                with ThreadPoolExecutor(_SYNCS_AT_ONCE) as threads:  # the file system writes them together then
                    list(threads.map(sync_file, fresh.values()))
                for blob_id, path in fresh.items():
                    make_folder(self.path(blob_id).parent)
                    path.rename(self.path(blob_id))
                for folder in {self.path(blob_id).parent for blob_id in fresh}:
                    sync_folder(folder)
        finally:
            for path in fresh.values():
                path.unlink(missing_ok=True)
        return ids

    def _write(self, data: bytes) -> Path:
        """A new file in the scratch folder."""
        fd, path = new_file(make_folder(self.scratch))
        try:
            write_bulk(fd, data, 0)
            os.fchmod(fd, 0o400)
        except BaseException:
            path.unlink()
            raise
        finally:
            os.close(fd)
        return path
