"""What the pool calls share: filter flags, id ranges, pages, newest first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from orchestrator.localcloud.calls import Caller
from orchestrator.localcloud.model import Entity, Owned
from orchestrator.localcloud.refusals import Code, Refused

T = TypeVar("T", bound=Owned)
E = TypeVar("E", bound=Entity)

_GROUP, _MINE, _ALL, _MINE_AND_GROUP = -4, -3, -2, -1


def visible(caller: Caller, things: Iterable[T], filter_flag: int) -> list[T]:
    """What the filter flag selects of what the caller may use, newest first. Raises Refused 4096.

    -4: of the caller's primary group; -3: the caller's own; -2: all; -1: own and of the caller's groups; from 0 on:
    of that user. Objects that one may not see are left out silently."""
    if filter_flag < _GROUP:
        raise Refused(Code.API, "Incorrect filter_flag")

    def selected(thing: T) -> bool:
        match filter_flag:
            case -4:
                return thing.gid == caller.user.gid
            case -3:
                return thing.uid == caller.user.oid
            case -2:
                return True
            case -1:
                return thing.uid == caller.user.oid or thing.gid in caller.user.groups
            case _:
                return thing.uid == filter_flag

    found = [thing for thing in things if selected(thing) and (may_see(caller, thing))]
    return sorted(found, key=lambda thing: -thing.oid)


def may_see(caller: Caller, thing: Owned) -> bool:
    """A lock does not hide an object."""
    if not thing.lock:
        return caller.may("USE", thing)
    locked, thing.lock = thing.lock, {}
    try:
        return caller.may("USE", thing)
    finally:
        thing.lock = locked


def page(things: list[E], start: int, end: int) -> list[E]:
    """`start` to `end` are ids, -1 is open; `end` below -1 makes it a page: `start` to leave out, `-end` to give."""
    if end < -1:
        return things[max(start, 0) : max(start, 0) - end]
    return [thing for thing in things if (start < 0 or thing.oid >= start) and (end < 0 or thing.oid <= end)]


def newest_first(things: Iterable[E]) -> list[E]:
    return sorted(things, key=lambda thing: -thing.oid)
