"""Send a recording's requests to another server, in order, and tell every way in which its replies differ.

Ids differ between the two servers: each id that a recorded reply gave is mapped to the one that the other server gave,
in arguments, in template text and in messages. Times, hashes and the like are not compared; names, nesting and order of
XML elements are, and the values of those that do not depend on the machine (`_SAME_VALUE`).

The recording is not gapless: it keeps one example of a request, and not the polling between. So before a request the
other server's VM is waited for until it is in the state that the recording shows or names; and a `Bridge` is a request
of ours that stands for one which is not in it.
"""

from __future__ import annotations

import re
import time
import xmlrpc.client
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from orchestrator.opennebula.states import LcmState, State, state_name

Row = Mapping[str, Any]

SETTLED = {"PENDING", "HOLD", "RUNNING", "POWEROFF", "SUSPENDED", "STOPPED", "UNDEPLOYED", "DONE"}
STATES = {state.name for state in State} | {state.name for state in LcmState}


@dataclass(frozen=True, slots=True)
class Bridge:
    """A request that the recording leaves out. `binds`: the kind and recorded id of what it makes."""

    method: str
    arguments: tuple[Any, ...]
    binds: tuple[str, int] | None = None
    user: str = "oneadmin"


@dataclass(frozen=True, slots=True)
class Until:
    """Wait until the VM with this recorded id is in this state."""

    vm: int
    state: str


@dataclass(frozen=True, slots=True)
class Do:
    """Something that no request can do: a machine that is to fail, say."""

    what: str
    act: Callable[[], object]


@dataclass(frozen=True, slots=True)
class UntilImage:
    """Wait until the image with this recorded id is in this state (a number)."""

    image: int
    state: int


@dataclass(frozen=True, slots=True)
class UntilSampled:
    """Wait until the VM with this recorded id has been monitored."""

    vm: int


Step = Bridge | Until | UntilImage | UntilSampled | Do


@dataclass(frozen=True, slots=True)
class Difference:
    """One way in which the reply to the request at `line` is not the recorded one."""

    line: int
    method: str
    what: str

    def __str__(self) -> str:
        return f"{self.line} {self.method}: {self.what}"


