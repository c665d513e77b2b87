"""What a saved state is of, in one word: machines with the same word can go on from the same state.

In it: QEMU's version, the whole command line but for what one machine has for itself, the files of image, kernel and
initrd (never written again once they are in a datastore: path, length and time of change tell them apart), and with KVM
the host's processor and kernel, which the guest has seen.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from orchestrator.localcloud.hypervisors import HypervisorError, MachineSpec
from orchestrator.localcloud.hypervisors.qemu_argv import Accelerator, Channels, Memory, machine_argv

_PROCESSOR = ("vendor_id", "cpu family", "model", "stepping", "microcode", "flags")


def why_no_state(spec: MachineSpec) -> str:
    """Why no state can be of this machine; empty when one can."""
    if spec.kernel is None:
        return "it boots from its disk"
    if not spec.context:
        return "it has no context"
    if any(disk.persistent for disk in spec.disks):
        return "a disk of it is written to itself"
    if [nic.nic_id for nic in spec.nics] != list(range(len(spec.nics))):
        return "its NICs are not numbered from 0"
    if len({disk.disk_id for disk in spec.disks}) != len(spec.disks):
        return "two disks of it have one number"
    if spec.context.get("GROW_ROOTFS") == "NO" and any(disk.size_mb for disk in spec.disks):
        return "its file system is not to be grown"
    return ""


def anonymous(spec: MachineSpec, directory: Path) -> MachineSpec:
    """The machine without what one has for itself, in this directory. Nothing reaches its NICs from outside."""
    return replace(
        spec,
        vm_id=0,
        name="state",
        uuid="00000000-0000-0000-0000-000000000000",
        directory=directory,
        nics=tuple(
            replace(nic, address="", mac=f"02:00:00:00:00:{nic.nic_id:02x}", host_port=0, outbound=False)
            for nic in spec.nics
        ),
        context={"MAYFLY": "WAIT"},
    )


def state_key(spec: MachineSpec, accelerator: Accelerator, qemu: str) -> str:
    """Raises HypervisorError when a file of the machine is missing."""
    nobody = anonymous(spec, Path("/"))
    argv = machine_argv(nobody, accelerator, Channels(0, 0), memory=Memory(Path("/memory"), shared=False))
    disks = [(_file(disk.backing), disk.format, disk.size_mb) for disk in spec.disks]
    files = [_file(path) for path in (spec.kernel, spec.initrd) if path is not None]
    parts = [qemu, argv, disks, files, *(_host() if accelerator == "kvm" else ())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _file(path: Path) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise HypervisorError(f"{path}: {error.strerror}") from error
    return str(path.absolute()), status.st_size, status.st_mtime_ns


@lru_cache(maxsize=1)
def _host() -> tuple[str, ...]:
    first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    told = dict(line.split(":", 1) for line in first if ":" in line)
    facts = {name.strip(): value.strip() for name, value in told.items()}
    return (platform.release(), *(facts.get(name, "") for name in _PROCESSOR))
