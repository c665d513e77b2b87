"""A call of the API: its name, what arguments it takes, and who makes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from orchestrator.localcloud.model import Entity, Owned, User
from orchestrator.localcloud.refusals import CallFault, Code, Refused

ONEADMIN_GROUP = 0
USERS_GROUP = 1

_RIGHT_OF = {"USE": 0, "MANAGE": 1, "ADMIN": 2}
# What the rules of a fresh OpenNebula (one.acl.info) give to the group `users`, beyond the objects' own permissions.
_USERS_MAY_USE = {"NET", "DATASTORE"}
_USERS_MAY_CREATE = {"VM", "IMAGE", "TEMPLATE", "DOCUMENT", "SECGROUP", "VMGROUP"}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call. `request_id` is the call's number, as VM history shows it."""

    user: User
    gname: str
    request_id: int

    @property
    def is_admin(self) -> bool:
        """oneadmin, or of its group: no permission is asked."""
        return self.user.oid == 0 or ONEADMIN_GROUP in self.user.groups

    def may(self, right: str, thing: Entity) -> bool:
        """Whether the caller has a right (USE, MANAGE, ADMIN) on an object, its lock included."""
        if self.is_admin:
            return True
        if not isinstance(thing, Owned):
            return isinstance(thing, User) and thing.oid == self.user.oid
        # Lock levels: 1 and 4 stop USE, MANAGE and ADMIN, 2 the last two, 3 only ADMIN; the owner too must unlock
        # first.
        if thing.lock and _RIGHT_OF[right] >= {1: 0, 2: 1, 3: 2, 4: 0}[thing.lock["level"]]:
            return False
        bits = thing.permissions
        at = _RIGHT_OF[right]
        if thing.uid == self.user.oid and bits[at] == "1":
            return True
        if thing.gid in self.user.groups and bits[3 + at] == "1":
            return True
        if bits[6 + at] == "1":
            return True
        return right == "USE" and thing.auth_name in _USERS_MAY_USE and USERS_GROUP in self.user.groups

    def require(self, *rights: tuple[str, Entity]) -> None:
        """Raises Refused 512, which names every right that is missing."""
        self.demand(
            *(f"{right} {thing.auth_name} [{thing.oid}]" for right, thing in rights if not self.may(right, thing))
        )

    def require_create(self, auth_name: str, *also: str) -> None:
        """The right to make objects of a kind; `also` are rights that only administrators have."""
        if self.is_admin:
            return
        missing = [] if auth_name in _USERS_MAY_CREATE else [f"CREATE {auth_name}"]
        self.demand(*missing, *also)

    def demand(self, *missing: str) -> None:
        """Raises Refused 512 when anything is missing."""
        if missing:
            self.deny("; ".join(f"Not authorized to perform {right}" for right in missing) + ".")

    def deny(self, text: str) -> None:
        """Raises Refused 512."""
        raise Refused(Code.AUTHORIZATION, f"User [{self.user.oid}] : {text}")


Function = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Call:
    """`signature`: a letter per argument after the session, `i` integer, `s` string, `b` boolean, `l` list; those after
    `|` may be left out."""

    name: str
    signature: str
    function: Function

    def arguments(self, values: Iterable[object]) -> list[object]:
        """The arguments, checked; surplus ones are ignored. Raises CallFault -501."""
        given = list(values)
        needed, _, optional = self.signature.partition("|")
        letters = (needed + optional)[: len(given)]
        # Integers first: the original reads an object's id before anything else, wherever it stands.
        for letter, value in sorted(zip(letters, given, strict=False), key=lambda pair: pair[0] != "i"):
            _check(letter, value)
        if len(given) < len(needed):
            raise CallFault(CallFault.NOT_A_CALL, "Not enough parameters")
        return given[: len(letters)]


_TYPES: dict[str, tuple[type, str]] = {
    "i": (int, "integer"),
    "s": (str, "string"),
    "b": (bool, "boolean"),
    "l": (list, "array"),
}


def _check(letter: str, value: object) -> None:
    wanted, name = _TYPES[letter]
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise CallFault(CallFault.NOT_A_CALL, f"Parameter that is supposed to be {name} is not")


class Calls:
    """A module's calls, gathered: `@calls.add("one.vm.info", "i|b")` over `def info(cloud, caller, vm_id,
    decrypt=False)`."""

    def __init__(self) -> None:
        self.table: dict[str, Call] = {}

    def add(self, name: str, signature: str) -> Callable[[Function], Function]:
        def register(function: Function) -> Function:
            self.table[name] = Call(name, signature, function)
            return function

        return register
