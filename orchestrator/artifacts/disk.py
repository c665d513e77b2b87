"""Writing to this machine's disk so that a file is there whole or not at all, and a full disk is told as one."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from orchestrator.domain.errors import HostDiskFull

RESERVE_BYTES = 64 * 2**20
"""What a process's prints and outputs leave free, or a tenth of a small disk: the database lies beside them, and must
still take the verdict."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_P = ParamSpec("_P")
_T = TypeVar("_T")


@contextmanager
def full_told() -> Iterator[None]:
    """Inside the block, "no space left" (or over quota) is HostDiskFull."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            where = f": {error.filename}" if error.filename else ""
            raise HostDiskFull(f"no space left on this machine{where}") from error
        raise


def make_folder(path: Path) -> Path:
    """`path`, made if need be, for its owner alone."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def new_file(folder: Path) -> tuple[int, Path]:
    """A new file in `folder`: its descriptor and path."""
    path = folder / f"{os.getpid()}-{secrets.token_hex(8)}"
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), path


@contextmanager
def fresh_file(folder: Path) -> Iterator[tuple[int, Path]]:
    """A new file in `folder`: its descriptor and path. Gone after the block unless it was renamed away."""
    fd, path = new_file(folder)
    try:
        yield fd, path
    finally:
        os.close(fd)
        with suppress(FileNotFoundError):
            path.unlink()


def write_all(fd: int, data: bytes) -> None:
    """`os.write`, until all is written."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_bulk(fd: int, data: bytes, at: int) -> None:
    """Write what may be large at the offset `at`. Raises HostDiskFull, and writes nothing, when that would use the
    reserve; OSError when the disk is full, and then some of it may be written: the same can be written again."""
    disk = os.fstatvfs(fd)
    free, reserve = disk.f_bavail * disk.f_frsize, min(RESERVE_BYTES, disk.f_blocks * disk.f_frsize // 10)
    if free < reserve + len(data):
        raise HostDiskFull(f"no space left on this machine but a reserve of {reserve} bytes for Mayfly's own records")
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, at)
        view, at = view[written:], at + written


def write_whole(path: Path, data: bytes, *, scratch: Path) -> None:
    """Put `data` at `path`: readers see what was there before, or all of it. `scratch`: a folder on the same disk."""
    with full_told():
        make_folder(path.parent)
        with fresh_file(make_folder(scratch)) as (fd, fresh):
            write_all(fd, data)
            os.fsync(fd)
            fresh.rename(path)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make renames into `path` survive a power cut."""
    sync_file(path)


def sync_file(path: Path) -> None:
    """Make what was written to `path` survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def locked(fd: int, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock of an open file or folder inside the block, over all processes; blocks until it is free."""
    fcntl.flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)


async def in_thread(work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """`work` in a thread. A cancel is heeded only when the thread is done: nobody closes a file under its hands, and
    whoever goes on writing goes on where it ended."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # seen: the cancel is what counts now
        raise
