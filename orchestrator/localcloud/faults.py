"""Faults that tests inject at the wire and behind it. They are no part of OpenNebula."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any


class DropConnection(Exception):
    """Close the connection without a reply."""


@dataclass(slots=True)
class _Fault:
    kind: str
    method: str
    times: int
    settings: dict[str, Any]


_NEEDED = {"delay": {"seconds"}, "fail": {"code", "text"}}


class Faults:
    """Each fault holds for the next `times` calls of a method (`*`: of any); `clear` takes all away.

    delay(method, seconds)      the reply comes that much later
    lose_reply(method)          the call is done, then the connection closes without a reply
    execute_twice(method)       the call is done twice, as when a proxy repeats it; the second reply is given
    drop_connection(method)     the connection closes before anything is done
    fail(method, code, text)    the call is refused with this code and text, and not done
    stall_scheduler(stalled)    no pending VM is placed while it lasts
    fall_back(action)           an accepted `one.vm.action` comes to nothing: the VM returns to the state it had
    """

    KINDS = frozenset({"delay", "lose_reply", "execute_twice", "drop_connection", "fail", "fall_back"})

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[_Fault] = []
        self.scheduler_stalled = False

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

    def fall_back(self, action: str, times: int = 1) -> None:
        self._add("fall_back", action, times)

    def stall_scheduler(self, stalled: bool = True) -> None:
        self.scheduler_stalled = stalled

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()
        self.scheduler_stalled = False

    def take(self, kind: str, method: str) -> dict[str, Any] | None:
        """Use up one matching fault: its settings, or None when there is none."""
        with self._lock:
            for fault in self._faults:
                if fault.kind == kind and fault.method in (method, "*"):
                    fault.times -= 1
                    if fault.times <= 0:
                        self._faults.remove(fault)
                    return fault.settings
        return None

    def inject(self, order: dict[str, Any]) -> None:
        """One fault as a document: `{"kind": "delay", "method": "one.vm.info", "times": 1, "seconds": 2}`; also
        `{"kind": "stall_scheduler", "stalled": true}` and `{"kind": "clear"}`. Raises ValueError."""
        match order:
            case {"kind": "clear"}:
                self.clear()
            case {"kind": "stall_scheduler"}:
                self.stall_scheduler(bool(order.get("stalled", True)))
            case {"kind": str(kind), "method": str(method)} if kind in self.KINDS:
                settings = {key: value for key, value in order.items() if key not in ("kind", "method", "times")}
                if set(settings) != _NEEDED.get(kind, set()):
                    raise ValueError(f"a {kind} needs {sorted(_NEEDED.get(kind, set()))} and nothing else: {order}")
                self._add(kind, method, int(order.get("times", 1)), **settings)
            case _:
                raise ValueError(f"not a fault: {order}")
