"""Contents by their sha256. A blob is written once and never changed; the same content is kept once."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from orchestrator.artifacts.disk import fresh_file, full_told, make_folder, sync_folder, write_bulk
from orchestrator.domain.errors import PlatformError

CHUNK = 1 << 20
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
        """Raises HostDiskFull."""
        with full_told():
            write_bulk(self._fd, data)
        self._hash.update(data)
        self.size += len(data)

    @property
    def sha256(self) -> str:
        """Of what was written so far."""
        return self._hash.hexdigest()

    def commit(self) -> str:
        """Keep it; its id. Raises HostDiskFull."""
        blob_id = self.sha256
        path = self._blobs.path(blob_id)
        with full_told():
            if not path.exists():
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
