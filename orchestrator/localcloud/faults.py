"""Faults that tests inject at the wire and behind it. They are no part of OpenNebula."""

from __future__ import annotations

import http
import threading
import time
from dataclasses import dataclass
from typing import Any

from orchestrator.localcloud.replies import GARBLED

OURS = "mayfly."
"""Calls of this name are never at fault: by them faults come and go."""
_FOR_EVER = 1e9


class DropConnection(Exception):
    """Close the connection without a reply; or reset it, as when nothing listens any more."""

    def __init__(self, *, reset: bool = False) -> None:
        self.reset = reset
        super().__init__()


@dataclass(slots=True)
class _Fault:
    kind: str
    method: str
    times: int
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outage:
    """No call is done until `over` (of the monotonic clock): `hang` never answers, `reset` resets the connection,
    `http_error` answers with `status` and a page, `garbage` with bytes that are no XML."""

    how: str
    over: float
    status: int = 500


_OUTAGES = ("hang", "reset", "http_error", "garbage")
_NEEDED: dict[str, set[str]] = {
    "delay": {"seconds"},
    "fail": {"code", "text"},
    "hang": {"seconds"},
    "http_error": {"status"},
    "garble": {"how"},
    "delay_event": {"seconds"},
}


class Faults:
    """Each fault holds for the next `times` calls of a method (`*`: of any); `clear` takes all away.

    delay(method, seconds)      the reply comes that much later
    lose_reply(method)          the call is done, then the connection closes without a reply
    execute_twice(method)       the call is done twice, as when a proxy repeats it; the second reply is given
    drop_connection(method)     the connection closes before anything is done
    fail(method, code, text)    the call is refused with this code and text, and not done
    hang(method, seconds)       the call is taken and not done; after so long the connection closes without a reply
    http_error(method, status)  a page of HTML with this status comes, and the call is not done
    garble(method, how)         the call is done; bytes that are no XML, half of the reply, or a page of HTML come
    outage(how, seconds)        for so long no call is done: see Outage; 0 ends it
    stall_scheduler(stalled)    no pending VM is placed while it lasts
    wedge_scheduler(pending)    from so many pending VMs on, none is placed any more until the cloud starts again
    fall_back(action)           an accepted `one.vm.action` comes to nothing: the VM returns to the state it had
    stick(action)               an accepted one never ends: the VM stays in its SHUTDOWN state until `one.vm.recover`
    lose_event(state)           nobody is told that a VM came into this state (RUNNING, DONE; `*`: any)
    delay_event(state, seconds) it is told that much later
    repeat_event(state)         it is told twice
    """

    KINDS = frozenset(
        {"delay", "lose_reply", "execute_twice", "drop_connection", "fail", "hang", "http_error", "garble"}
        | {"fall_back", "stick", "lose_event", "delay_event", "repeat_event"}
    )
    STATES = frozenset({"outage", "stall_scheduler", "wedge_scheduler", "clear"})

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[_Fault] = []
        self._outage: Outage | None = None
        self.scheduler_stalled = False
        self.wedge_at = 0

    def _add(self, kind: str, method: str, times: int, **settings: Any) -> None:
        with self._lock:
            self._faults.append(_Fault(kind, method, times, settings))

    def delay(self, method: str, seconds: float, times: int = 1) -> None:
        self._add("delay", method, times, seconds=seconds)

    def lose_reply(self, method: str, times: int = 1) -> None:
        self._add("lose_reply", method, times)

    def execute_twice(self, method: str, times: int = 1) -> None:
        self._add("execute_twice", method, times)

    def drop_connection(self, method: str, times: int = 1) -> None:
        self._add("drop_connection", method, times)

    def fail(self, method: str, code: int, text: str, times: int = 1) -> None:
        self._add("fail", method, times, code=code, text=text)

    def hang(self, method: str, seconds: float, times: int = 1) -> None:
        self._add("hang", method, times, seconds=seconds)

    def http_error(self, method: str, status: int = 500, times: int = 1) -> None:
        self._add("http_error", method, times, status=_checked_status(status))

    def garble(self, method: str, how: str = "garbage", times: int = 1) -> None:
        """Raises ValueError."""
        if how not in GARBLED:
            raise ValueError(f"a reply is garbled by one of {', '.join(GARBLED)}, not {how}")
        self._add("garble", method, times, how=how)

    def fall_back(self, action: str, times: int = 1) -> None:
        self._add("fall_back", action, times)

    def stick(self, action: str, times: int = 1) -> None:
        self._add("stick", action, times)

    def lose_event(self, state: str, times: int = 1) -> None:
        self._add("lose_event", state, times)

    def delay_event(self, state: str, seconds: float, times: int = 1) -> None:
        """Raises ValueError."""
        self._add("delay_event", state, times, seconds=float(seconds))

    def repeat_event(self, state: str, times: int = 1) -> None:
        self._add("repeat_event", state, times)

    def outage(self, how: str, seconds: float = _FOR_EVER, status: int = 500) -> None:
        """Raises ValueError."""
        if how not in _OUTAGES:
            raise ValueError(f"an outage is one of {', '.join(_OUTAGES)}, not {how}")
        self._outage = Outage(how, time.monotonic() + seconds, _checked_status(status))

    def outage_now(self) -> Outage | None:
        """The one that lasts at this moment."""
        outage = self._outage
        return outage if outage is not None and time.monotonic() < outage.over else None

    def stall_scheduler(self, stalled: bool = True) -> None:
        self.scheduler_stalled = stalled

    def wedge_scheduler(self, pending: int) -> None:
        self.wedge_at = pending

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()
        self._outage = None
        self.scheduler_stalled = False
        self.wedge_at = 0

    def take(self, kind: str, method: str) -> dict[str, Any] | None:
        """Use up one matching fault: its settings, or None when there is none."""
        with self._lock:
            for fault in self._faults:
                if fault.kind == kind and (fault.method == method or fault.method == "*"):
                    fault.times -= 1
                    if fault.times <= 0:
                        self._faults.remove(fault)
                    return fault.settings
        return None

    def inject(self, order: dict[str, Any]) -> None:
        """One fault as a document: `{"kind": "delay", "method": "one.vm.info", "times": 1, "seconds": 2}`; also
        `{"kind": "stall_scheduler", "stalled": true}` and `{"kind": "clear"}`. Raises ValueError."""
        match order:
            case {"kind": str(kind), "method": str(method)} if kind in self.KINDS:
                settings = {key: value for key, value in order.items() if key not in ("kind", "method", "times")}
                if set(settings) != _NEEDED.get(kind, set()):
                    raise ValueError(f"a {kind} needs {sorted(_NEEDED.get(kind, set()))} and nothing else: {order}")
                getattr(self, kind)(method, **settings, times=int(order.get("times", 1)))
            case {"kind": "outage", "how": str(how)}:
                self.outage(how, float(order.get("seconds", _FOR_EVER)), int(order.get("status", 500)))
            case {"kind": "stall_scheduler"}:
                self.stall_scheduler(bool(order.get("stalled", True)))
            case {"kind": "wedge_scheduler", "pending": int(pending)}:
                self.wedge_scheduler(pending)
            case {"kind": "clear"}:
                self.clear()
            case _:
                raise ValueError(f"not a fault: {order}")


def _checked_status(status: int) -> int:
    """Raises ValueError."""
    return http.HTTPStatus(int(status)).value
