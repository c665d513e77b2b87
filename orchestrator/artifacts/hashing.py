"""The id that a file or folder would have in the store, without keeping anything of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.artifacts.blobs import Blobs, BlobWriter
from orchestrator.artifacts.intake import read_tree


class _Hash(BlobWriter):
    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> None:
        self._hash.update(data)
        self.size += len(data)

    def commit(self) -> str:
        return self.sha256


class _Nowhere(Blobs):
    @contextmanager
    def writer(self) -> Iterator[BlobWriter]:
        yield _Hash()


def tree_id(source: Path, *, never: Path) -> str:
    """What `Artifacts.read_tree` would say. Raises InvalidTask naming the path, as it does. Blocking. never: the
    artifact store itself."""
    return hashlib.sha256(read_tree(source, _Nowhere(never), never=never).to_json()).hexdigest()
