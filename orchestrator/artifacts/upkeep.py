"""Taking away what nobody needs any more: mark what is named, sweep the rest."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.artifacts.blobs import Blobs
from orchestrator.artifacts.disk import make_folder
from orchestrator.artifacts.trees import Tree
from orchestrator.domain.errors import PlatformError

DAY_SECONDS = 86400.0
"""What was written in the last day may belong to something that is still being written down: a task that is being
submitted, an attempt whose outputs come out."""


@dataclass(frozen=True, slots=True)
class Swept:
    """How many blobs were taken away, and their bytes."""

    blobs: int
    bytes: int


def remove_folder(folder: Path, scratch: Path) -> None:
    """Take `folder` away: at once, as its readers see it. Idempotent. `scratch`: a folder on the same disk."""
    aside = make_folder(scratch) / f"removed-{os.getpid()}-{time.monotonic_ns()}"
    with suppress(FileNotFoundError):
        folder.rename(aside)
        shutil.rmtree(aside)


def sweep(root: Path, blobs: Blobs, keep: Collection[str], older_than_seconds: float) -> Swept:
    """Take away the blobs that are older and that neither a tree of `keep` names nor a manifest of an attempt, and what
    is left in the scratch folder since a day. Raises ValueError, and takes nothing away, when a tree cannot be read.
    """
    before = time.time() - older_than_seconds
    marked = _marked(root, blobs, keep)
    count = size = 0
    for path in _files(root / "blobs"):
        try:
            blob = bytes.fromhex(path.name)
        except ValueError:
            continue
        if blob not in marked and (freed := blobs.remove(path.name, before)) is not None:
            count, size = count + 1, size + freed
    _drop_leftovers(blobs.scratch, time.time() - DAY_SECONDS)
    return Swept(count, size)


def _marked(root: Path, blobs: Blobs, keep: Collection[str]) -> set[bytes]:
    marked = {bytes.fromhex(tree_id) for tree_id in keep}
    for tree_id in keep:
        with suppress(PlatformError), blobs.open(tree_id) as file:  # one that is gone names nothing
            marked |= _named(file.read())
    for manifest in (root / "attempts").glob("*/*/outputs.json"):
        with suppress(FileNotFoundError):  # removed meanwhile
            marked |= _named(manifest.read_bytes())
    return marked


def _named(manifest: bytes) -> set[bytes]:
    return {bytes.fromhex(entry.sha256) for entry in Tree.from_json(manifest).files}


def _files(folder: Path) -> Iterator[Path]:
    with suppress(FileNotFoundError):
        for below in sorted(folder.iterdir()):
            yield from below.iterdir()


def _drop_leftovers(scratch: Path, before: float) -> None:
    """What a process left that was killed while it wrote."""
    with suppress(FileNotFoundError):
        for path in list(scratch.iterdir()):
            with suppress(FileNotFoundError):
                if path.lstat().st_mtime >= before:
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
