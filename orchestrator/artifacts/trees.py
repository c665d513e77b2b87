"""A tree: what a file or a folder held, as a list of entries; the contents are blobs.

Its JSON is canonical (sorted, no spaces, ASCII), so that equal trees have equal ids. Names may hold bytes that are not
UTF-8, as the surrogates of PEP 383; the ASCII escapes of JSON keep them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

FORMAT = 1


class EntryKind(StrEnum):
    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a tree.

    path: relative to the tree's root, '/' between names; empty for the root itself.
    mode: permission bits (0 to 0o777). size in bytes and sha256: of files. target: of symlinks. media_type: of an
    output, told from its content (see `media`); "" of inputs, and of outputs taken before it was told.
    """

    path: str
    kind: EntryKind
    mode: int
    size: int = 0
    sha256: str = ""
    target: str = ""
    media_type: str = ""


@dataclass(frozen=True, slots=True)
class Tree:
    """Entries in the order of their paths, a directory before what is in it. The tree of a file has one, its root.

    complete: nothing is missing that should be there (outputs of an attempt that was cut short are not complete).
    """

    entries: tuple[Entry, ...]
    complete: bool = True

    @classmethod
    def of(cls, entries: Iterable[Entry], *, complete: bool = True) -> Tree:
        return cls(tuple(sorted(entries, key=lambda entry: entry.path.split("/"))), complete)

    @property
    def files(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.kind is EntryKind.FILE)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.entries)

    def to_json(self) -> bytes:
        data = {"format": FORMAT, "complete": self.complete, "entries": [_entry(entry) for entry in self.entries]}
        return json.dumps(data, sort_keys=True, separators=(",", ":")).encode("ascii")

    @classmethod
    def from_json(cls, text: bytes) -> Tree:
        """Raises ValueError for what is no tree of ours."""
        data = json.loads(text)
        if data["format"] != FORMAT:
            raise ValueError(f"a manifest of format {data['format']!r}; this version knows {FORMAT}")
        entries = (Entry(**{**entry, "kind": EntryKind(entry["kind"])}) for entry in data["entries"])
        return cls(tuple(entries), data["complete"])


def _entry(entry: Entry) -> dict[str, Any]:
    data: dict[str, Any] = {"path": entry.path, "kind": entry.kind.value, "mode": entry.mode}
    match entry.kind:
        case EntryKind.FILE:
            data |= {"size": entry.size, "sha256": entry.sha256}
            if entry.media_type:
                data["media_type"] = entry.media_type
        case EntryKind.SYMLINK:
            data |= {"target": entry.target}
        case EntryKind.DIRECTORY:
            pass
    return data
