"""Send a recording's requests to another server, in order, and tell every way in which its replies differ.

Ids differ between the two servers: each id that a recorded reply gave is mapped to the one that the other server gave,
in arguments, in template text and in messages. Times, hashes and the like are not compared; names, nesting and order of
XML elements are, and the values of those that do not depend on the machine (all but `UNCOMPARED`).

The recording is not gapless: it keeps one example of a request, and not the polling between. So before a request the
other server's VM is waited for until it is in the state that the recording shows or names; and a `Bridge` is a request
of ours that stands for one which is not in it.
"""

from __future__ import annotations

import re
import time
import xmlrpc.client
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from orchestrator.opennebula.states import LcmState, State, state_name
from tests.conformance.opennebula_compare import Comparison
from tests.conformance.opennebula_ids import OBJECTS, RETURNS, Ids, Unknown, kind_of

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


_WRONG_STATE = re.compile(r"(?:wrong state|not available for state) ([A-Z_]+)")


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
        self._ids = Ids(known or {})
        self._comparison = Comparison(self._ids)
        self._tokens: dict[str, str] = {}
        self._rewrite = rewrite
        self._hopeless = hopeless or {}
        self._wait = wait
        self.report = Report()
        self.looks = 0
        """How often a VM's state was asked for."""

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
                seen, _ = self._poll(self._ids.of("vm", vm), {state})
                assert seen[-1] == state, f"{step}: seen {seen}"
            case UntilImage(image, state):
                problem = self._await_image(self._ids.of("image", image), str(state))
                assert problem is None, f"{step}: {problem}"
            case UntilSampled(vm):
                self._await_sample(self._ids.of("vm", vm))
            case Do():
                step.act()

    def _cross(self, bridge: Bridge) -> None:
        try:
            arguments = self._arguments(bridge.method, bridge.arguments)
        except Unknown as unknown:
            raise AssertionError(f"a bridge needs {unknown}: {bridge}") from None
        self._settle(bridge.method, arguments)
        reply = self._send(bridge.method, self._sessions[bridge.user], arguments)
        if not (isinstance(reply, list) and reply[0]):
            raise AssertionError(f"a bridge broke: {bridge} got {reply}")
        if bridge.binds:
            kind, recorded = bridge.binds
            self._ids.learn(kind, recorded, reply[1])

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
        except Unknown as unknown:
            self.report.skipped[line] = f"{unknown} was made by a request that the recording leaves out"
            return
        problem, seen = self._await(method, arguments, self._wanted_state(row), row)
        if problem:
            self.report.compared.append(line)
            self.report.differences.append(Difference(line, method, problem))
            return
        # To ask one.vm.info once more might show the next state.
        reply = seen if seen is not None and method == "one.vm.info" else self._send(method, session, arguments)
        self.report.compared.append(line)
        self._learn(row, reply)
        if isinstance(reply, list) and isinstance(reply[1], str) and reply[1].startswith("<"):
            self.report.bodies.append((line, reply[1]))
        asked = row["args"][1:]
        for what in self._comparison.differences(method, asked, arguments, row["reply"], reply):
            self.report.differences.append(Difference(line, method, what))

    def _arguments(self, method: str, recorded: Any) -> list[Any]:
        """Raises Unknown."""
        arguments = self._ids.arguments(method, recorded)
        return [
            self._rewrite(self._tokens.get(argument, argument)) if isinstance(argument, str) else argument
            for argument in arguments
        ]

    def _send(self, method: str, session: str, arguments: list[Any]) -> Any:
        try:
            return getattr(self._proxy, method)(session, *arguments)
        except xmlrpc.client.Fault as fault:
            return {"FAULT": {"faultCode": fault.faultCode, "faultString": fault.faultString}}

    def _learn(self, row: Row, reply: Any) -> None:
        """Which id the other server gave for the recorded one; which session a new user has."""
        method, recorded = row["method"], row["reply"]
        if not (isinstance(recorded, list) and recorded[0] and isinstance(reply, list) and reply[0]):
            return
        kind = RETURNS.get(method)
        if method.endswith(".allocate"):
            kind = OBJECTS[method.split(".")[1]]
        if kind and isinstance(recorded[1], int):
            self._ids.learn(kind, recorded[1], reply[1])
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
            if isinstance(argument, int) and method.startswith("one.vm.") and kind_of(method, position) == "vm":
                return argument if self._ids.has("vm", argument) else None
        return None

    def _poll(self, vm_id: int, states: set[str], session: str | None = None) -> tuple[list[str], list[Any]]:
        """The states that were seen until one of `states` came, or time was up, and the last reply."""
        seen: list[str] = []
        give_up = time.monotonic() + self._wait
        while True:
            reply = self._proxy.one.vm.info(session or self._sessions["oneadmin"], vm_id)
            self.looks += 1
            name = _state_of(reply[1])
            if name not in seen[-1:]:
                seen.append(name)
            if name in states or time.monotonic() > give_up:
                return seen, reply
            time.sleep(0.002)


def _state_of(body: str) -> str:
    vm = ElementTree.fromstring(body)
    return state_name(State(int(vm.findtext("STATE", "0"))), LcmState(int(vm.findtext("LCM_STATE", "0"))))
