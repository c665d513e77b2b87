"""Names that came out of a machine. The machine is hostile: a name is refused, never repaired."""

from __future__ import annotations

import os

from orchestrator.domain.errors import Unstageable

LONGEST_NAME = 255
"""Bytes: NAME_MAX of Linux, limits.h."""
LONGEST_PATH = 4000
"""Bytes: below PATH_MAX (4096), with room for the folder that the path will be put under."""


def checked_path(path: str) -> str:
    """`path`, if it is relative, stays where it is put, and any file system can hold it. Raises StagingFailed."""
    problem = _problem(path)
    if problem:
        raise Unstageable(f"refused an output name {problem}: {path[:200]!r}")
    return path


def _problem(path: str) -> str:
    if "\0" in path:
        return "with a NUL in it"
    if path.startswith("/"):
        return "that is absolute"
    names = path.split("/")
    if ".." in names:
        return "that leaves its folder"
    if "" in names or "." in names:
        return "that is not in its plainest form"
    try:
        lengths = [len(os.fsencode(name)) for name in names]
    except UnicodeEncodeError:
        return "that is no string of bytes"
    if max(lengths) > LONGEST_NAME or sum(lengths) + len(names) > LONGEST_PATH:
        return "that is too long"
    return ""
