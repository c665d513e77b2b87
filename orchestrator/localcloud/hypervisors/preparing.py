"""States made in the background, one at a time, so that machines of tasks are not slowed."""

from __future__ import annotations

import logging
import queue
import threading
from pathlib import Path

from orchestrator.localcloud.hypervisors import HypervisorError, MachineSpec, acceleration
from orchestrator.localcloud.hypervisors.saved_state import SavedState
from orchestrator.localcloud.hypervisors.state_key import state_key, why_no_state
from orchestrator.localcloud.hypervisors.state_making import Stopped, clear_unfinished, make_state
from orchestrator.localcloud.hypervisors.states import States

log = logging.getLogger(__name__)


class Preparing:
    """What is wanted is made by a thread that starts with the first wish. Nothing here raises: a machine without a
    state is booted."""

    def __init__(self, home: Path, states: States) -> None:
        self._home = home
        self._states = states
        self._wanted: queue.SimpleQueue[MachineSpec | None] = queue.SimpleQueue()
        self._under_way: set[str] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def fitting(self, spec: MachineSpec) -> SavedState | None:
        """A state that this machine can go on from. Tries nothing that takes time."""
        key = self._key(spec)
        return self._states.find(key) if key else None

    def want(self, spec: MachineSpec) -> None:
        """Let there be a state that machines like this one can go on from."""
        if not self._states.limit_bytes or why_no_state(spec):
            return
        key = self._key(spec)
        with self._lock:
            if self._stopping.is_set() or (key and (key in self._under_way or not self._due(key))):
                return
            if key:
                self._under_way.add(key)
            self._wanted.put(spec)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="states", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Leave off; what is half made goes."""
        with self._lock:
            self._stopping.set()
            thread = self._thread
        self._wanted.put(None)
        if thread is not None:
            thread.join()

    def _key(self, spec: MachineSpec) -> str:
        """Empty when there can be no state, and when it is not known yet whether KVM works here."""
        if not self._states.limit_bytes or why_no_state(spec) or spec.kernel is None:
            return ""
        try:
            found = acceleration.verdict(self._home, spec.kernel)
            return state_key(spec, found.accelerator, acceleration.installed_qemu().version) if found else ""
        except (HypervisorError, OSError) as error:
            log.debug("no state for machine %s: %s", spec.vm_id, error)
            return ""

    def _due(self, key: str) -> bool:
        return self._states.find(key) is None and not self._states.failed_lately(key)

    def _run(self) -> None:
        try:
            clear_unfinished(self._states)
            self._states.drop_foreign(acceleration.installed_qemu().version)
        except (HypervisorError, OSError) as error:
            log.warning("saved states: %s", error)
        while (spec := self._wanted.get()) is not None and not self._stopping.is_set():
            try:
                self._make(spec)
            except Stopped:
                return
            except Exception:
                log.exception("a saved state was not made")

    def _make(self, spec: MachineSpec) -> None:
        if spec.kernel is None:
            return
        key = ""
        try:
            accelerator = acceleration.probe(self._home, spec.kernel).accelerator
            key = state_key(spec, accelerator, acceleration.installed_qemu().version)
            if not self._due(key):
                return
            size = f"{spec.cpus} CPUs, {spec.memory_mb} MB"
            log.info("saved state %s is being made: %s", key, size)
            state = make_state(self._states, key, spec, accelerator, self._stopping)
            log.info("saved state %s is made: %s, %s, %.1f s", key, size, accelerator, state.seconds)
        except (HypervisorError, OSError) as error:
            log.warning("saved state %s was not made, machines boot as before: %s", key, error)
            if key:
                self._states.note_failure(key, str(error))
        finally:
            with self._lock:
                self._under_way.discard(key)
