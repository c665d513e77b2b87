"""What the local cloud needs of a hypervisor: one small interface, two things behind it.

`qemu` runs real machines; `simulated` runs none. Every method blocks, may be called from any thread, and is
idempotent where that is said. The cloud owns states, leases and images; a hypervisor owns processes and the files
in a machine's directory.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol, runtime_checkable


class HypervisorError(Exception):
    """The hypervisor could not do it; the text goes into the VM's ERROR attribute."""


class Power(StrEnum):
    """What the hypervisor sees of a machine: never a guess."""

    RUNNING = "running"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """One disk. `backing` is an image's file, never written; the machine writes to an overlay in its directory, unless
    `persistent`, when it writes to `backing` itself. `size_mb` grows the overlay (0: as the image)."""

    disk_id: int
    backing: Path
    format: str = "qcow2"
    persistent: bool = False
    size_mb: int = 0


@dataclass(frozen=True, slots=True)
class NicSpec:
    """One NIC. `address` is the lease, out of 127.0.0.0/8: TCP to `address:host_port` reaches the guest's port 22
    (empty: nothing does).
    `outbound` false: nothing that the guest sends leaves it (QEMU's restrict=on)."""

    nic_id: int
    address: str
    mac: str
    host_port: int
    outbound: bool


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """One machine, as the cloud wants it. `directory` is its own (overlays, context ISO, console log, sockets).
    `context` goes into context.sh on an ISO labelled CONTEXT. Memory in MB."""

    vm_id: int
    name: str
    uuid: str
    directory: Path
    cpus: int
    memory_mb: int
    disks: tuple[DiskSpec, ...]
    nics: tuple[NicSpec, ...]
    context: dict[str, str]
    kernel: Path | None = None
    initrd: Path | None = None
    kernel_cmdline: str = ""


class Hypervisor(Protocol):
    """The cloud's hypervisor."""

    name: str

    def prolog(self, spec: MachineSpec) -> None:
        """Lay out the machine's directory: overlays and the context ISO. Raises HypervisorError."""

    def boot(self, spec: MachineSpec) -> str:
        """Start it (from what prolog made, or what a power-off left) and return its deploy id. Returns when the machine
        process runs, which is long before its guest answers. Raises HypervisorError."""

    def shutdown(self, vm_id: int) -> None:
        """Press the power button (ACPI). Returns at once; `power` tells when it worked."""

    def destroy(self, vm_id: int) -> None:
        """End it now; "already gone" is success. When it returns, no process of the machine is left."""

    def power(self, vm_id: int) -> Power:
        """What the machine does now, from the process table: also for machines started by an earlier cloud process."""

    def running(self, vm_ids: Collection[int]) -> set[int]:
        """Those of them that run now, as `power` has it, at the price of one question."""

    def paused(self, vm_ids: Collection[int]) -> dict[int, str]:
        """Those of them that run and stand still, each with the hypervisor's reason; what does not say is left out."""

    def epilog(self, vm_id: int, directory: Path) -> None:
        """Delete what the machine left on disk, except its console log; "already gone" is success."""

    def attach_nic(self, vm_id: int, nic: NicSpec) -> None:
        """Plug a NIC into a running machine. Raises HypervisorError."""

    def detach_nic(self, vm_id: int, nic_id: int) -> None:
        """Unplug a NIC from a running machine. Raises HypervisorError."""

    def update_nic(self, vm_id: int, nic: NicSpec) -> None:
        """What may go out of a NIC of a running machine is as `nic` says now; "already so" is success. Raises
        HypervisorError, and it is as it was."""

    def save_disk(self, vm_id: int, disk_id: int, target: Path) -> None:
        """Write the disk, whole and without a backing file, to `target` (qcow2). Raises HypervisorError."""

    def monitoring(self, vm_id: int) -> dict[str, float]:
        """CPU (percent of a core), MEMORY (kB of the machine process), NETRX, NETTX (bytes); empty when off."""


@runtime_checkable
class Prepares(Protocol):
    """A hypervisor that can save a machine's memory beforehand, and then boots machines like it by restoring it."""

    def prepare(self, spec: MachineSpec) -> None:
        """Machines like this one will be wanted: see to it, in the background, that they start quickly. What makes one
        machine of several different (its directory, name, addresses, context) does not matter. Returns at once, does
        nothing twice, never raises."""

    def stop_preparing(self) -> None:
        """Leave off, at once."""
