"""What monitoring notices: machines that died, and figures."""

from __future__ import annotations

import threading
import time

from orchestrator.localcloud import capacity
from orchestrator.localcloud.cloud import Cloud, log, now
from orchestrator.localcloud.lifecycle import Lifecycle
from orchestrator.localcloud.model import Host, Lcm, Vm, VmState

_SAMPLES_KEPT = 20
_FIGURES = ("DISKRDBYTES", "DISKRDIOPS", "DISKWRBYTES", "DISKWRIOPS", "NETRX", "NETTX")


class Monitor:
    """A thread that looks at the machines again and again."""

    def __init__(self, cloud: Cloud, lifecycle: Lifecycle) -> None:
        self._cloud = cloud
        self._lifecycle = lifecycle
        self._dead_since: dict[int, float] = {}
        self._figures_at = 0.0
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        while not self._cloud.closing.wait(self._cloud.settings.monitor_interval):
            try:
                self.run_once()
            except Exception:
                log.exception("a monitoring pass failed")

    def run_once(self) -> None:
        """One pass: a machine that has been dead for long enough shows as POWEROFF, crash or not."""
        with self._cloud.lock:
            running = [
                vm.oid for vm in self._cloud.store.vms if _is_running(vm) and vm.oid not in self._cloud.rebooting
            ]
        figures_due = time.monotonic() >= self._figures_at
        if figures_due:
            self._figures_at = time.monotonic() + self._cloud.settings.figures_interval
        self._dead_since = {vm_id: since for vm_id, since in self._dead_since.items() if vm_id in running}
        alive = self._cloud.hypervisor.running(running) if running else set()
        for vm_id in running:
            if self._cloud.closing.is_set():
                return
            if vm_id not in alive:
                self._found_dead(vm_id)
            else:
                self._dead_since.pop(vm_id, None)
                if figures_due:
                    self._sample(vm_id)
        if figures_due:
            self._sample_hosts()

    def _found_dead(self, vm_id: int) -> None:
        since = self._dead_since.setdefault(vm_id, time.monotonic())
        if time.monotonic() - since < self._cloud.settings.crash_visible_after:
            return
        with self._cloud.lock:
            vm = self._cloud.store.vms.find(vm_id)
            if vm is not None and _is_running(vm) and vm_id not in self._cloud.rebooting:
                vm.history[-1].retime = now()
                self._lifecycle.move(vm, VmState.POWEROFF)

    def _sample(self, vm_id: int) -> None:
        figures = self._cloud.hypervisor.monitoring(vm_id)
        if not figures:
            return
        sample = dict.fromkeys(_FIGURES, "0") | {
            key: f"{value:.2f}".rstrip("0").rstrip(".") for key, value in figures.items()
        }
        sample |= {"ID": str(vm_id), "TIMESTAMP": str(now())}
        with self._cloud.lock:
            vm = self._cloud.store.vms.find(vm_id)
            if vm is not None and vm.state == VmState.ACTIVE:
                vm.samples = [*vm.samples[1 - _SAMPLES_KEPT :], sample]
                vm.last_poll = now()
                self._cloud.store.vms.save(vm)

    def _sample_hosts(self) -> None:
        with self._cloud.lock:
            for host in self._cloud.store.hosts:
                if host.state == capacity.ENABLED:
                    host.samples = [*host.samples[1 - _SAMPLES_KEPT :], host_sample(self._cloud, host)]
                    self._cloud.store.hosts.save(host)


def host_sample(cloud: Cloud, host: Host) -> dict[str, int]:
    """One monitoring record of a host, from what its VMs were given: CPU in percent of a core, memory in kB."""
    cpu, memory = capacity.free(cloud.store, host)
    return {
        "TIMESTAMP": now(),
        "FREE_CPU": cpu,
        "FREE_MEMORY": memory,
        "USED_CPU": host.cpu - cpu,
        "USED_MEMORY": host.memory - memory,
        "NETRX": 0,
        "NETTX": 0,
    }


def _is_running(vm: Vm) -> bool:
    return vm.state == VmState.ACTIVE and vm.lcm_state == Lcm.RUNNING
