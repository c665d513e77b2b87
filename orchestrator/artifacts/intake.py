"""Reading what a person names as input into the store: each file as it was at one moment, or a refusal."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from orchestrator.artifacts.blobs import CHUNK, Blobs
from orchestrator.artifacts.trees import Entry, EntryKind, Tree
from orchestrator.domain.errors import InvalidTask

FIELD = "input"
_PERMISSIONS = 0o777  # set-user-id, set-group-id and sticky bits mean nothing good in another machine


def read_tree(source: Path, blobs: Blobs, *, never: Path) -> Tree:
    """Read a file or a folder (a symlink named as the source is followed; below it none is).

    never: the artifact store itself, which cannot be part of an input.
    Raises InvalidTask naming the path that is wrong, HostDiskFull.
    """
    try:
        root = source.resolve(strict=True)
        mode = root.stat().st_mode
    except (OSError, RuntimeError) as error:
        raise _refused(source, error) from error
    if stat.S_ISDIR(mode):
        if never.resolve().is_relative_to(root):
            raise InvalidTask(
                FIELD, f"{_shown(source)} contains Mayfly's own artifact store", "name a folder inside it"
            )
        return Tree.of(_folder(root, blobs))
    return Tree.of([_file(root, "", blobs)])


def _folder(root: Path, blobs: Blobs) -> Iterator[Entry]:
    yield Entry("", EntryKind.DIRECTORY, _mode(root))
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        for name in _names(root / folder):
            path = f"{folder}/{name}" if folder else name
            entry = _entry(root, path, blobs)
            if entry.kind is EntryKind.DIRECTORY:
                waiting.append(path)
            yield entry


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 - names as they are, with no Path made of each
    except OSError as error:
        raise _refused(folder, error) from error


def _entry(root: Path, path: str, blobs: Blobs) -> Entry:
    full = root / path
    try:
        mode = full.lstat().st_mode
    except OSError as error:
        raise _refused(full, error) from error
    if stat.S_ISDIR(mode):
        return Entry(path, EntryKind.DIRECTORY, mode & _PERMISSIONS)
    if stat.S_ISLNK(mode):
        return _symlink(root, path)
    return _file(full, path, blobs)


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode & _PERMISSIONS
    except OSError as error:
        raise _refused(path, error) from error


def _symlink(root: Path, path: str) -> Entry:
    full = root / path
    try:
        target = os.readlink(full)  # noqa: PTH115 - the target's very bytes: a Path would tidy them
    except OSError as error:
        raise _refused(full, error) from error
    lands = Path(os.path.realpath(full.parent / target))
    written = os.path.normpath(f"{os.path.dirname(path)}/{target}" if "/" in path else target)  # noqa: PTH120
    # Both as it is written and as it resolves here: in the VM only what is inside the tree comes with it.
    leaves = os.path.isabs(target) or written.split("/")[0] == ".." or not lands.is_relative_to(root)  # noqa: PTH117
    if leaves:
        raise InvalidTask(
            FIELD,
            f"{_shown(full)} is a symlink to {target!r}, outside the input",
            "copy what it points to into the folder, or remove it",
        )
    return Entry(path, EntryKind.SYMLINK, 0o777, target=target)


def _file(full: Path, path: str, blobs: Blobs) -> Entry:
    try:
        before = full.lstat()
        _check_kind(full, before.st_mode)
        fd = os.open(full, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _refused(full, error) from error
    with os.fdopen(fd, "rb", buffering=0) as file, blobs.writer() as writer:
        opened = os.fstat(fd)
        _check_kind(full, opened.st_mode)
        try:
            while chunk := file.read(CHUNK):
                writer.write(chunk)
        except OSError as error:
            raise _refused(full, error) from error
        if not _same(before, opened) or not _same(opened, os.fstat(fd)) or writer.size != opened.st_size:
            raise InvalidTask(
                FIELD, f"{_shown(full)} changed while it was read", "submit again when nothing writes to it"
            )
        return Entry(path, EntryKind.FILE, opened.st_mode & _PERMISSIONS, writer.size, writer.commit())


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    return all(
        getattr(one, field) == getattr(other, field)
        for field in ("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")
    )


_KINDS = {
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
}


def _check_kind(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "not a file any more")
        raise InvalidTask(FIELD, f"{_shown(path)} is {kind}", "give files and folders only")


def _refused(path: Path, error: OSError | RuntimeError) -> InvalidTask:
    match error:
        case FileNotFoundError():
            return InvalidTask(FIELD, f"{_shown(path)} does not exist", "check the path")
        case PermissionError():
            return InvalidTask(FIELD, f"{_shown(path)} cannot be read: permission denied", "make it readable to you")
        case OSError():
            return InvalidTask(FIELD, f"{_shown(path)} cannot be read: {error.strerror}", "check the path")
        case RuntimeError():  # pathlib's word for symlinks in a circle
            return InvalidTask(FIELD, f"{_shown(path)} is a symlink that points to itself", "remove it")


def _shown(path: Path) -> str:
    """The path as Python writes it: newlines and bytes that are not UTF-8 can be seen."""
    return repr(str(path))
