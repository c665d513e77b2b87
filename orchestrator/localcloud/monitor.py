"""What monitoring notices: machines that died, and figures."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection

from orchestrator.localcloud import capacity, reach
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
        self._silent_since: dict[int, float] = {}
        """Hosts, by id."""
        self._unheard_since: dict[int, float] = {}
        """VMs that show as RUNNING on such hosts."""
        self._figures_at = 0.0
        self._paused: dict[int, str] = {}
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
        """One pass: a machine that has been dead for long enough shows as POWEROFF, crash or not; one whose host has
        been silent for long enough as UNKNOWN."""
        with self._cloud.lock:
            running = self._look_at_hosts()
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
                self._found_alive(vm_id)
                if figures_due:
                    self._sample(vm_id)
        if figures_due:
            self._tell_paused(alive)
            self._sample_hosts()

    def _tell_paused(self, vm_ids: Collection[int]) -> None:
        """A machine that its hypervisor stopped is RUNNING all the same; ERROR says why it stands still."""
        paused = self._cloud.hypervisor.paused(vm_ids) if vm_ids else {}
        for vm_id in paused.keys() - self._paused.keys():
            why = f"Paused by {self._cloud.hypervisor.name}: {paused[vm_id]}"
            log.warning("vm %s: %s", vm_id, why)
            with self._cloud.lock:
                if (vm := self._cloud.store.vms.find(vm_id)) is not None and _is_up(vm):
                    vm.user_template["ERROR"] = [f"{time.ctime()}: {why}"]
                    self._cloud.store.vms.save(vm)
        self._paused = paused

    def _look_at_hosts(self) -> list[int]:
        """Under the lock: take notice of hosts that are gone, or back; the VMs whose machines are to be looked at."""
        clock = time.monotonic()
        silent = {host.oid for host in self._cloud.store.hosts if host.unreachable}
        self._silent_since = {oid: self._silent_since.get(oid, clock) for oid in silent}
        for host in self._cloud.store.hosts:
            reach.notice(self._cloud, host, clock - self._silent_since.get(host.oid, clock))
        seen: list[int] = []
        unheard: dict[int, float] = {}
        for vm in self._cloud.store.vms:
            if not _is_up(vm) or vm.oid in self._cloud.rebooting:
                continue
            if vm.history[-1].hid not in silent:
                seen.append(vm.oid)
            elif vm.lcm_state == Lcm.RUNNING:
                unheard[vm.oid] = self._unheard_since.get(vm.oid, clock)
                if clock - unheard[vm.oid] >= self._cloud.settings.unknown_after:
                    self._lifecycle.move(vm, VmState.ACTIVE, Lcm.UNKNOWN)
        self._unheard_since = unheard
        return seen

    def _found_alive(self, vm_id: int) -> None:
        self._dead_since.pop(vm_id, None)
        with self._cloud.lock:
            if (vm := self._lifecycle.still(vm_id, Lcm.UNKNOWN)) is not None:
                self._lifecycle.move(vm, VmState.ACTIVE, Lcm.RUNNING)

    def _found_dead(self, vm_id: int) -> None:
        since = self._dead_since.setdefault(vm_id, time.monotonic())
        if time.monotonic() - since < self._cloud.settings.crash_visible_after:
            return
        with self._cloud.lock:
            vm = self._cloud.store.vms.find(vm_id)
            if vm is not None and _is_up(vm) and vm_id not in self._cloud.rebooting:
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
                self._cloud.store.vms.touch(vm_id)

    def _sample_hosts(self) -> None:
        with self._cloud.lock:
            for host in self._cloud.store.hosts:
                if host.state == capacity.ENABLED:
                    host.samples = [*host.samples[1 - _SAMPLES_KEPT :], host_sample(self._cloud, host)]
                    self._cloud.store.hosts.touch(host.oid)


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


def _is_up(vm: Vm) -> bool:
    return vm.state == VmState.ACTIVE and vm.lcm_state in (Lcm.RUNNING, Lcm.UNKNOWN)
