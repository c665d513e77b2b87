"""What is known of a machine, in its directory: enough for a later cloud process to find it again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from orchestrator.localcloud.hypervisors import HypervisorError, MachineSpec
from orchestrator.localcloud.hypervisors.disks import disk_format, disk_path
from orchestrator.localcloud.hypervisors.process import Process
from orchestrator.localcloud.hypervisors.qemu_argv import PIDFILE

_FILE = "machine.json"


@dataclass(frozen=True, slots=True)
class DiskFile:
    """Where a disk's data is."""

    path: str
    format: str


@dataclass(frozen=True, slots=True)
class Record:
    """`qemu` and `keeper` (of the console log) are None until the machine is booted; gone or not, they stay named.
    `outbound`: of each NIC, whether anything may go out of it."""

    disks: dict[int, DiskFile]
    qemu: Process | None = None
    keeper: Process | None = None
    outbound: dict[int, bool] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: MachineSpec) -> Record:
        directory = spec.directory.absolute()
        return cls(
            {disk.disk_id: DiskFile(str(disk_path(directory, disk)), disk_format(disk)) for disk in spec.disks},
            outbound={nic.nic_id: nic.outbound for nic in spec.nics},
        )

    @classmethod
    def read(cls, directory: Path) -> Record | None:
        """None when the directory holds no machine. A QEMU that was started just before its cloud process died is found
        by the pid file that it wrote itself."""
        try:
            found = json.loads((directory / _FILE).read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            raise HypervisorError(f"{directory / _FILE}: {error}") from error
        record = cls(
            {int(disk): DiskFile(**file) for disk, file in found["disks"].items()},
            Process(**found["qemu"]) if found["qemu"] else None,
            Process(**found["keeper"]) if found["keeper"] else None,
            {int(nic): bool(out) for nic, out in found.get("outbound", {}).items()},
        )
        return record if record.qemu is not None else replace(record, qemu=find_qemu(directory))

    def write(self, directory: Path) -> None:
        part = directory / f"{_FILE}.part"
        part.write_text(json.dumps(asdict(self)))
        part.replace(directory / _FILE)


def find_qemu(directory: Path) -> Process | None:
    """The process that wrote this directory's pid file, if it runs: its command line names that very file."""
    pidfile = directory.absolute() / PIDFILE
    try:
        process = Process.of(int(pidfile.read_text()))
        command = Path(f"/proc/{process.pid}/cmdline").read_bytes() if process else b""
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return None
    return process if str(pidfile).encode() in command.split(b"\0") else None
