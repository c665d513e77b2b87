"""A crate to be read, as a folder or a zip. Whoever made it may lie: nothing is unpacked, followed or read without
end."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from orchestrator.domain.errors import NotPossible

_CHUNK = 1 << 20
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError),
    *(KeyError, EOFError, OSError, RuntimeError, ValueError),
)
"""What zipfile raises for an archive that is not right, by its source."""
MOST_FILES = 1_000_000


class Place(Protocol):
    """names: of all that is in it but folders, '/' between the parts."""

    names: tuple[str, ...]

    def read(self, name: str, limit: int) -> Iterator[bytes]:
        """A file, a piece at a time, no more than `limit` bytes and one. Raises Unreadable."""


class Unreadable(Exception):
    """It is no file, or damaged."""


class Folder:
    def __init__(self, root: Path) -> None:
        self._root = root
        found = []
        for folder, folders, files in os.walk(root):
            links = [name for name in folders if (Path(folder) / name).is_symlink()]
            found += [(Path(folder) / name).relative_to(root).as_posix() for name in (*files, *links)]
            if len(found) > MOST_FILES:
                raise NotPossible("crate", f"{root} has more than {MOST_FILES} files", "give the folder of a crate")
        self.names = tuple(found)

    def read(self, name: str, limit: int) -> Iterator[bytes]:
        try:
            fd = os.open(self._root / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise Unreadable(error.strerror or "cannot be read") from error
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise Unreadable("is no file")
            try:
                yield from _pieces(file, limit)
            except OSError as error:
                raise Unreadable(error.strerror or "cannot be read") from error


class Zip:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.names = tuple(info.filename for info in archive.infolist() if not info.is_dir())

    def read(self, name: str, limit: int) -> Iterator[bytes]:
        try:
            with self._archive.open(name) as file:
                yield from _pieces(file, limit)
        except _DAMAGED as error:
            raise Unreadable("is damaged") from error


def _pieces(file: IO[bytes], limit: int) -> Iterator[bytes]:
    left = limit + 1
    while left and (chunk := file.read(min(_CHUNK, left))):
        left -= len(chunk)
        yield chunk


@contextmanager
def opened_place(path: Path) -> Iterator[Place]:
    """The crate at `path`. Raises NotPossible for what is no folder and no zip."""
    if path.is_dir():
        yield Folder(path)
        return
    try:
        archive = zipfile.ZipFile(path)
    except _DAMAGED as error:
        raise NotPossible("crate", f"{path} is no crate", "give its folder or .zip") from error
    with archive:
        yield Zip(archive)
