"""Giving a tree to a person: a folder that is there whole, or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.artifacts.blobs import CHUNK, Blobs
from orchestrator.artifacts.disk import full_told, write_all
from orchestrator.artifacts.trees import Entry, Tree
from orchestrator.domain.errors import NotPossible, PlatformError

FIELD = "results"


def check_target(target: Path) -> None:
    """Raise NotPossible unless `target` can take results: new in a folder that can be written, or an empty folder.

    Leaves nothing behind. What is true now may be false later: `export` checks again.
    """
    with _staging(target):
        pass


def export(tree: Tree, target: Path, blobs: Blobs) -> None:
    """Write the files of `tree` under `target`, with their permission bits, as far as the umask lets them; readable and
    writable by their owner in any case.

    Raises NotPossible as `check_target`, HostDiskFull, PlatformError when a blob is gone or not what it was; in each
    case `target` is as it was before.
    """
    with _staging(target) as staging:
        try:
            with full_told():
                _fill(tree, staging, blobs)
                if target.is_dir():
                    _move_in(staging, target)
                else:
                    staging.rename(target)
        except OSError as error:
            raise _unwritable(target, error) from error


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A fresh folder on the target's own disk; what is left of it after the block is removed."""
    try:
        if target.is_dir():
            # Inside, and emptied into it at the end: the folder may be a mount point, or where somebody's shell stands.
            if any(target.iterdir()):
                raise NotPossible(FIELD, f"{_shown(target)} is not empty", "name a new folder, or empty this one")
            staging = target / f".mayfly-{secrets.token_hex(8)}"
        elif os.path.lexists(target):
            raise NotPossible(FIELD, f"{_shown(target)} is not a folder", "name a new folder")
        else:
            if not target.parent.is_dir():
                raise NotPossible(FIELD, f"{_shown(target.parent)} is no folder", "make it first")
            staging = target.with_name(f".mayfly-{secrets.token_hex(8)}")
        with full_told():
            staging.mkdir(mode=0o777)
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        yield staging
    finally:
        _remove(staging)


def _fill(tree: Tree, root: Path, blobs: Blobs) -> None:
    for entry in tree.files:
        path = root / entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        _copy(entry, path, blobs)


def _copy(entry: Entry, path: Path, blobs: Blobs) -> None:
    digest = hashlib.sha256()
    with blobs.open(entry.sha256) as source:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, entry.mode | 0o600)
        try:
            while chunk := source.read(CHUNK):
                digest.update(chunk)
                write_all(fd, chunk)
        finally:
            os.close(fd)
    if digest.hexdigest() != entry.sha256:
        raise PlatformError(f"{entry.path!r} in the artifact store is damaged: its sha256 is not {entry.sha256}")


def _move_in(staging: Path, target: Path) -> None:
    moved: list[Path] = []
    try:
        for path in sorted(staging.iterdir()):
            path.rename(target / path.name)
            moved.append(target / path.name)
    except OSError:
        for path in moved:
            path.rename(staging / path.name)
        raise


def _remove(folder: Path) -> None:
    """Remove our own unfinished work, if any is left."""
    if folder.is_dir():
        shutil.rmtree(folder)


def _unwritable(target: Path, error: OSError) -> NotPossible:
    problem = f"{_shown(target)} cannot be written: {error.strerror}"
    return NotPossible(FIELD, problem, "name a folder that you may write to")


def _shown(path: Path) -> str:
    return repr(str(path))
