"""What is kept of DONE VMs: the newest ones' console logs and rows."""

from __future__ import annotations

import bisect
import shutil
import threading

from orchestrator.localcloud.cloud import Cloud
from orchestrator.localcloud.model import VmState


class Graveyard:
    """Knows whose console logs are gone already."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._lock = threading.Lock()
        self._done: list[int] | None = None

    def bury(self, vm_id: int) -> None:
        """A VM is DONE: delete the console logs, and later the rows, of those that are DONE longest."""
        settings, store = self._cloud.settings, self._cloud.store
        with self._lock, self._cloud.lock:
            if self._done is None:
                self._done = sorted(vm.oid for vm in store.vms if vm.state == VmState.DONE)
                with_log = set(self._done)
            else:
                with_log = {vm_id, *self._newest(settings.console_logs_kept)}
                bisect.insort(self._done, vm_id)
            without_log = with_log.difference(self._newest(settings.console_logs_kept))
            while len(self._done) > settings.done_vms_kept:
                store.vms.delete(self._done.pop(0))
        for each in without_log:
            shutil.rmtree(self._cloud.vm_directory(each), ignore_errors=True)

    def _newest(self, number: int) -> list[int]:
        done = self._done or []
        return done[max(0, len(done) - number) :]
