"""From a machine's files to its running QEMU."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.localcloud.hypervisors import HypervisorError, MachineSpec, acceleration, console
from orchestrator.localcloud.hypervisors.launch import start_detached, wait_ready
from orchestrator.localcloud.hypervisors.process import Process
from orchestrator.localcloud.hypervisors.qemu_argv import Accelerator, Channels, Memory, machine_argv
from orchestrator.localcloud.hypervisors.qmp import listen


@dataclass(frozen=True, slots=True)
class Started:
    """A machine's processes. `keeper` is the console log's; None when it has ended already."""

    qemu: Process
    keeper: Process | None


def start_machine(
    spec: MachineSpec,
    accelerator: Accelerator,
    *,
    memory: Memory | None = None,
    restored: bool = False,
    before: Sequence[str] = (),
) -> Started:
    """Start QEMU on what is in the machine's directory, and return when it answers. `restored`: it waits for
    the state that it is to go on from. `before` is put before its command line. Raises HypervisorError with QEMU's own
    words, OSError."""
    directory = spec.directory.absolute()
    sandbox = acceleration.installed_qemu().sandbox
    listener = listen(directory)
    reading, writing = os.pipe()
    try:
        try:
            channels = Channels(listener.fileno(), writing)
            argv = machine_argv(spec, accelerator, channels, sandbox, memory, restored)
            started, errors = start_detached([*before, *argv], (channels.qmp, channels.console))
        finally:
            # Ours must be closed before we call: else nobody would refuse the call when QEMU is gone.
            listener.close()
            os.close(writing)
        try:
            # While QEMU sets itself up: both take some tens of milliseconds.
            keeper = _kept(directory, reading, started)
            return Started(wait_ready(directory, started, errors), keeper)
        finally:
            os.close(errors)
    finally:
        os.close(reading)


def _kept(directory: Path, reading: int, started: Process | None) -> Process | None:
    try:
        return console.keep_from(directory, reading)
    except HypervisorError:
        if started is not None:
            started.kill()
        raise
