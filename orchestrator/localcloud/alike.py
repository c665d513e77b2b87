"""The calls that are the same for every kind of object with an owner: rename, chmod, chown, lock, unlock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrator.localcloud import edits
from orchestrator.localcloud.calls import Caller, Calls
from orchestrator.localcloud.cloud import Cloud
from orchestrator.localcloud.store import Pool

calls = Calls()

# By the family of calls: the pool in the store, and which of them there are. Names of VMs need not be unique, and
# one.template.chmod, which can take images along, is among the templates.
_FAMILIES = {
    "vm": ("vms", ("rename", "chmod", "chown", "lock", "unlock")),
    "vn": ("networks", ("rename", "chmod", "chown", "lock", "unlock")),
    "template": ("templates", ("rename", "chown", "lock", "unlock")),
    "image": ("images", ("rename", "chmod", "chown", "lock", "unlock")),
    "secgroup": ("security_groups", ("chmod",)),
    "datastore": ("datastores", ("chmod",)),
}
_SIGNATURES = {"rename": "is", "chmod": "iiiiiiiiii", "chown": "iii", "lock": "ii|b", "unlock": "i"}


def _rename(cloud: Cloud, caller: Caller, pool: Pool[Any], thing: Any, name: str) -> None:
    caller.require(("MANAGE", thing))
    edits.renamed(pool, thing, name, unique=pool is not cloud.store.vms)


def _chmod(cloud: Cloud, caller: Caller, pool: Pool[Any], thing: Any, *bits: int) -> None:
    caller.require(("MANAGE", thing))
    edits.chmod(thing, bits)


def _chown(cloud: Cloud, caller: Caller, pool: Pool[Any], thing: Any, uid: int, gid: int) -> None:
    edits.chown(cloud, caller, thing, uid, gid)


def _lock(cloud: Cloud, caller: Caller, pool: Pool[Any], thing: Any, level: int, _test: bool = False) -> None:
    edits.lock(caller, thing, level)


def _unlock(cloud: Cloud, caller: Caller, pool: Pool[Any], thing: Any) -> None:
    edits.unlock(caller, thing)


_EDITS: dict[str, Callable[..., None]] = {
    "rename": _rename,
    "chmod": _chmod,
    "chown": _chown,
    "lock": _lock,
    "unlock": _unlock,
}


def _add(family: str, attribute: str, what: str) -> None:
    edit = _EDITS[what]

    def call(cloud: Cloud, caller: Caller, oid: int, *arguments: Any) -> int:
        pool: Pool[Any] = getattr(cloud.store, attribute)
        thing = pool.get(oid)
        edit(cloud, caller, pool, thing, *arguments)
        pool.save(thing)
        return oid

    calls.add(f"one.{family}.{what}", _SIGNATURES[what])(call)


for _family, (_attribute, _names) in _FAMILIES.items():
    for _what in _names:
        _add(_family, _attribute, _what)
