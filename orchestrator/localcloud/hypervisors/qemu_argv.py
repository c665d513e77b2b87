"""The command line of one machine's QEMU. Pure.

Measured with QEMU 7.2 under TCG, two virtual CPUs, Debian's cloud kernel, from exec to the first process (s):
microvm 2.0, q35 2.25, pc 2.3 and 0.3 more to find the virtio devices. q35 is taken: microvm has no clock of its own but
4 ms jiffies, boots no disk, and plugs NICs only with a kernel argument. `-cpu qemu64` boots a tenth faster than `max`,
but has no SSE4 and no AVX, without which compiled packages of today end in SIGILL.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.localcloud.hypervisors import DiskSpec, MachineSpec, NicSpec
from orchestrator.localcloud.hypervisors.disks import disk_format, disk_path

Accelerator = Literal["kvm", "tcg"]

BINARY = "qemu-system-x86_64"
CONTEXT_ISO = "context.iso"
PIDFILE = "qemu.pid"
# Denied to QEMU itself: system calls that it does not need, in case that a guest takes it over.
SANDBOX = ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
# What a q35 board has that no guest of ours uses; each device costs the guest's kernel time.
MACHINE = "q35,usb=off,smbus=off,sata=off,vmport=off,i8042=off"
# Every NIC sits behind a port, so that it can be unplugged. The ports are functions of one slot: they cost nothing
# measurable at boot. A slot has eight functions.
PORTS = 8
_PORTS_SLOT = "0x10"


@dataclass(frozen=True, slots=True)
class Channels:
    """Descriptors that QEMU inherits: the listening QMP socket, and the pipe to the console log's keeper."""

    qmp: int
    console: int


@dataclass(frozen=True, slots=True)
class Memory:
    """A machine's memory as a file. `shared`: what the machine writes goes into the file. Else the file is only read,
    and a page that the machine writes is copied first: machines that begin with the same memory share the rest."""

    path: Path
    shared: bool


def acceleration_arguments(accelerator: Accelerator) -> list[str]:
    """`kvm`: the host's own CPU. `tcg`: emulated, a thread a virtual CPU, every feature that TCG knows."""
    match accelerator:
        case "kvm":
            return ["-accel", "kvm", "-cpu", "host"]
        case "tcg":
            return ["-accel", "tcg,thread=multi", "-cpu", "max"]


def base_arguments(cpus: int, memory_mb: int) -> list[str]:
    """A machine with nothing in it: no default devices, no screen, no configuration files of the host's."""
    return [
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", MACHINE, "-smp", str(cpus), "-m", f"{memory_mb}M"),
    ]


def machine_argv(
    spec: MachineSpec,
    accelerator: Accelerator,
    channels: Channels,
    sandbox: Sequence[str] = SANDBOX,
    memory: Memory | None = None,
    restored: bool = False,
) -> list[str]:
    """The whole command line; every path in it is absolute. `memory`: what backs it, if not QEMU's own. `restored`: it
    does not boot, and waits to be told where its state is."""
    directory = spec.directory.absolute()
    argv = [
        *(BINARY, "-name", f"one-{spec.vm_id}", "-uuid", spec.uuid),
        *("-pidfile", str(directory / PIDFILE)),
        *sandbox,
        *base_arguments(spec.cpus, spec.memory_mb),
        *acceleration_arguments(accelerator),
        *("-chardev", f"socket,id=qmp,fd={channels.qmp},server=on,wait=off", "-mon", "chardev=qmp,mode=control"),
        *("-add-fd", f"fd={channels.console},set=1", "-chardev", "file,id=console,path=/dev/fdset/1,append=on"),
        *("-serial", "chardev:console"),
        *("-object", "rng-builtin,id=rng0", "-device", "virtio-rng-pci,rng=rng0"),
    ]
    if spec.kernel is not None:
        argv += ["-kernel", str(spec.kernel.absolute())]
        argv += ["-initrd", str(spec.initrd.absolute())] if spec.initrd is not None else []
        argv += ["-append", spec.kernel_cmdline] if spec.kernel_cmdline else []
    for position, disk in enumerate(spec.disks):
        argv += _disk_arguments(directory, disk, position)
    argv += _context_arguments(directory / CONTEXT_ISO) if spec.context else []
    for port in range(PORTS):
        address = f"{_PORTS_SLOT}.{port:x}"
        argv += [
            "-device",
            f"pcie-root-port,id={port_name(port)},chassis={port},slot={port},multifunction=on,addr={address}",
        ]
    for port, nic in enumerate(spec.nics):
        argv += _nic_arguments(nic, port_name(port))
    argv += _memory_arguments(memory, spec.memory_mb) if memory is not None else []
    argv += ["-incoming", "defer"] if restored else []
    return argv


def port_name(port: int) -> str:
    """The id of a port for one NIC."""
    return f"port{port}"


def forwarding(nic: NicSpec) -> str:
    """TCP to the lease reaches the guest's sshd, and nothing else comes in."""
    return f"tcp:{nic.address}:{nic.host_port}-10.0.2.15:22"


def _disk_arguments(directory: Path, disk: DiskSpec, position: int) -> list[str]:
    # An overlay dies with its machine, so nothing is gained by waiting for the host's disk when the guest flushes.
    node = {
        "driver": disk_format(disk),
        "node-name": f"disk{disk.disk_id}",
        "discard": "unmap",
        "cache": {"no-flush": not disk.persistent},
        "file": {"driver": "file", "filename": str(disk_path(directory, disk).absolute()), "discard": "unmap"},
    }
    device = f"virtio-blk-pci,drive=disk{disk.disk_id},id=virtio-disk{disk.disk_id},bootindex={position + 1}"
    return ["-blockdev", json.dumps(node), "-device", device]


def _context_arguments(iso: Path) -> list[str]:
    node = {
        "driver": "raw",
        "node-name": "context",
        "read-only": True,
        "file": {"driver": "file", "filename": str(iso)},
    }
    return ["-blockdev", json.dumps(node), "-device", "virtio-blk-pci,drive=context,id=virtio-context"]


def _memory_arguments(memory: Memory, memory_mb: int) -> list[str]:
    backend = {
        "qom-type": "memory-backend-file",
        "id": "memory",
        "size": memory_mb << 20,
        "mem-path": str(memory.path.absolute()),
        "share": memory.shared,
    }
    return ["-object", json.dumps(backend), "-machine", "memory-backend=memory"]


def _nic_arguments(nic: NicSpec, port: str) -> list[str]:
    restrict = "off" if nic.outbound else "on"
    netdev = f"user,id=net{nic.nic_id},ipv6=off,restrict={restrict}"
    netdev += f",hostfwd={forwarding(nic)}" if nic.address else ""
    device = f"virtio-net-pci,netdev=net{nic.nic_id},id=nic{nic.nic_id},mac={nic.mac},bus={port},romfile="
    return ["-netdev", netdev, "-device", device]
