"""The cloud's scheduler: gives pending VMs a host, in its own rhythm, and says why when it cannot."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from orchestrator.localcloud import capacity
from orchestrator.localcloud.bodies import vm_cpu_percent, vm_memory_kb
from orchestrator.localcloud.cloud import Cloud, log
from orchestrator.localcloud.lifecycle import Lifecycle
from orchestrator.localcloud.model import Host, Vm, VmState
from orchestrator.localcloud.requirements import RequirementsError, matches
from orchestrator.localcloud.template import text_of

SYSTEM_DS = 1


@dataclass(slots=True)
class _Room:
    """A host and what is left of it in this pass: CPU in percent of a core, memory in kB."""

    host: Host
    cpu: int
    memory: int


class Scheduler:
    """A thread that looks at the pending VMs again and again."""

    def __init__(self, cloud: Cloud, lifecycle: Lifecycle) -> None:
        self._cloud = cloud
        self._lifecycle = lifecycle
        self._wedged = False
        self._seen: dict[int, float] = {}
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        while not self._cloud.closing.wait(self._cloud.settings.scheduler_interval):
            try:
                self.run_once()
            except Exception:
                log.exception("a scheduler pass failed")

    def run_once(self) -> None:
        """One pass. Nothing happens while the window is not over, or when the scheduler is stalled or wedged."""
        settings = self._cloud.settings
        with self._cloud.lock:
            pending = [vm for vm in self._cloud.store.vms if vm.state == VmState.PENDING]
            clock = time.monotonic()
            self._seen = {vm.oid: self._seen.get(vm.oid, clock) for vm in pending}
            wedge = self._cloud.faults.wedge_at or settings.scheduler_wedge
            if wedge and len(pending) >= wedge:
                self._wedged = True
            if not pending or self._wedged or self._cloud.faults.scheduler_stalled:
                return
            oldest = clock - min(self._seen.values())
            if oldest < settings.scheduler_window and len(pending) < settings.scheduler_window_length:
                return
            hosts = [_Room(host, *capacity.free(self._cloud.store, host)) for host in self._cloud.store.hosts]
            for vm in pending:
                self._place(vm, hosts)

    def _place(self, vm: Vm, hosts: list[_Room]) -> None:
        reasons: dict[str, list[int]] = {}
        fitting: list[_Room] = []
        for room in hosts:
            if (reason := self._why_not(vm, room)) is None:
                fitting.append(room)
            else:
                reasons.setdefault(reason, []).append(room.host.oid)
        if not fitting:
            self._explain(vm, reasons)
            return
        chosen = max(fitting, key=lambda room: room.cpu)
        chosen.cpu -= vm_cpu_percent(vm)
        chosen.memory -= vm_memory_kb(vm)
        datastore = system_datastore(self._cloud, chosen.host)
        self._lifecycle.begin_deploy(vm, chosen.host, datastore, by_scheduler=True)

    def _why_not(self, vm: Vm, room: _Room) -> str | None:
        if room.host.state != capacity.ENABLED:
            return "[HOST] No existing hosts"
        if wanted := text_of(vm.user_template, "SCHED_REQUIREMENTS"):
            try:
                if not matches(wanted, capacity.attributes(self._cloud.store, room.host, (room.cpu, room.memory))):
                    return "No host meets SCHED_REQUIREMENTS"
            except RequirementsError as error:
                return f"Error evaluating SCHED_REQUIREMENTS: {error}"
        if vm_cpu_percent(vm) > room.cpu:
            return "[HOST] Not enough CPU on hosts"
        if vm_memory_kb(vm) > room.memory:
            return "[HOST] Not enough MEMORY on hosts"
        return None

    def _explain(self, vm: Vm, reasons: dict[str, list[int]]) -> None:
        """SCHED_MESSAGE, in the words of the original; written only when it changes."""
        texts = [
            f"{reason}: {','.join(str(host) for host in hosts)}" if reason.startswith("[HOST]") else reason
            for reason, hosts in reasons.items()
        ] or ["[HOST] No existing hosts: "]
        message = " ".join(texts)
        if not text_of(vm.user_template, "SCHED_MESSAGE").endswith(message):
            vm.user_template["SCHED_MESSAGE"] = [f"{time.ctime()}: {message}"]
            self._cloud.store.vms.save(vm)


def system_datastore(cloud: Cloud, host: Host) -> int:
    """A system datastore of the host's cluster."""
    return next(
        (item.oid for item in cloud.store.datastores if item.type == SYSTEM_DS and host.cluster_id in item.clusters), 0
    )
