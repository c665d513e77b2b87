"""Who works on a machine just now."""

from __future__ import annotations

import threading


class MachineLocks:
    """One lock per machine, so that no two drivers work on the same one."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[int, threading.Lock] = {}

    def of(self, vm_id: int) -> threading.Lock:
        with self._guard:
            return self._locks.setdefault(vm_id, threading.Lock())

    def forget(self, vm_id: int) -> None:
        with self._guard:
            self._locks.pop(vm_id, None)
