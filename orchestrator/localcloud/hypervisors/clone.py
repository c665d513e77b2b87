"""A machine that goes on from a saved state: its files, and the moment in which it becomes itself.

The guest's side is images/*/files/usr/sbin/mayfly-clone, where the form of the medium is described.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from pathlib import Path

from orchestrator.localcloud.hypervisors import HypervisorError, MachineSpec
from orchestrator.localcloud.hypervisors.console import LOG
from orchestrator.localcloud.hypervisors.context_iso import write_context_iso
from orchestrator.localcloud.hypervisors.disks import disk_path
from orchestrator.localcloud.hypervisors.process import Process
from orchestrator.localcloud.hypervisors.qemu_argv import CONTEXT_ISO
from orchestrator.localcloud.hypervisors.qmp import Qmp
from orchestrator.localcloud.hypervisors.saved_state import DEVICES, MEMORY, SavedState, base_name, overlay_name

WAIT_WORD = "mayfly.wait"
"""On the kernel's command line: this machine is to wait, and have no identity."""
WAITS, GOES_ON = b"mayfly-clone: waits", b"mayfly-clone: goes on"
"""What the guest says on its console when it waits for its context, and when it has taken it."""
MEDIUM_BYTES = 1 << 20
"""The guest has seen how large the medium is, so that each has the same size."""
_DEVICES_FILE = "devices"
_SEED_BYTES = 64
_RESTORE_SECONDS = 30.0
_BECOME_SECONDS = 20.0
_POLL_SECONDS = 0.004


def lay_out_clone(state: SavedState, spec: MachineSpec) -> None:
    """The machine's files, so that `directory` needs the state's folder no more. Raises StateBroken when the state is
    not as it was saved, HypervisorError when this context does not fit, OSError."""
    state.require_whole()
    directory = spec.directory
    for disk in spec.disks:
        link(state.folder / base_name(disk.disk_id), directory / base_name(disk.disk_id))
        shutil.copyfile(state.folder / overlay_name(disk.disk_id), disk_path(directory, disk))
    write_clone_medium(directory / CONTEXT_ISO, spec.context)
    link(state.folder / DEVICES, directory / DEVICES)
    link(state.folder / MEMORY, directory / MEMORY)  # the last: it is what tells that there is a state to go on from
    state.note_use()


def link(source: Path, target: Path) -> None:
    """A name of its own for the file, so that it stays when the state is removed."""
    target.unlink(missing_ok=True)
    os.link(source, target)


def write_empty_medium(path: Path) -> None:
    """What is in the drive while the guest waits."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    os.truncate(path, MEDIUM_BYTES)


def write_clone_medium(path: Path, context: dict[str, str]) -> None:
    """The context ISO with the line for mayfly-clone in its first block. Raises HypervisorError."""
    extent = write_context_iso(path, context)
    if path.stat().st_size > MEDIUM_BYTES:
        raise HypervisorError(f"the context is larger than {MEDIUM_BYTES} bytes")
    os.truncate(path, MEDIUM_BYTES)
    line = f"mayfly-clone 1 {secrets.token_hex(_SEED_BYTES)} {time.time():.3f} {extent.offset} {extent.length}\n"
    with path.open("r+b") as medium:
        medium.write(line.encode())


def forget_state(directory: Path) -> None:
    """There is no state to go on from here: the next start of the machine is a boot."""
    for name in (MEMORY, DEVICES):
        (directory / name).unlink(missing_ok=True)


def save_devices(qmp: Qmp, target: Path) -> None:
    """All of the machine but its memory, which is in a shared file, to a file. The machine stands still from then on.
    Raises HypervisorError."""
    _without_memory(qmp)
    qmp.execute("migrate-set-parameters", max_bandwidth=1 << 40)
    with target.open("wb") as devices:
        qmp.give_file(_DEVICES_FILE, devices.fileno())
    qmp.execute("migrate", uri=f"fd:{_DEVICES_FILE}")
    while (found := qmp.execute("query-migrate"))["status"] not in ("completed", "failed", "cancelled"):
        time.sleep(_POLL_SECONDS)
    if found["status"] != "completed":
        raise HypervisorError(f"the machine was not saved: {found.get('error-desc', found['status'])}")


def _without_memory(qmp: Qmp) -> None:
    # The memory is in a shared file when it is saved, and in a private copy of it when it is restored: so the stream of
    # the first has none, and the second takes none.
    qmp.execute("migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": True}])


def restore_devices(directory: Path) -> None:
    """Have QEMU read the state from the machine's directory; return when the machine runs. Raises HypervisorError."""
    with Qmp(directory, seconds=_RESTORE_SECONDS) as qmp:
        _without_memory(qmp)
        with (directory / DEVICES).open("rb") as devices:
            qmp.give_file(_DEVICES_FILE, devices.fileno())
        qmp.execute("migrate-incoming", uri=f"fd:{_DEVICES_FILE}")
        while (status := qmp.execute("query-status")["status"]) == "inmigrate":
            time.sleep(_POLL_SECONDS)
    if status != "running":
        raise HypervisorError(f"after the restore the machine is {status}")


def wait_become(directory: Path, qemu: Process) -> None:
    """Return when the guest has taken its context: from then on it answers at its address. Raises HypervisorError."""
    deadline = time.monotonic() + _BECOME_SECONDS
    while GOES_ON not in console_says(directory):
        if not qemu.alive():
            raise HypervisorError("the clone ended before it had read its context")
        if time.monotonic() > deadline:
            raise HypervisorError(f"the clone did not take its context within {_BECOME_SECONDS:g} s")
        time.sleep(_POLL_SECONDS)


def console_says(directory: Path) -> bytes:
    """What the machine printed since it was started."""
    try:
        return (directory / LOG).read_bytes()
    except FileNotFoundError:
        return b""
