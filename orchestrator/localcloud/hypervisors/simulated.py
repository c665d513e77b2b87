"""A hypervisor without machines, for tests of thousands of VMs. An in-process server may answer as the guest.

Knobs: `boot_takes` and the like, `fail_next("boot")`, `hold("boot")`, `zombies`, `crash(vm_id)`, `power_off(vm_id)`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from orchestrator.localcloud.hypervisors import HypervisorError, MachineSpec, NicSpec, Power, machine_faults


class Closeable(Protocol):
    """What answers as a guest."""

    def close(self) -> None: ...


Guest = Callable[[MachineSpec], Closeable | None]


class SimulatedHypervisor:
    """`guest` is called at each boot with the machine's spec and may start something that listens on the NICs'
    addresses; it is closed when the machine goes off.

    prolog_takes, boot_takes, shutdown_takes, destroy_takes, epilog_takes, save_takes, plug_takes: seconds.
    ignores_power_button: the guest does not react to `shutdown`.
    zombies: `destroy` reports success and does nothing.
    """

    name = "simulated"
    saves_memory = True

    def __init__(self, guest: Guest | None = None, **takes: float) -> None:
        self._guest = guest
        self._lock = threading.Lock()
        self._machines: dict[int, MachineSpec] = {}
        self._guests: dict[int, Closeable] = {}
        self._failures: dict[str, list[str]] = {}
        self._switches_off_at: dict[int, float] = {}
        self._gates: dict[str, threading.Event] = {}
        self._paused: dict[int, str] = {}
        self.prolog_takes = self.boot_takes = self.shutdown_takes = 0.0
        self.destroy_takes = self.epilog_takes = self.save_takes = self.plug_takes = 0.0
        self.ignores_power_button = False
        self.zombies = False
        for name, seconds in takes.items():
            if not hasattr(self, name):
                raise TypeError(f"no such knob: {name}")
            setattr(self, name, seconds)

    # -- knobs
    # ----------------------------------------------------------------------------------------------------------

    def fail_next(self, step: str, text: str = "simulated failure", times: int = 1) -> None:
        """The next `times` calls of a method (`prolog`, `boot`, `shutdown`, `destroy`, `epilog`, `attach_nic`,
        `detach_nic`, `update_nic`, `save_disk`) raise HypervisorError."""
        with self._lock:
            self._failures.setdefault(step, []).extend([text] * times)

    def hold(self, step: str) -> None:
        """From now on that method does not come back, until `let_go`: a driver that does not answer."""
        with self._lock:
            self._gates.setdefault(step, threading.Event())

    def let_go(self, step: str) -> None:
        with self._lock:
            gate = self._gates.pop(step, None)
        if gate is not None:
            gate.set()

    def crash(self, vm_id: int) -> None:
        """The machine's process dies. The cloud is not told: it must find out."""
        self._off(vm_id)

    power_off = crash
    """The guest powers itself off, which looks the same from outside."""

    def pause(self, vm_id: int, because: str) -> None:
        """The machine stands still, as when the host's disk is full; "" and it goes on."""
        with self._lock:
            if because:
                self._paused[vm_id] = because
            else:
                self._paused.pop(vm_id, None)
            guest = self._guests.get(vm_id)
        if isinstance(guest, machine_faults.Reachable):
            guest.freeze(bool(because))

    def machines(self) -> dict[int, MachineSpec]:
        """Those that run now."""
        with self._lock:
            return dict(self._machines)

    def guests(self) -> dict[int, Closeable]:
        """Who answers as the machines that run now."""
        with self._lock:
            return dict(self._guests)

    def inject(self, order: dict[str, Any]) -> None:
        """A fault as a document: see `machine_faults`. Raises ValueError."""
        machine_faults.inject(self, order)

    def close(self) -> None:
        """End every guest, let every held method go."""
        for step in list(self._gates):
            self.let_go(step)
        for vm_id in list(self.machines()):
            self._off(vm_id)

    # -- the hypervisor
    # -------------------------------------------------------------------------------------------------

    def _begin(self, step: str, seconds: float = 0.0) -> None:
        with self._lock:
            gate = self._gates.get(step)
        if gate is not None:
            gate.wait()
        if seconds:
            time.sleep(seconds)
        with self._lock:
            waiting = self._failures.get(step)
            text = waiting.pop(0) if waiting else None
        if text is not None:
            raise HypervisorError(f"{step}: {text}")

    def _off(self, vm_id: int) -> None:
        with self._lock:
            self._machines.pop(vm_id, None)
            self._switches_off_at.pop(vm_id, None)
            self._paused.pop(vm_id, None)
            guest = self._guests.pop(vm_id, None)
        if guest is not None:
            guest.close()

    def prolog(self, spec: MachineSpec) -> None:
        self._begin("prolog", self.prolog_takes)
        for disk in spec.disks:
            if not disk.backing.exists():
                raise HypervisorError(f"no such file: {disk.backing}")
        spec.directory.mkdir(parents=True, exist_ok=True)
        lines = [f"{key}='{value}'" for key, value in sorted(spec.context.items())]
        (spec.directory / "context.sh").write_text("\n".join(lines) + "\n")

    def boot(self, spec: MachineSpec) -> str:
        """A machine that runs already goes on: whoever asks again did not live to hear so."""
        self._begin("boot", self.boot_takes)
        if self.power(spec.vm_id) == Power.RUNNING:
            return f"simulated-{spec.vm_id}"
        with (spec.directory / "console.log").open("a") as console:
            console.write(f"simulated machine {spec.vm_id} ({spec.name}) starts\n")
        with self._lock:
            self._machines[spec.vm_id] = spec
        try:
            guest = self._guest(spec) if self._guest is not None else None
        except HypervisorError:
            self._off(spec.vm_id)
            raise
        if guest is not None:
            with self._lock:
                self._guests[spec.vm_id] = guest
        return f"simulated-{spec.vm_id}"

    def shutdown(self, vm_id: int) -> None:
        self._begin("shutdown")
        if not self.ignores_power_button:
            with self._lock:
                self._switches_off_at[vm_id] = time.monotonic() + self.shutdown_takes

    def destroy(self, vm_id: int) -> None:
        self._begin("destroy", self.destroy_takes)
        if not self.zombies:
            self._off(vm_id)

    def power(self, vm_id: int) -> Power:
        with self._lock:
            due = self._switches_off_at.get(vm_id)
        if due is not None and time.monotonic() >= due:
            self._off(vm_id)
        with self._lock:
            return Power.RUNNING if vm_id in self._machines else Power.OFF

    def running(self, vm_ids: Collection[int]) -> set[int]:
        for vm_id in list(self._switches_off_at):
            self.power(vm_id)  # which takes notice of those that are off by now
        return self.machines().keys() & set(vm_ids)

    def paused(self, vm_ids: Collection[int]) -> dict[int, str]:
        with self._lock:
            return {vm_id: self._paused[vm_id] for vm_id in vm_ids if vm_id in self._paused}

    def epilog(self, vm_id: int, directory: Path) -> None:
        self._begin("epilog", self.epilog_takes)
        if directory.is_dir():
            for path in directory.iterdir():
                if path.name != "console.log":
                    path.unlink()

    def attach_nic(self, vm_id: int, nic: NicSpec) -> None:
        self._begin("attach_nic", self.plug_takes)
        self._rewire(vm_id, lambda nics: (*nics, nic))

    def detach_nic(self, vm_id: int, nic_id: int) -> None:
        self._begin("detach_nic", self.plug_takes)
        self._rewire(vm_id, lambda nics: tuple(nic for nic in nics if nic.nic_id != nic_id))

    def update_nic(self, vm_id: int, nic: NicSpec) -> None:
        self._begin("update_nic")
        self._rewire(vm_id, lambda nics: tuple(nic if other.nic_id == nic.nic_id else other for other in nics))

    def _rewire(self, vm_id: int, change: Callable[[tuple[NicSpec, ...]], tuple[NicSpec, ...]]) -> None:
        if self.power(vm_id) == Power.OFF:
            raise HypervisorError("the machine is off")
        with self._lock:
            spec = self._machines[vm_id]
            self._machines[vm_id] = spec = replace(spec, nics=change(spec.nics))
            guest = self._guests.get(vm_id)
        if isinstance(guest, machine_faults.Reachable):
            guest.rewire(spec)

    def save_disk(self, vm_id: int, disk_id: int, target: Path) -> None:
        """Without a machine there is nothing on the disk but where it came from."""
        self._begin("save_disk", self.save_takes)
        target.write_bytes(f"disk {disk_id} of simulated machine {vm_id}\n".encode())

    def monitoring(self, vm_id: int) -> dict[str, float]:
        with self._lock:
            spec = self._machines.get(vm_id)
        if spec is None:
            return {}
        return {"CPU": 1.0, "MEMORY": spec.memory_mb * 1024.0, "NETRX": 0.0, "NETTX": 0.0}
