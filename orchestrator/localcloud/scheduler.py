"""The cloud's scheduler: gives pending VMs a host, in its own rhythm, and says why when it cannot."""

from __future__ import annotations

import threading
import time

from orchestrator.localcloud import capacity
from orchestrator.localcloud.bodies import vm_cpu_percent, vm_memory_kb
from orchestrator.localcloud.cloud import Cloud, log
from orchestrator.localcloud.lifecycle import Lifecycle
from orchestrator.localcloud.model import Host, Vm, VmState
from orchestrator.localcloud.requirements import RequirementsError, matches
from orchestrator.localcloud.template import text_of

SYSTEM_DS = 1


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
            if settings.scheduler_wedge and len(pending) >= settings.scheduler_wedge:
                self._wedged = True
            if not pending or self._wedged or self._cloud.faults.scheduler_stalled:
                return
            oldest = clock - min(self._seen.values())
            if oldest < settings.scheduler_window and len(pending) < settings.scheduler_window_length:
                return
            for vm in pending:
                self._place(vm)

    def _place(self, vm: Vm) -> None:
        hosts = list(self._cloud.store.hosts)
        reasons: dict[str, list[int]] = {}
        fitting: list[tuple[int, Host]] = []
        for host in hosts:
            if (reason := self._why_not(vm, host)) is None:
                fitting.append((capacity.free(self._cloud.store, host)[0], host))
            else:
                reasons.setdefault(reason, []).append(host.oid)
        if not fitting:
            self._explain(vm, reasons)
            return
        host = max(fitting, key=lambda pair: pair[0])[1]
        self._lifecycle.begin_deploy(vm, host, system_datastore(self._cloud, host), by_scheduler=True)

    def _why_not(self, vm: Vm, host: Host) -> str | None:
        if host.state != capacity.ENABLED:
            return "[HOST] No existing hosts"
        wanted = text_of(vm.user_template, "SCHED_REQUIREMENTS")
        try:
            if not matches(wanted, capacity.attributes(self._cloud.store, host)):
                return "No host meets SCHED_REQUIREMENTS"
        except RequirementsError as error:
            return f"Error evaluating SCHED_REQUIREMENTS: {error}"
        cpu, memory = capacity.free(self._cloud.store, host)
        if vm_cpu_percent(vm) > cpu:
            return "[HOST] Not enough CPU on hosts"
        if vm_memory_kb(vm) > memory:
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
