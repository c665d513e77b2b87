"""One reply beside the recorded one: every way in which they differ, in words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from tests.conformance.opennebula_ids import OBJECTS, RETURNS, Ids

_GARBAGE = re.compile(r"at line \d+,")  # oned prints memory that it never wrote to

UNCOMPARED: tuple[tuple[str, str], ...] = (
    (r".*(TIME|TIMESTAMP|LAST_POLL)", "a time"),
    (r".*/(UUID|PASSWORD|TOKEN\w*)", "made at random"),
    (
        r".*/(IP|MAC|ETH\d_IP|ETH\d_MAC|ALLOCATED|USED_LEASES|LEASE/VM|TARGET|PORT)",
        "what is free depends on what went before",
    ),
    (r".*/(SOURCE|PATH|BASE_PATH)", "a place on the machine's disk"),
    (r".*/(SIZE|\w*SIZE_USED|ORIGINAL_SIZE|DISK_SNAPSHOT_TOTAL_SIZE|\w+_MB)", "the recording's files have other sizes"),
    (
        r".*/(FORMAT|DRIVER|ALLOW_ORPHANS|\w*TM_MAD\w*|\w*_MAD|DEPLOY_ID|AUTOMATIC_DS_REQUIREMENTS|DISK_TYPE"
        r"|CLONE_TARGET|LN_TARGET|SHARED|DS_\w+|DESCRIPTION)",
        "another driver",
    ),
    (r"VM/HISTORY_RECORDS/HISTORY/(?!OID).*", "which host, by whom, and how: follows from the scheduler's moment"),
    (r"(VM/)?MONITORING.*", "figures of a machine"),
    (r"VM/USER_TEMPLATE/(ERROR|SCHED_MESSAGE)", "the driver's own words"),
    (r"(HOST|ZONE|OPENNEBULA_CONFIGURATION|ACL|GROUP|MARKETPLACE)\b.*", "the machine's and the installation's own"),
    (r"CLUSTER/TEMPLATE/.*|DATASTORE/(?!ID|NAME|UNAME|GNAME|TYPE|STATE|PERMISSIONS).*", "settings of the installation"),
)
"""Values that differ by nature, each a pattern over the path from the object on, with the reason. Names, nesting and
order of the elements are compared all the same."""

_AS_MANY_AS_IT_CAME_TO = {"HISTORY", "LEASE", "MONITORING", "CAPACITY", "SYSTEM"}


class Comparison:
    """Compares replies to one request after the other; `ids` grow meanwhile."""

    def __init__(self, ids: Ids) -> None:
        self._ids = ids

    def differences(self, method: str, asked: list[Any], sent: list[Any], recorded: Any, reply: Any) -> Iterator[str]:
        """`asked` are the recorded arguments, `sent` the other server's, both without the session."""
        match recorded, reply:
            case {"FAULT": wanted}, {"FAULT": got}:
                if wanted != got:
                    yield f"fault {got} instead of {wanted}"
            case [True, wanted, 0], [True, got, 0]:
                yield from self._success(method, asked, sent, wanted, got)
            case [False, str(text), code, about, -1], [False, str(got_text), got_code, got_about, -1]:
                if code != got_code:
                    yield f"code {got_code} instead of {code}: {got_text!r}"
                wanted_text = _GARBAGE.sub("at line,", self._ids.message(text))
                if wanted_text != _GARBAGE.sub("at line,", got_text):
                    yield f"text {got_text!r} instead of {wanted_text!r}"
                if _same_place(about, asked, sent) != got_about:
                    yield f"about object {got_about} instead of {about}"
            case _:
                yield f"replied {str(reply)[:300]} instead of {str(recorded)[:300]}"

    def _success(self, method: str, asked: list[Any], sent: list[Any], wanted: Any, got: Any) -> Iterator[str]:
        if type(wanted) is not type(got):
            yield f"a {type(got).__name__} instead of a {type(wanted).__name__}"
        elif isinstance(wanted, str) and wanted.startswith("<"):
            there, here = ElementTree.fromstring(wanted), ElementTree.fromstring(got)
            if there.tag != here.tag:
                yield f"<{here.tag}> instead of <{there.tag}>"
            else:
                yield from self._tree(there, here, there.tag)
        elif isinstance(wanted, str) and method != "one.user.login" and wanted != got:
            yield f"{got!r} instead of {wanted!r}"
        elif isinstance(wanted, int):
            makes_it = method.endswith(".allocate") or method in RETURNS
            if not makes_it and _same_place(wanted, asked, sent) != got:
                yield f"id {got} instead of {wanted}"

    def _tree(self, wanted: ElementTree.Element, got: ElementTree.Element, path: str) -> Iterator[str]:
        if path.endswith("_POOL"):
            yield from self._pool(wanted, got, path)
            return
        if _only_ids(wanted) and _only_ids(got):
            return
        if path.endswith("/MONITORING") and not (len(wanted) and len(got)):
            return  # whether a sample was there yet
        there, here = _tags(wanted), _tags(got)
        yield from (f"no {path}/{tag}" for tag in there if tag not in here)
        yield from (f"{path}/{tag} too much" for tag in here if tag not in there)
        common = [tag for tag in there if tag in here]
        if common != [tag for tag in here if tag in there]:
            yield f"{path}: order {' '.join(tag for tag in here if tag in there)} instead of {' '.join(common)}"
        for tag in common:
            if len(there[tag]) != len(here[tag]) and tag not in _AS_MANY_AS_IT_CAME_TO:
                yield f"{path}/{tag}: {len(here[tag])} instead of {len(there[tag])}"
            for one, other in zip(there[tag], here[tag], strict=False):
                yield from self._tree(one, other, f"{path}/{tag}")
        if not there and not here:
            yield from self._value(path, wanted.text or "", got.text or "")

    def _value(self, path: str, wanted: str, got: str) -> Iterator[str]:
        """A leaf's text: an id as it is mapped, anything else as it is, unless it differs by nature."""
        inner = re.sub(r"^\w+_POOL/", "", path)
        if any(re.fullmatch(pattern, inner) for pattern, _ in UNCOMPARED):
            return
        if self._ids.value(inner, wanted) != got:
            yield f"{path} is {got!r} instead of {self._ids.value(inner, wanted)!r}"

    def _pool(self, wanted: ElementTree.Element, got: ElementTree.Element, path: str) -> Iterator[str]:
        """Objects of a pool, paired by their ids; an AR_POOL has none of ours, nor has an ACL_POOL."""
        kind = {"VNET_POOL": "vnet", "SECURITY_GROUP_POOL": "secgroup", "VMTEMPLATE_POOL": "template"}.get(
            path, path.removesuffix("_POOL").lower()
        )
        if kind in OBJECTS.values():
            ours = {(one.tag, _id(one)): one for one in got}
            keys = {one: (one.tag, self._ids.find(kind, _id(one))) for one in wanted}
            pairs = [(one, ours[key]) for one, key in keys.items() if key in ours]
            missing = [str(key) for one, key in keys.items() if key[1] is not None and key not in ours]
            extra = [str(key) for key in ours if self._ids.has(kind, key[1]) and key not in keys.values()]
            if missing or extra:
                yield f"{path}: without {' '.join(missing) or 'none'}, beyond it {' '.join(extra) or 'none'}"
        else:
            pairs = list(zip(wanted, got, strict=False))
        if bool(len(wanted)) != bool(len(got)):
            yield f"{path}: {len(got)} objects instead of {len(wanted)}"
        places = [list(got).index(other) for _, other in pairs]
        if places != sorted(places):
            yield f"{path}: order of ids {[one.findtext('ID') for one in got]}"
        for one, other in pairs:
            if one.tag != other.tag:
                yield f"{path}: <{other.tag}> instead of <{one.tag}>"
            yield from self._tree(one, other, f"{path}/{one.tag}")


def _same_place(wanted: int, asked: list[Any], sent: list[Any]) -> int:
    """An object's own id, which most calls give back: what was sent where the recording has it."""
    for recorded, other in zip(asked, sent, strict=True):
        if recorded == wanted and isinstance(recorded, int) and not isinstance(recorded, bool):
            return int(other)
    return wanted


def _id(element: ElementTree.Element) -> int:
    return int(element.findtext("ID", "-1"))


def _tags(element: ElementTree.Element) -> dict[str, list[ElementTree.Element]]:
    """The children by tag, tags in the order of their first appearance."""
    tags: dict[str, list[ElementTree.Element]] = {}
    for child in element:
        tags.setdefault(child.tag, []).append(child)
    return tags


def _only_ids(element: ElementTree.Element) -> bool:
    """A list of other objects' ids, or an empty one: which there are, depends on all that went before."""
    return all(child.tag == "ID" and len(child) == 0 for child in element) and not (element.text or "").strip()
