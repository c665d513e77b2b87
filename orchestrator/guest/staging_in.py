"""Inputs in: a stream of tar over the connection, extracted by root under /task/in, and hashed again over there.

Modes: a file's owner keeps the bits it had, and may read it; everybody else may read it too, and execute it where the
owner may. Files belong to root and /task/in is read-only for the process, so the w bits open nothing. Set-id and sticky
bits are dropped. Times are those of the staging.
"""

from __future__ import annotations

import asyncio
import hashlib
import tarfile
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import BinaryIO, Protocol

from orchestrator.domain.errors import StagingFailed, Unstageable
from orchestrator.guest.errors import printable
from orchestrator.guest.wire import MAX_STDERR, Process, ended, tail

Progress = Callable[[int, int], None]
"""Told of bytes done and bytes in all."""

CHUNK = 1 << 18
STALLED_SECONDS = 120.0
"""A transfer in which nothing moves for so long has failed."""

_SLOWEST_HASHING = 2 * 2**20
"""Bytes a second: what even an emulated guest surpasses."""


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


def check_tree(entries: Sequence[InputEntry]) -> None:
    """Raise StagingFailed for a path that is not a plain relative one, comes twice, lies under something that is no
    directory (a symbolic link, say), or holds a NUL."""
    kinds: dict[str, str] = {}
    for entry in entries:
        parts = entry.path.split("/")
        if not entry.path or "\0" in entry.path or any(part in ("", ".", "..") for part in parts):
            raise Unstageable(f"input '{printable(entry.path)}': not a plain relative path")
        if entry.path in kinds:
            raise Unstageable(f"input {printable(entry.path)}: staged twice")
        if entry.kind == "symlink" and (not entry.target or "\0" in entry.target):
            raise Unstageable(f"input {printable(entry.path)}: a symbolic link to nothing")
        kinds[entry.path] = entry.kind
    for path in kinds:
        parts = path.split("/")
        for depth in range(1, len(parts)):
            above = "/".join(parts[:depth])
            if kinds.get(above, "directory") != "directory":
                raise Unstageable(f"input {printable(path)}: {printable(above)} is not a directory")


def staged_mode(mode: int, *, directory: bool) -> int:
    """The mode that an entry gets in the guest; see the module."""
    if directory:
        return mode & 0o700 | 0o555
    return mode & 0o700 | 0o444 | (0o011 if mode & 0o100 else 0)


async def send_tree(process: Process, entries: Sequence[InputEntry], progress: Progress | None) -> None:
    """Write the tree to the step's stdin, then read the hashes that it made and compare. Raises StagingFailed."""
    total = sum(entry.size for entry in entries if entry.kind == "file")
    wrong = asyncio.create_task(tail(process))
    try:
        try:
            done = 0
            async with aclosing(_archive(entries)) as archive:
                async for chunk, content in archive:
                    async with asyncio.timeout(STALLED_SECONDS):
                        process.stdin.write(chunk)
                        await process.stdin.drain()
                    done += content
                    if progress and content:
                        progress(done, total)
            process.stdin.write_eof()
        except TimeoutError as error:
            raise StagingFailed(f"the guest took no input for {STALLED_SECONDS:g} s") from error
        except BrokenPipeError:
            pass  # the step ended early, and says why below; or the connection dropped, and `ended` says so
        within = STALLED_SECONDS + total / _SLOWEST_HASHING
        try:
            async with asyncio.timeout(within):
                hashes = await _hashes(process, limit=sum(len(entry.path) * 4 + 80 for entry in entries) + (1 << 20))
                status = await ended(process)
        except TimeoutError as error:
            raise StagingFailed(f"the guest did not end staging in within {within:g} s") from error
        if status != 0:
            raise StagingFailed(f"the inputs did not go in (status {status}): {(await wrong)[:MAX_STDERR]}")
    finally:
        wrong.cancel()
        await asyncio.gather(wrong, return_exceptions=True)
    for entry in entries:
        if entry.kind == "file" and hashes.get(entry.path) != entry.sha256:
            raise StagingFailed(f"input {printable(entry.path)}: its sha256 in the guest is not what was sent")


async def _archive(entries: Sequence[InputEntry]) -> AsyncGenerator[tuple[bytes, int], None]:
    """The tar archive in pieces of about CHUNK, each with the count of bytes of content in it.

    Many small files go as few large pieces: each piece is a packet of SSH's, and a flood of tiny packets makes an
    emulated network drop some of them, and then stand still.
    """
    gathered, content = bytearray(), 0
    async with aclosing(_pieces(entries)) as pieces:
        async for piece, of_content in pieces:
            gathered += piece
            content += of_content
            if len(gathered) >= CHUNK:
                yield bytes(gathered), content
                gathered, content = bytearray(), 0
    yield bytes(gathered), content


async def _pieces(entries: Sequence[InputEntry]) -> AsyncGenerator[tuple[bytes, int], None]:
    """The tar archive bit by bit, each with the count of bytes of content in it.

    Directories first and links last: nothing is written through a link, wherever it leads.
    """
    order = {"directory": 0, "file": 1, "symlink": 2}
    for entry in sorted(entries, key=lambda each: order[each.kind]):
        yield _header(entry), 0
        if entry.kind == "file":
            async with aclosing(_content(entry)) as content:
                async for chunk in content:
                    yield chunk, len(chunk)
            yield b"\0" * (-entry.size % tarfile.BLOCKSIZE), 0
    yield b"\0" * tarfile.RECORDSIZE, 0


def _header(entry: InputEntry) -> bytes:
    info = tarfile.TarInfo(entry.path)
    info.mode = staged_mode(entry.mode, directory=entry.kind == "directory")
    match entry.kind:
        case "file":
            info.size = entry.size
        case "directory":
            info.type = tarfile.DIRTYPE
        case "symlink":
            info.type = tarfile.SYMTYPE
            info.linkname = entry.target
            info.mode = 0o777
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


async def _content(entry: InputEntry) -> AsyncGenerator[bytes, None]:
    hashed = hashlib.sha256()
    left = entry.size
    try:
        source = await asyncio.to_thread(entry.open)
    except OSError as error:
        raise StagingFailed(f"input {printable(entry.path)}: cannot be read here: {error}") from error
    try:
        while left:
            try:
                chunk = await asyncio.to_thread(source.read, min(CHUNK, left))
            except OSError as error:
                raise StagingFailed(f"input {printable(entry.path)}: cannot be read here: {error}") from error
            if not chunk:
                raise StagingFailed(f"input {printable(entry.path)}: {left} bytes short of its size")
            hashed.update(chunk)
            left -= len(chunk)
            yield chunk
    finally:
        source.close()
    if hashed.hexdigest() != entry.sha256:
        raise StagingFailed(f"input {printable(entry.path)}: not what was submitted, its sha256 differs")


async def _hashes(process: Process, limit: int) -> dict[str, str]:
    """What `sha256sum -z` wrote: path to sha256."""
    found: dict[str, str] = {}
    rest = b""
    seen = 0
    while chunk := await process.stdout.read(65536):
        seen += len(chunk)
        if seen > limit:
            raise StagingFailed("the guest wrote more hashes than there are inputs")
        *lines, rest = (rest + chunk).split(b"\0")
        for line in lines:
            digest, path = line[:64], line[66:].removeprefix(b"./")
            found[path.decode(errors="surrogateescape")] = digest.decode("ascii", "replace")
    return found
