"""A saved state, made: a machine is booted to the point where it waits for its context, saved, and ended."""

from __future__ import annotations

import os
import shutil
import threading
import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime

from orchestrator.localcloud.hypervisors import HypervisorError, MachineSpec, acceleration
from orchestrator.localcloud.hypervisors.clone import WAIT_WORD, WAITS, console_says, save_devices, write_empty_medium
from orchestrator.localcloud.hypervisors.disks import create_overlay, disk_path, lay_out
from orchestrator.localcloud.hypervisors.launch import BEHIND_OTHERS
from orchestrator.localcloud.hypervisors.process import Process
from orchestrator.localcloud.hypervisors.qemu_argv import CONTEXT_ISO, Accelerator, Memory
from orchestrator.localcloud.hypervisors.qmp import Qmp
from orchestrator.localcloud.hypervisors.record import find_qemu
from orchestrator.localcloud.hypervisors.saved_state import (
    DEVICES,
    MEMORY,
    SavedState,
    base_name,
    overlay_name,
    seal_state,
)
from orchestrator.localcloud.hypervisors.start import Started, start_machine
from orchestrator.localcloud.hypervisors.state_key import anonymous
from orchestrator.localcloud.hypervisors.states import MAKING, States

_BOOT_SECONDS = 300.0
_SAVE_SECONDS = 120.0
_POLL_SECONDS = 0.1
_ROOM_BYTES = 256 << 20
"""What must be left on the disk beside a state."""


class Stopped(Exception):
    """The cloud ends, and leaves the state unmade."""


def make_state(
    states: States, key: str, spec: MachineSpec, accelerator: Accelerator, stopping: threading.Event
) -> SavedState:
    """Make the state of this machine, and put it in its place. Leaves no process and no file behind when it fails.
    Raises HypervisorError: no room, a guest that does not know how to wait; OSError, Stopped."""
    clear_unfinished(states)
    began = time.monotonic()
    work = states.folder / MAKING
    work.mkdir(parents=True, mode=0o700)
    try:
        _require_room(states, spec)
        disks = tuple(disk.disk_id for disk in spec.disks)
        _boot_and_save(replace(anonymous(spec, work), uuid=str(uuid.uuid4())), accelerator, stopping)
        for disk in spec.disks:
            disk_path(work, disk).rename(work / base_name(disk.disk_id))
            create_overlay(work / overlay_name(disk.disk_id), base_name(disk.disk_id), "qcow2")
        kept = {MEMORY, DEVICES, *map(base_name, disks), *map(overlay_name, disks)}
        for path in work.iterdir():
            if path.name not in kept:
                path.unlink()
        made = SavedState(
            folder=work,
            cpus=spec.cpus,
            memory_mb=spec.memory_mb,
            accelerator=accelerator,
            qemu=acceleration.installed_qemu().version,
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - began, 1),
            disks=disks,
        )
        seal_state(made)
        if (size := made.bytes_on_disk()) > states.limit_bytes:
            raise HypervisorError(f"it takes {size >> 20} MB, and saved states may take {states.limit_bytes >> 20} MB")
        states.take_in(made, key)
        return replace(made, folder=states.folder / key)
    finally:
        clear_unfinished(states)


def clear_unfinished(states: States) -> None:
    """End the machine and remove the files of a making that did not come to its end: an earlier process's, too."""
    work = states.folder / MAKING
    if work.is_dir():
        if (left := find_qemu(work)) is not None:
            left.kill()
        shutil.rmtree(work, ignore_errors=True)


def _require_room(states: States, spec: MachineSpec) -> None:
    free, needed = shutil.disk_usage(states.folder).free, (spec.memory_mb << 20) + _ROOM_BYTES
    if free < needed:
        raise HypervisorError(f"no room on the disk: {free >> 20} MB are free, {needed >> 20} MB may be needed")


def _boot_and_save(nobody: MachineSpec, accelerator: Accelerator, stopping: threading.Event) -> None:
    work = nobody.directory
    waiting = replace(nobody, kernel_cmdline=f"{nobody.kernel_cmdline} {WAIT_WORD}".strip())
    for disk in waiting.disks:
        lay_out(work, disk)
    write_empty_medium(work / CONTEXT_ISO)
    (work / MEMORY).touch(mode=0o600)
    os.truncate(work / MEMORY, waiting.memory_mb << 20)
    memory = Memory(work / MEMORY, shared=True)
    started = start_machine(waiting, accelerator, memory=memory, before=BEHIND_OTHERS)
    try:
        _wait_until_it_waits(nobody, started.qemu, stopping)
        with Qmp(work, seconds=_SAVE_SECONDS) as qmp:
            save_devices(qmp, work / DEVICES)
            qmp.execute("quit")
        if not started.qemu.wait(_SAVE_SECONDS):
            raise HypervisorError("the machine that was saved does not end")
    finally:
        _end(started)


def _wait_until_it_waits(nobody: MachineSpec, qemu: Process, stopping: threading.Event) -> None:
    deadline = time.monotonic() + _BOOT_SECONDS
    while WAITS not in (said := console_says(nobody.directory)):
        if stopping.wait(_POLL_SECONDS):
            raise Stopped
        if not qemu.alive() or time.monotonic() > deadline:
            last = (said.decode("utf-8", "replace").split("\n")[-2:] or [""])[0].strip()[:120]
            how = f"did not say within {_BOOT_SECONDS:g} s" if qemu.alive() else "ended before it said"
            raise HypervisorError(f"the machine {how} that it waits for a context; it said last: {last!r}")


def _end(started: Started) -> None:
    started.qemu.kill()
    if started.keeper is not None and not started.keeper.wait(2.0):
        started.keeper.kill()
