"""What every call of the cloud works on: the store under one lock, the hypervisor, timers and workers."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.localcloud.faults import Faults
from orchestrator.localcloud.hypervisors import Hypervisor, Prepares
from orchestrator.localcloud.knobs import CloudSettings
from orchestrator.localcloud.model import Vm
from orchestrator.localcloud.store import Store

if TYPE_CHECKING:
    from orchestrator.localcloud.lifecycle import Lifecycle

log = logging.getLogger(__name__)

Job = Callable[[], None]
_FLUSH_SECONDS = 0.03


class Timers:
    """Runs jobs later, on the workers; forgets them when closed."""

    def __init__(self, workers: ThreadPoolExecutor) -> None:
        self._workers = workers
        self._queue: list[tuple[float, int, Job]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="timers", daemon=True)
        self._thread.start()

    def after(self, delay: float, job: Job) -> None:
        with self._changed:
            if not self._closed:
                heapq.heappush(self._queue, (time.monotonic() + delay, next(self._numbers), job))
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                wait = self._queue[0][0] - time.monotonic() if self._queue else None
                if wait is None or wait > 0:
                    self._changed.wait(wait)
                    continue
                job = heapq.heappop(self._queue)[2]
                self._workers.submit(_logged, job)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._changed.notify()
        self._thread.join()


def _logged(job: Job) -> None:
    try:
        job()
    except Exception:
        log.exception("a job of the cloud failed")


class Cloud:
    """`lock` guards the store and everything in it; nothing slow happens under it. `home` is the cloud's directory."""

    def __init__(self, home: Path, hypervisor: Hypervisor, settings: CloudSettings, faults: Faults) -> None:
        self.home = home
        self.hypervisor = hypervisor
        self.settings = settings
        self.faults = faults
        self.lock = threading.RLock()
        self.store = Store(home / "cloud.db")
        self.workers = ThreadPoolExecutor(settings.driver_threads, thread_name_prefix="driver")
        # Timers have workers of their own, so that they keep time while every driver is busy.
        self._timer_workers = ThreadPoolExecutor(4, thread_name_prefix="timer")
        self.timers = Timers(self._timer_workers)
        self.closing = threading.Event()
        self._flusher = threading.Thread(target=self._flush, name="flusher", daemon=True)
        self._flusher.start()
        self.calls: Counter[str] = Counter()
        """How often each call came since the start, also those that a fault kept from being done."""
        self.rebooting: set[int] = set()
        """VMs whose machine may be off just now although they are RUNNING."""
        self.life: Lifecycle
        """Moves VMs; it sets itself here."""
        self.announce: Callable[[Vm], None] = lambda vm: None
        """Called under the lock with each VM that is in a new state; who publishes that sets itself here."""

    def in_background(self, job: Job) -> None:
        """Do something slow, on a driver thread."""
        if not self.closing.is_set():
            self.workers.submit(_logged, job)

    def after(self, delay: float, job: Job) -> None:
        """Do something short later; something slow must go on to `in_background`."""
        self.timers.after(delay, job)

    def soon(self, job: Job) -> None:
        """Do what was accepted just now: not at once, as the real one's queues do not either."""
        self.after(random.uniform(*self.settings.visible_delay), job)

    def _flush(self) -> None:
        """What drivers and timers saved, soon after they did."""
        while not self.closing.wait(_FLUSH_SECONDS):
            try:
                with self.lock:
                    self.store.flush()
            except sqlite3.Error as error:
                log.error("the cloud's state is not written: %s", error)

    @property
    def vms_directory(self) -> Path:
        return self.home / "vms"

    def vm_directory(self, vm_id: int) -> Path:
        return self.vms_directory / str(vm_id)

    def datastore_directory(self, datastore_id: int) -> Path:
        return self.home / "datastores" / str(datastore_id)

    def close(self) -> None:
        """Stop working; machines keep running. Waits for what drivers are doing just now."""
        self.closing.set()
        if isinstance(self.hypervisor, Prepares):
            self.hypervisor.stop_preparing()
        self.timers.close()
        self._timer_workers.shutdown(wait=True, cancel_futures=True)
        self.workers.shutdown(wait=True, cancel_futures=True)
        self._flusher.join()
        with self.lock, contextlib.suppress(sqlite3.ProgrammingError):  # it may be closed already
            self.store.flush()
        self.store.close()


def now() -> int:
    """Unix seconds, as every time in the API."""
    return int(time.time())
