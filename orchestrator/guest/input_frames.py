"""The frames in which inputs go in, see `scripts/stage_in.py`: made of what is read here, and checked against its hash.

Everything here blocks.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, Protocol

from orchestrator.domain.errors import StagingFailed
from orchestrator.guest.errors import printable

CHUNK = 1 << 18
"""Bytes in a frame, about. Each frame is a few packets of SSH's: a flood of tiny ones makes an emulated network drop
some, and then stand still."""

SMALL = 1 << 16
"""Files up to this size travel many in a frame, and are sent again whole when their frame was not acknowledged."""

_SAMPLE = 1 << 14
_WORTH = 0.7


class InputEntry(Protocol):
    """One entry of a tree to stage in.

    path: relative to the inputs' directory, parts joined by "/"; bytes that are not UTF-8 as surrogate escapes.
    mode: permission bits. size in bytes and sha256 in hex: of files. target: of symbolic links.
    """

    @property
    def path(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def mode(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def sha256(self) -> str: ...
    @property
    def target(self) -> str: ...
    def open(self) -> BinaryIO: ...


def staged_mode(mode: int, *, directory: bool) -> int:
    """The mode that an entry gets in the guest; see `staging_in`."""
    if directory:
        return mode & 0o700 | 0o555
    return mode & 0o700 | 0o444 | (0o011 if mode & 0o100 else 0)


def frame(kind: bytes, payload: bytes) -> bytes:
    return kind + len(payload).to_bytes(4, "big") + payload


def directories(entries: Iterable[InputEntry]) -> Iterator[bytes]:
    """Frames that make them."""
    yield from _gathered(b"d", (b"%o %s\0" % (_mode(each), name(each.path)) for each in entries))


def links(entries: Iterable[InputEntry]) -> Iterator[bytes]:
    """Frames that make them. They go last: nothing is written through a link, wherever it leads."""
    yield from _gathered(b"l", (name(each.path) + b"\0" + name(each.target) + b"\0" for each in entries))


def _gathered(kind: bytes, items: Iterable[bytes]) -> Iterator[bytes]:
    gathered = bytearray()
    for item in items:
        gathered += item
        if len(gathered) >= CHUNK:
            yield frame(kind, bytes(gathered))
            gathered.clear()
    if gathered:
        yield frame(kind, bytes(gathered))


def whole(files: Sequence[InputEntry]) -> bytes:
    """The payload that makes these files. Raises StagingFailed for one that is not what it was."""
    about = b"".join(b"%o %d %s\0" % (_mode(each), each.size, name(each.path)) for each in files)
    contents = [len(about).to_bytes(4, "big"), about]
    for each in files:
        with Reading(each) as content:
            contents.append(content.read(each.size))
            content.check()
    return b"".join(contents)


def opening(entry: InputEntry, offset: int) -> bytes:
    """The frame after which the content of a file comes, from that offset on."""
    return frame(b"o", b"%o %d %d %s" % (_mode(entry), offset, entry.size, name(entry.path)))


def name(path: str) -> bytes:
    return path.encode(errors="surrogateescape")


def _mode(entry: InputEntry) -> int:
    return staged_mode(entry.mode, directory=entry.kind == "directory")


class Reading:
    """The content of one file, hashed while it is read. Raises StagingFailed, naming it, for whatever is wrong here."""

    def __init__(self, entry: InputEntry) -> None:
        self._entry = entry
        self._hashed = hashlib.sha256()
        self.left = entry.size
        try:
            self._file = entry.open()
        except OSError as error:
            raise self._unreadable(error) from error

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def read(self, most: int) -> bytes:
        """The next bytes, as many as were asked for unless fewer are left."""
        wanted = min(most, self.left)
        try:
            data = self._file.read(wanted)
        except OSError as error:
            raise self._unreadable(error) from error
        self.left -= len(data)
        if len(data) < wanted:
            raise StagingFailed(f"{self._what()}: {self.left} bytes short of its size")
        self._hashed.update(data)
        return data

    def hash_of(self, size: int) -> str:
        """Read on until `size` bytes are read in all; their sha256."""
        while (read := self._entry.size - self.left) < size:
            self.read(min(CHUNK, size - read))
        return self._hashed.hexdigest()

    def check(self) -> None:
        """Once all is read."""
        if self._hashed.hexdigest() != self._entry.sha256:
            raise StagingFailed(f"{self._what()}: not what was submitted, its sha256 differs")

    def _what(self) -> str:
        return f"input {printable(self._entry.path)}"

    def _unreadable(self, error: OSError) -> StagingFailed:
        return StagingFailed(f"{self._what()}: cannot be read here: {error}")


def squeezed(kind: bytes, payload: bytes) -> bytes:
    """The frame of a payload, compressed where a piece out of its middle says that this is worth while."""
    middle = len(payload) // 2
    sample = payload[middle : middle + _SAMPLE]
    if len(sample) >= _SAMPLE // 4 and len(zlib.compress(sample, 1)) < _WORTH * len(sample):
        return frame(kind.upper(), zlib.compress(payload, 1))
    return frame(kind, payload)
