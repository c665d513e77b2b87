"""What names objects may have."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.localcloud.model import Entity, Owned
from orchestrator.localcloud.refusals import Code, Refused, internal

_FORBIDDEN = "/:;|&<>#$\\'\"\t\n"
_LONGEST = 128


def check(name: str) -> None:
    """Raises Refused 8192 with OpenNebula's words."""
    if not name:
        raise internal("Invalid NAME, it cannot be empty")
    if len(name) > _LONGEST:
        raise internal(f"Invalid NAME, max length is {_LONGEST} chars")
    for char in name:
        if char in _FORBIDDEN:
            raise internal(f"Invalid NAME, char '{char}' is not allowed")


def check_free(name: str, others: Iterable[Entity], *, owner: int | None, word: str, prefix: str = "") -> None:
    """Raises Refused when one of `others` has the name: of the same owner, or of anybody when `owner` is None. With a
    `prefix` the code is 16384 (an image), without 8192 (the rest)."""
    for other in others:
        same_owner = owner is None or (isinstance(other, Owned) and other.uid == owner)
        if other.name == name and same_owner:
            code = Code.ALLOCATE if prefix else Code.INTERNAL
            raise Refused(code, f"{prefix}NAME is already taken by {word} {other.oid}.")