@dataclass(slots=True)
class Report:
    """What came of a replay. `compared`: lines; `skipped`: line and why it could not be sent."""

    compared: list[int] = field(default_factory=list)
    skipped: dict[int, str] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    bodies: list[tuple[int, str]] = field(default_factory=list)
    """Every XML body that the other server gave, with its line."""


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
_OBJECTS = {
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
_RETURNS = {"one.template.instantiate": "vm", "one.vm.disksaveas": "image"}
_NO_IDS = ("one.user.login",)

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

_GARBAGE = re.compile(r"at line \d+,")  # oned prints memory that it never wrote to
_WRONG_STATE = re.compile(r"(?:wrong state|not available for state) ([A-Z_]+)")

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


class Replay:
    """One run of a recording against the server at `url`.

    sessions: the session string of each user that the recording has from the start. bridges: by the line before which
    they are sent. known: ids that need no mapping, by kind. rewrite: what becomes of each string argument (paths, say).
    hopeless: lines that are not sent, and why. wait: seconds to wait for a VM's state.
    """

    def __init__(
        self,
        url: str,
        sessions: dict[str, str],
        *,
        bridges: Mapping[int, tuple[Step, ...]] | None = None,
        known: Mapping[str, Mapping[int, int]] | None = None,
        rewrite: Callable[[str], str] = str,
        hopeless: Mapping[int, str] | None = None,
        wait: float = 3.0,
    ) -> None:
        self._proxy = xmlrpc.client.ServerProxy(url, allow_none=True)
        self._sessions = dict(sessions)
        self._bridges = bridges or {}
        self._ids: dict[str, dict[int, int]] = defaultdict(dict)
        for kind, ids in (known or {}).items():
            self._ids[kind].update(ids)
        self._tokens: dict[str, str] = {}
        self._rewrite = rewrite
        self._hopeless = hopeless or {}
        self._wait = wait
        self.report = Report()

    def run(self, rows: Iterator[Row] | tuple[Row, ...]) -> Report:
        for row in rows:
            for step in self._bridges.get(row["line"], ()):
                self._take(step)
            self._replay(row)
        return self.report

    def _take(self, step: Step) -> None:
        """Raises AssertionError when the step cannot be taken: the list of them is wrong then."""
        match step:
            case Bridge():
                self._cross(step)
            case Until(vm, state):
                seen, _ = self._poll(self._ids["vm"][vm], {state})
                assert seen[-1] == state, f"{step}: seen {seen}"
            case UntilImage(image, state):
                problem = self._await_image(self._ids["image"][image], str(state))
                assert problem is None, f"{step}: {problem}"
            case UntilSampled(vm):
                self._await_sample(self._ids["vm"][vm])
            case Do():
                step.act()

    def _cross(self, bridge: Bridge) -> None:
        try:
            arguments = self._arguments(bridge.method, bridge.arguments)
        except _Unknown as unknown:
            raise AssertionError(f"a bridge needs {unknown}: {bridge}") from None
        self._settle(bridge.method, arguments)
        reply = self._send(bridge.method, self._sessions[bridge.user], arguments)
        if not (isinstance(reply, list) and reply[0]):
            raise AssertionError(f"a bridge broke: {bridge} got {reply}")
        if bridge.binds:
            kind, recorded = bridge.binds
            self._ids[kind][recorded] = reply[1]

    def _replay(self, row: Row) -> None:
        line, method, user = row["line"], row["method"], row["as_user"]
        if line in self._hopeless:
            self.report.skipped[line] = self._hopeless[line]
            return
        if user not in self._sessions:
            self.report.skipped[line] = f"user {user} could not be made"
            return
        session = "oneadmin:wrong" if row.get("note") == "wrong password" else self._sessions[user]
        try:
            arguments = self._arguments(method, row["args"][1:])
        except _Unknown as unknown:
            self.report.skipped[line] = f"{unknown} was made by a request that the recording leaves out"
            return
        problem, seen = self._await(method, arguments, self._wanted_state(row), row)
        if problem:
            self._differ(row, problem)
            self.report.compared.append(line)
            return
        # To ask one.vm.info once more might show the next state.
        reply = seen if seen is not None and method == "one.vm.info" else self._send(method, session, arguments)
        self.report.compared.append(line)
        self._learn(row, reply)
        self._compare(row, reply)

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _send(self, method: str, session: str, arguments: list[Any]) -> Any:
        try:
            return getattr(self._proxy, method)(session, *arguments)
        except xmlrpc.client.Fault as fault:
            return {"FAULT": {"faultCode": fault.faultCode, "faultString": fault.faultString}}

    def _kind(self, method: str, position: int) -> str | None:
        if method in _ARGUMENT_KINDS:
            return _ARGUMENT_KINDS[method].get(position)
        if position == 0 and _POOL_FILTER.fullmatch(method):
            return "user"  # a filter of 0 and more is a user's id
        noun = method.split(".")[1]
        if position == 0 and noun in _OBJECTS and method not in _NO_IDS:
            return _OBJECTS[noun]
        return None

    def _arguments(self, method: str, recorded: Any) -> list[Any]:
        arguments = []
        for position, argument in enumerate(recorded):
            if isinstance(argument, int) and not isinstance(argument, bool):
                kind = self._kind(method, position)
                arguments.append(self._id(kind, argument) if kind else argument)
            elif isinstance(argument, str):
                arguments.append(self._text(method, argument))
            else:
                arguments.append(argument)
        return arguments

    def _id(self, kind: str, recorded: int) -> int:
        """The other server's id. Negative ones mean something else; those above the range of the recorded ids name what
        is not there, and stay as they are."""
        if recorded < 0 or recorded in (77, 99, 999, 999999, 99999):
            return recorded
        if recorded in self._ids[kind]:
            return self._ids[kind][recorded]
        raise _Unknown(f"{kind} {recorded}")

    def _text(self, method: str, text: str) -> str:
        for pattern, kind in _TEXT_IDS:
            text = pattern.sub(lambda found, kind=kind: f"{found[1]}{self._id(kind, int(found[2]))}", text)
        text = _GROUPS.sub(
            lambda found: found[1] + ",".join(str(self._id("secgroup", int(one))) for one in found[2].split(",")), text
        )
        if method == "one.vmpool.infoset":
            text = ",".join(str(self._id("vm", int(one))) for one in text.split(","))
        return self._rewrite(self._tokens.get(text, text))

    def _learn(self, row: Row, reply: Any) -> None:
        """Which id the other server gave for the recorded one; which session a new user has."""
        method, recorded = row["method"], row["reply"]
        if not (isinstance(recorded, list) and recorded[0] and isinstance(reply, list) and reply[0]):
            return
        kind = _RETURNS.get(method)
        if method.endswith(".allocate"):
            kind = _OBJECTS[method.split(".")[1]]
        if kind and isinstance(recorded[1], int):
            self._ids[kind][recorded[1]] = reply[1]
        if method == "one.user.allocate":
            self._sessions[row["args"][1]] = f"{row['args'][1]}:{row['args'][2]}"
        if method == "one.user.passwd":
            self._sessions[row["as_user"]] = f"{row['as_user']}:{row['args'][2]}"
        if method == "one.user.login":
            self._tokens[recorded[1]] = reply[1]

    # ── states ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _wanted_state(self, row: Row) -> str | None:
        """The state in which the recording shows the VM, or says that it was when the request came."""
        recorded = row["reply"]
        if row["method"] == "one.vm.info" and isinstance(recorded, list) and recorded[0]:
            return _state_of(recorded[1])
        if isinstance(recorded, list) and not recorded[0] and (found := _WRONG_STATE.search(recorded[1])):
            return found[1]
        for word in re.findall(r"[A-Z_]+", row.get("note", "")):
            if word in STATES:
                return word
        return None

    def _await(
        self, method: str, arguments: list[Any], wanted: str | None, row: Row
    ) -> tuple[str | None, list[Any] | None]:
        """Wait for the state: what is wrong when it does not come, and the reply of one.vm.info that showed it."""
        if found := re.fullmatch(r"image state (\d+)", row.get("note", "")):
            return self._await_image(arguments[0], found[1]), None
        vm_id = self._vm_of(method, arguments)
        if vm_id is None:
            return None, None
        if wanted is None:
            if row["method"] not in ("one.vm.info", "one.vm.monitoring"):
                self._settle(method, arguments)
            return None, None
        names, reply = self._poll(vm_id, {wanted}, self._sessions[row["as_user"]] if method == "one.vm.info" else None)
        if names[-1] == wanted:
            return None, reply
        return f"state {wanted} never seen; seen {' '.join(names)}", None

    def _await_sample(self, vm_id: int) -> None:
        give_up = time.monotonic() + self._wait
        while "<TIMESTAMP>" not in self._proxy.one.vm.monitoring(self._sessions["oneadmin"], vm_id)[1]:
            assert time.monotonic() < give_up, f"VM {vm_id} is not monitored"
            time.sleep(0.01)

    def _await_image(self, image_id: int, wanted: str) -> str | None:
        give_up = time.monotonic() + self._wait
        while True:
            body = self._proxy.one.image.info(self._sessions["oneadmin"], image_id)[1]
            state = ElementTree.fromstring(body).findtext("STATE")
            if state == wanted:
                return None
            if time.monotonic() > give_up:
                return f"image state {wanted} never seen; last {state}"
            time.sleep(0.002)

    def _settle(self, method: str, arguments: list[Any]) -> None:
        if (vm_id := self._vm_of(method, arguments)) is not None:
            self._poll(vm_id, SETTLED)

    def _vm_of(self, method: str, arguments: list[Any]) -> int | None:
        for position, argument in enumerate(arguments):
            if isinstance(argument, int) and method.startswith("one.vm.") and self._kind(method, position) == "vm":
                return argument if argument in self._ids["vm"].values() else None
        return None

    def _poll(self, vm_id: int, states: set[str], session: str | None = None) -> tuple[list[str], list[Any]]:
        """The states that were seen until one of `states` came, or time was up, and the last reply."""
        seen: list[str] = []
        give_up = time.monotonic() + self._wait
        while True:
            reply = self._proxy.one.vm.info(session or self._sessions["oneadmin"], vm_id)
            name = _state_of(reply[1])
            if name not in seen[-1:]:
                seen.append(name)
            if name in states or time.monotonic() > give_up:
                return seen, reply
            time.sleep(0.002)

    # ── replies ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _differ(self, row: Row, what: str) -> None:
        self.report.differences.append(Difference(row["line"], row["method"], what))

    def _compare(self, row: Row, reply: Any) -> None:
        recorded = row["reply"]
        match recorded, reply:
            case {"FAULT": wanted}, {"FAULT": got}:
                if wanted != got:
                    self._differ(row, f"fault {got} instead of {wanted}")
            case [True, wanted, *_], [True, got, *_]:
                if isinstance(got, str) and got.startswith("<"):
                    self.report.bodies.append((row["line"], got))
                self._compare_values(row, wanted, got)
            case [False, str(text), code, *_], [False, str(got_text), got_code, *_]:
                if code != got_code:
                    self._differ(row, f"code {got_code} instead of {code}: {got_text!r}")
                wanted_text = self._message(text)
                if wanted_text != _GARBAGE.sub("at line,", got_text):
                    self._differ(row, f"text {got_text!r} instead of {wanted_text!r}")
            case _:
                self._differ(row, f"replied {str(reply)[:300]} instead of {str(recorded)[:300]}")

    def _message(self, text: str) -> str:
        for pattern, kind in _MESSAGE_IDS:
            text = pattern.sub(
                lambda found, kind=kind: found[1] + str(self._ids[kind].get(int(found[2]), found[2])), text
            )
        return _GARBAGE.sub("at line,", text)

    def _compare_values(self, row: Row, wanted: Any, got: Any) -> None:
        if type(wanted) is not type(got):
            self._differ(row, f"a {type(got).__name__} instead of a {type(wanted).__name__}")
        elif isinstance(wanted, str) and wanted.startswith("<"):
            there, here = ElementTree.fromstring(wanted), ElementTree.fromstring(got)
            if there.tag != here.tag:
                self._differ(row, f"<{here.tag}> instead of <{there.tag}>")
                return
            for what in self._tree(there, here, there.tag):
                self._differ(row, what)
        elif isinstance(wanted, str) and row["method"] != "one.user.login" and wanted != got:
            self._differ(row, f"{got!r} instead of {wanted!r}")
        elif isinstance(wanted, int):
            self._compare_id(row, wanted, got)

    def _compare_id(self, row: Row, wanted: int, got: int) -> None:
        """An object's own id, which most calls that change it return."""
        own = [argument for argument in row["args"][1:] if argument == wanted and not isinstance(argument, bool)]
        method = row["method"]
        if method.endswith(".allocate") or method in _RETURNS or not own:
            return
        kind = _OBJECTS[method.split(".")[1]]
        if self._ids[kind].get(wanted, wanted) != got and wanted != got:
            self._differ(row, f"id {got} instead of {wanted}")

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
            pairs = zip(there[tag], here[tag], strict=False)
            if len(there[tag]) != len(here[tag]) and tag not in _AS_MANY_AS_IT_CAME_TO:
                yield f"{path}/{tag}: {len(here[tag])} instead of {len(there[tag])}"
            for one, other in pairs:
                yield from self._tree(one, other, f"{path}/{tag}")
        if not there and not here:
            yield from self._value(path, wanted.text or "", got.text or "")

    def _value(self, path: str, wanted: str, got: str) -> Iterator[str]:
        """A leaf's text: an id as it is mapped, anything else as it is, unless it differs by nature."""
        inner = re.sub(r"^\w+_POOL/", "", path)
        if any(re.fullmatch(pattern, inner) for pattern, _ in UNCOMPARED):
            return
        for pattern, kind in _BODY_IDS:
            if pattern.fullmatch(inner):
                ids = self._ids[kind]
                parts = [str(ids.get(int(one), one)) if one.isdigit() else one for one in wanted.split(",")]
                wanted = ",".join(parts)
        if wanted != got:
            yield f"{path} is {got!r} instead of {wanted!r}"

    def _pool(self, wanted: ElementTree.Element, got: ElementTree.Element, path: str) -> Iterator[str]:
        """Objects of a pool, paired by their ids; an AR_POOL has none of ours, nor has an ACL_POOL."""
        kind = {"VNET_POOL": "vnet", "SECURITY_GROUP_POOL": "secgroup", "VMTEMPLATE_POOL": "template"}.get(
            path, path.removesuffix("_POOL").lower()
        )
        ours = {(one.tag, int(one.findtext("ID", "-1"))): one for one in got}
        if kind not in _OBJECTS.values():
            pairs = list(zip(wanted, got, strict=False))
        else:
            keys = {one: (one.tag, self._ids[kind].get(int(one.findtext("ID", "-1")), -1)) for one in wanted}
            pairs = [(one, ours[key]) for one, key in keys.items() if key in ours]
        if bool(len(wanted)) != bool(len(got)):
            yield f"{path}: {len(got)} objects instead of {len(wanted)}"
        places = [list(got).index(other) for _, other in pairs]
        if places != sorted(places):
            yield f"{path}: order of ids {[one.findtext('ID') for one in got]}"
        for one, other in pairs:
            if one.tag != other.tag:
                yield f"{path}: <{other.tag}> instead of <{one.tag}>"
            yield from self._tree(one, other, f"{path}/{one.tag}")


class _Unknown(Exception):
    """An id that the recording never gave."""


def _tags(element: ElementTree.Element) -> dict[str, list[ElementTree.Element]]:
    """The children by tag, tags in the order of their first appearance."""
    tags: dict[str, list[ElementTree.Element]] = {}
    for child in element:
        tags.setdefault(child.tag, []).append(child)
    return tags


def _only_ids(element: ElementTree.Element) -> bool:
    """A list of other objects' ids, or an empty one: which there are, depends on all that went before."""
    return all(child.tag == "ID" and len(child) == 0 for child in element) and not (element.text or "").strip()


def _state_of(body: str) -> str:
    vm = ElementTree.fromstring(body)
    return state_name(State(int(vm.findtext("STATE", "0"))), LcmState(int(vm.findtext("LCM_STATE", "0"))))
