"""Two servers give different ids to the same things: which is which, and where in requests and replies ids stand."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

# The ids among a method's arguments (without the session), by position, and the kind of the id that it returns.
_ARGUMENT_KINDS: dict[str, dict[int, str]] = {
    "one.vm.action": {1: "vm"},
    "one.vm.chown": {0: "vm", 1: "user"},
    "one.vm.deploy": {0: "vm", 1: "host", 3: "datastore"},
    "one.vm.migrate": {0: "vm", 1: "host"},
    "one.template.instantiate": {0: "template"},
    "one.image.allocate": {1: "datastore"},
    "one.datastore.allocate": {1: "cluster"},
    "one.host.allocate": {3: "cluster"},
    "one.vn.allocate": {1: "cluster"},
    "one.vmpool.info": {1: "vm", 2: "vm"},
    "one.vmpool.infoextended": {1: "vm", 2: "vm"},
}
_POOL_FILTER = re.compile(r"one\.\w+pool\.(info|infoextended|monitoring|accounting)")
OBJECTS = {
    "vm": "vm",
    "template": "template",
    "image": "image",
    "vn": "vnet",
    "host": "host",
    "datastore": "datastore",
    "cluster": "cluster",
    "secgroup": "secgroup",
    "user": "user",
}
RETURNS = {"one.template.instantiate": "vm", "one.vm.disksaveas": "image"}

# Ids within template text and XML bodies.
_TEXT_IDS = (
    (re.compile(r'(\bIMAGE_ID=")(\d+)'), "image"),
    (re.compile(r'(\bNETWORK_ID=")(\d+)'), "vnet"),
    (re.compile(r'(NETWORK=\[ID=")(\d+)'), "vnet"),
    (re.compile(r'(SCHED_REQUIREMENTS="ID=)(\d+)'), "host"),
)
_GROUPS = re.compile(r'(SECURITY_GROUPS=")([\d,]+)')

# Ids within messages, by the noun before them.
_MESSAGE_IDS = (
    (re.compile(r"(virtual machine template \[|TEMPLATE \[|TEMPLATE )(\d+)"), "template"),
    (re.compile(r"(virtual machine \[|\bVM \[|\bVM )(\d+)"), "vm"),
    (re.compile(r"([Ii]mage \[|[Ii]mage |IMAGE \[|IMAGE |Image with ID: )(\d+)"), "image"),
    (re.compile(r"(virtual network \[|virtual network |Virtual network with ID: |NETWORK with ID: )(\d+)"), "vnet"),
    (re.compile(r"([Hh]ost \[|HOST \[)(\d+)"), "host"),
    (re.compile(r"([Dd]atastore \[|[Dd]atastore |DATASTORE \[)(\d+)"), "datastore"),
    (re.compile(r"([Cc]luster \[|Cluster |CLUSTER \[)(\d+)"), "cluster"),
    (re.compile(r"(security group \[|SECGROUP \[)(\d+)"), "secgroup"),
    (re.compile(r"([Uu]ser \[|\bUser |USER \[|USER )(\d+)"), "user"),
)

# Ids within XML bodies, by the end of their path. A value that may be a list of ids, with commas, is taken as one.
_BODY_IDS = tuple(
    (re.compile(pattern), kind)
    for pattern, kind in (
        (r"(.*/)?(VM/ID|VMID|HISTORY/OID|VM/MONITORING/ID)", "vm"),
        (r"(.*/)?(VNET/ID|NETWORK/ID|NETWORK_ID)", "vnet"),
        (r"(.*/)?(SECURITY_GROUP/ID|SECURITY_GROUP_ID|SECURITY_GROUPS)", "secgroup"),
        (r"(.*/)?(IMAGE/ID|IMAGE_ID)", "image"),
        (r"(.*/)?(VMTEMPLATE/ID|TEMPLATE_ID)", "template"),
        (r"(.*/)?(DATASTORE/ID|DATASTORE_ID)", "datastore"),
        (r"(.*/)?(CLUSTER/ID|CLUSTER_ID)", "cluster"),
        (r"(.*/)?(USER/ID|(?<!HISTORY/)UID)", "user"),
    )
)

_NOT_THERE = {77, 99, 999, 99_999, 999_999}
"""Ids that the recorder asked for as nothing has them."""


class Unknown(Exception):
    """An id that the recording never gave."""


class Ids:
    """From recorded ids to the other server's, by kind of object. `known`: those that need no request to be learned."""

    def __init__(self, known: Mapping[str, Mapping[int, int]]) -> None:
        self._ids: dict[str, dict[int, int]] = defaultdict(dict)
        for kind, ids in known.items():
            self._ids[kind].update(ids)

    def learn(self, kind: str, recorded: int, other: int) -> None:
        self._ids[kind][recorded] = other

    def has(self, kind: str, other: int) -> bool:
        """Whether the other server's object is one of the recording's."""
        return other in self._ids[kind].values()

    def find(self, kind: str, recorded: int) -> int | None:
        return self._ids[kind].get(recorded)

    def of(self, kind: str, recorded: int) -> int:
        """The other server's id. Negative ones mean something else and stay. Raises Unknown."""
        if recorded < 0 or recorded in _NOT_THERE:
            return recorded
        if recorded in self._ids[kind]:
            return self._ids[kind][recorded]
        raise Unknown(f"{kind} {recorded}")

    def arguments(self, method: str, recorded: Any) -> list[Any]:
        """The arguments of a request (without its session) as the other server has to get them. Raises Unknown."""
        arguments = []
        for position, argument in enumerate(recorded):
            if isinstance(argument, int) and not isinstance(argument, bool):
                kind = kind_of(method, position)
                arguments.append(self.of(kind, argument) if kind else argument)
            elif isinstance(argument, str):
                arguments.append(self._text(method, argument))
            else:
                arguments.append(argument)
        return arguments

    def _text(self, method: str, text: str) -> str:
        for pattern, kind in _TEXT_IDS:
            text = pattern.sub(lambda found, kind=kind: f"{found[1]}{self.of(kind, int(found[2]))}", text)
        text = _GROUPS.sub(
            lambda found: found[1] + ",".join(str(self.of("secgroup", int(one))) for one in found[2].split(",")), text
        )
        if method == "one.vmpool.infoset":
            text = ",".join(str(self.of("vm", int(one))) for one in text.split(","))
        return text

    def message(self, text: str) -> str:
        """An error's text as the other server has to word it."""
        for pattern, kind in _MESSAGE_IDS:
            text = pattern.sub(
                lambda found, kind=kind: found[1] + str(self._ids[kind].get(int(found[2]), found[2])), text
            )
        return text

    def value(self, path: str, text: str) -> str:
        """A value of a body, which `path` (from the object on) tells to be an id, or not; a VM's name may hold one."""
        if path == "VM/NAME" and (found := re.fullmatch(r"one-(\d+)", text)):
            return f"one-{self._ids['vm'].get(int(found[1]), found[1])}"
        for pattern, kind in _BODY_IDS:
            if pattern.fullmatch(path):
                parts = (str(self._ids[kind].get(int(one), one)) if one.isdigit() else one for one in text.split(","))
                return ",".join(parts)
        return text


def kind_of(method: str, position: int) -> str | None:
    """The kind of object that an argument names by its id; None for one that names none."""
    if method in _ARGUMENT_KINDS:
        return _ARGUMENT_KINDS[method].get(position)
    if position == 0 and _POOL_FILTER.fullmatch(method):
        return "user"  # a filter of 0 and more is a user's id
    noun = method.split(".")[1]
    return OBJECTS[noun] if position == 0 and noun in OBJECTS else None
