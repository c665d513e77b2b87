"""Calls that are alike for every kind of object: update, rename, chmod, chown, lock."""

from __future__ import annotations

import time
from collections.abc import Iterable

from orchestrator.localcloud import names
from orchestrator.localcloud.calls import Caller
from orchestrator.localcloud.cloud import Cloud
from orchestrator.localcloud.model import Owned
from orchestrator.localcloud.refusals import Code, Refused, wrong_state
from orchestrator.localcloud.template import Template, TemplateError, merge, parse

REPLACE, MERGE = 0, 1


def updated(template: Template, text: str, how: int) -> Template:
    """0 replaces the whole template, 1 merges. Raises Refused: 2048 on bad syntax, as the original answers here."""
    try:
        given = parse(text)
    except TemplateError as error:
        raise wrong_state(str(error)) from None
    match how:
        case 0:
            return given
        case 1:
            return merge(template, given)
        case _:
            raise Refused(Code.API, "Wrong update type")


def renamed(others: Iterable[Owned], thing: Owned, name: str, *, unique: bool) -> None:
    """Check the new name and set it."""
    try:
        names.check(name)
        if unique and name != thing.name:
            names.check_free(name, others, owner=thing.uid, word=thing.auth_name)
    except Refused as refused:
        raise wrong_state(f"Cannot rename {thing.auth_name}. {refused.text}") from None
    thing.name = name


def chmod(thing: Owned, bits: tuple[int, ...]) -> None:
    """Nine values: 1, 0, or -1 to leave one as it is. Raises Refused 4096."""
    if any(bit not in (-1, 0, 1) for bit in bits):
        raise Refused(Code.API, "New permission must be -1, 0 or 1")
    thing.permissions = "".join(
        old if new == -1 else str(new) for old, new in zip(thing.permissions, bits, strict=True)
    )


def chown(cloud: Cloud, caller: Caller, thing: Owned, uid: int, gid: int) -> None:
    """-1 leaves the owner, or the group, as it is."""
    rights: list[str] = [] if caller.may("MANAGE", thing) else [f"MANAGE {thing.auth_name} [{thing.oid}]"]
    if uid != -1:
        user = cloud.store.users.get(uid)
        if not caller.may("MANAGE", user):
            rights.append(f"MANAGE USER [{uid}]")
    if gid != -1:
        cloud.store.groups.get(gid)
        if not caller.is_admin and gid not in caller.user.groups:
            rights.append(f"USE GROUP [{gid}]")
    caller.demand(*rights)
    if uid != -1:
        thing.uid, thing.uname = uid, cloud.store.users.get(uid).name
    if gid != -1:
        thing.gid, thing.gname = gid, cloud.store.groups.get(gid).name


def lock(caller: Caller, thing: Owned, level: int) -> None:
    """1 USE, 2 MANAGE, 3 ADMIN, 4 all. Raises Refused 4096."""
    caller.require(("MANAGE", thing))
    if level not in (1, 2, 3, 4):
        raise Refused(Code.API, "Wrong lock level")
    thing.lock = {
        "level": level,
        "owner": caller.user.oid,
        "time": int(time.time()),
        "request": caller.request_id,
    }


def unlock(caller: Caller, thing: Owned) -> None:
    """The one who locked it, or an administrator. Raises Refused 2048."""
    locked, thing.lock = thing.lock, {}
    try:
        caller.require(("MANAGE", thing))
        if locked and not caller.is_admin and locked["owner"] != caller.user.oid:
            raise wrong_state(f"Error trying to unlock the resource. It is locked by user {locked['owner']}.")
    except Refused:
        thing.lock = locked
        raise
