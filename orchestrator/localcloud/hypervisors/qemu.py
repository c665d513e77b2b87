"""Real machines: one detached QEMU each, which outlives the cloud's process."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from orchestrator.localcloud.hypervisors import HypervisorError, MachineSpec, NicSpec, Power, acceleration, console
from orchestrator.localcloud.hypervisors.clone import forget_state, lay_out_clone, restore_devices, wait_become
from orchestrator.localcloud.hypervisors.context_iso import write_context_iso
from orchestrator.localcloud.hypervisors.disks import copy_whole, lay_out
from orchestrator.localcloud.hypervisors.hotplug import plug_nic, require_free, unplug_nic
from orchestrator.localcloud.hypervisors.live_copy import copy_running
from orchestrator.localcloud.hypervisors.paused import why_paused
from orchestrator.localcloud.hypervisors.preparing import Preparing
from orchestrator.localcloud.hypervisors.process import Process
from orchestrator.localcloud.hypervisors.qemu_argv import CONTEXT_ISO, PIDFILE, PORTS, Accelerator, Memory
from orchestrator.localcloud.hypervisors.qmp import Qmp
from orchestrator.localcloud.hypervisors.record import Record
from orchestrator.localcloud.hypervisors.saved_state import MEMORY, StateBroken
from orchestrator.localcloud.hypervisors.start import Started, start_machine
from orchestrator.localcloud.hypervisors.states import States

log = logging.getLogger(__name__)

_QUIT_SECONDS = 5.0
_ASK_SECONDS = 1.0
# The console log's keeper ends by itself when QEMU has, and writes what is still in the pipe.
_DRAIN_SECONDS = 2.0
_KEPT = (console.LOG, console.OLDER)


class QemuHypervisor:
    """`home` is the cloud's: machines live in `home/vms/ID`, the verdict on KVM and saved states beside them. What is
    said of a machine is read from its directory and the process table, so any number of these, one after the other, see
    the same. `states_mb`: what saved states may take on the disk; with 0 there are none, and every machine is booted.

    A guest that reboots is reset and goes on, as OpenNebula's guests do; one that powers itself off ends its QEMU."""

    name = "qemu"

    def __init__(self, home: Path, states_mb: int = 0) -> None:
        self._home = home
        self._states = States(home, states_mb)
        self._preparing = Preparing(home, self._states)
        self._guard = threading.Lock()
        self._locks: defaultdict[int, threading.RLock] = defaultdict(threading.RLock)
        self._cpu_seen: dict[Process, tuple[float, float]] = {}

    def prepare(self, spec: MachineSpec) -> None:
        """Make a saved state for machines like this one, in the background, if there is none."""
        self._preparing.want(spec)

    def stop_preparing(self) -> None:
        """Leave off; what is half made goes."""
        self._preparing.stop()

    def prolog(self, spec: MachineSpec) -> None:
        """Lay out the machine's directory anew: overlays and the context ISO, and when there is a saved state of such a
        machine, that. Raises HypervisorError."""
        with self._alone(spec.vm_id) as directory:
            _require_place(spec, directory)
            if self._running(spec.vm_id):
                raise HypervisorError(f"machine {spec.vm_id} runs already")
            try:
                directory.mkdir(parents=True, exist_ok=True, mode=0o700)
                if not self._lay_out_clone(spec):
                    _lay_out(spec)
                Record.of(spec).write(directory)
            except OSError as error:
                raise HypervisorError(f"{error.filename or directory}: {error.strerror}") from error

    def boot(self, spec: MachineSpec) -> str:
        """Start QEMU and return `one-ID`: of a clone when it has taken its context. The first boot of a kernel on this
        host tries KVM, which can take ten seconds. A state that cannot be restored is removed, and the machine booted.
        Raises HypervisorError with QEMU's own words: an address in use, a missing file, no memory."""
        with self._alone(spec.vm_id) as directory:
            _require_place(spec, directory)
            if self._running(spec.vm_id):
                raise HypervisorError(f"machine {spec.vm_id} runs already")
            if len(spec.nics) > PORTS:
                raise HypervisorError(f"machine {spec.vm_id}: {len(spec.nics)} NICs, {PORTS} is the most")
            for nic in spec.nics:
                require_free(nic)
            for path in (spec.kernel, spec.initrd):
                if path is not None and not path.is_file():
                    raise HypervisorError(f"the file {path} is missing")
            record = Record.of(spec)
            try:
                # Without a process first: should we die half-way, the pid file tells what runs, not an older record.
                record.write(directory)
                (directory / PIDFILE).unlink(missing_ok=True)
                started = self._restored(spec) or self._booted(spec)
                replace(record, qemu=started.qemu, keeper=started.keeper).write(directory)
            except OSError as error:
                raise HypervisorError(f"{error.filename or directory}: {error.strerror}") from error
            return f"one-{spec.vm_id}"

    def shutdown(self, vm_id: int) -> None:
        """Press the power button; nothing happens to a machine that is off. Raises HypervisorError when QEMU does not
        answer."""
        if self._running(vm_id):
            with Qmp(self._directory(vm_id)) as qmp:
                qmp.execute("system_powerdown")

    def destroy(self, vm_id: int) -> None:
        """End it: by QEMU's own `quit`, which flushes its disks, else SIGKILL. Raises HypervisorError only when a
        killed process does not go away."""
        with self._alone(vm_id) as directory:
            record = Record.read(directory)
            if record is None:
                return
            if record.qemu is not None and record.qemu.alive():
                with suppress(HypervisorError), Qmp(directory, seconds=_QUIT_SECONDS) as qmp:
                    qmp.execute("quit")
                    record.qemu.wait(_QUIT_SECONDS)
                _kill(record.qemu, vm_id)
                with self._guard:
                    self._cpu_seen.pop(record.qemu, None)
            if record.keeper is not None and not record.keeper.wait(_DRAIN_SECONDS):
                _kill(record.keeper, vm_id)

    def power(self, vm_id: int) -> Power:
        """From the process table."""
        return Power.RUNNING if self._running(vm_id) else Power.OFF

    def running(self, vm_ids: Collection[int]) -> set[int]:
        """From the process table."""
        return {vm_id for vm_id in vm_ids if self._running(vm_id)}

    def paused(self, vm_ids: Collection[int]) -> dict[int, str]:
        """As each QEMU says; one that is busy with something else is not asked again before the next time."""
        found: dict[int, str] = {}
        for vm_id in vm_ids:
            with suppress(HypervisorError), Qmp(self._directory(vm_id), seconds=_ASK_SECONDS) as qmp:
                if why := why_paused(qmp):
                    found[vm_id] = why
        return found

    def epilog(self, vm_id: int, directory: Path) -> None:
        """Delete all but the console log. Raises HypervisorError for a machine that runs."""
        with self._alone(vm_id):
            if not directory.is_dir():
                return
            if self._running(vm_id):
                raise HypervisorError(f"machine {vm_id} still runs")
            for path in directory.iterdir():
                if path.name in _KEPT:
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)

    def attach_nic(self, vm_id: int, nic: NicSpec) -> None:
        """Plug it into a free port; the guest sees it as soon as its kernel looks. Raises HypervisorError."""
        with self._alone(vm_id) as directory, self._talk(vm_id) as qmp:
            plug_nic(qmp, nic)
            if (record := Record.read(directory)) is not None:
                replace(record, outbound={**record.outbound, nic.nic_id: nic.outbound}).write(directory)

    def detach_nic(self, vm_id: int, nic_id: int) -> None:
        """Cut it off and unplug it. Raises HypervisorError, too when the guest does not let go of the device within
        some seconds: its traffic is cut by then all the same."""
        with self._alone(vm_id), self._talk(vm_id) as qmp:
            unplug_nic(qmp, nic_id)

    def update_nic(self, vm_id: int, nic: NicSpec) -> None:
        """Only "already so" can be done: QEMU gives a NIC of a running machine no other network. Raises
        HypervisorError."""
        with self._alone(vm_id) as directory:
            record = Record.read(directory)
            if record is None or record.outbound.get(nic.nic_id) is not nic.outbound:
                raise HypervisorError(f"what may go out of NIC {nic.nic_id} cannot be changed while the machine runs")

    def save_disk(self, vm_id: int, disk_id: int, target: Path) -> None:
        """Whole, as qcow2. Of a running machine: the disk as it is at this moment, as after a power cut. Raises
        HypervisorError."""
        # Not under the machine's lock: a copy takes its time, and the machine must be destroyable meanwhile.
        directory = self._directory(vm_id)
        record = Record.read(directory)
        disk = record.disks.get(disk_id) if record else None
        if disk is None:
            raise HypervisorError(f"machine {vm_id} has no disk {disk_id}")
        if self._running(vm_id):
            copy_running(directory, f"disk{disk_id}", disk, target)
        else:
            copy_whole(Path(disk.path), disk.format, target)

    def monitoring(self, vm_id: int) -> dict[str, float]:
        """CPU since the last call (since the start at first), and MEMORY. QEMU's user networking counts no bytes, so
        NETRX and NETTX are left out."""
        record = Record.read(self._directory(vm_id))
        qemu = record.qemu if record else None
        if qemu is None or not qemu.alive():
            return {}
        now, used = time.monotonic(), qemu.cpu_seconds()
        with self._guard:
            before, used_before = self._cpu_seen.get(qemu, (now - qemu.age_seconds(), 0.0))
            self._cpu_seen[qemu] = now, used
        percent = 100 * (used - used_before) / max(now - before, 0.01)
        return {"CPU": round(max(0.0, percent), 1), "MEMORY": float(qemu.resident_kb())}

    def _lay_out_clone(self, spec: MachineSpec) -> bool:
        state = self._preparing.fitting(spec)
        if state is None:
            return False
        try:
            lay_out_clone(state, spec)
        except StateBroken as broken:
            self._states.drop(state.folder, str(broken))
        except (HypervisorError, OSError) as error:
            log.warning(
                "machine %s is booted, and not restored from state %s: %s", spec.vm_id, state.folder.name, error
            )
        else:
            log.info("machine %s goes on from state %s", spec.vm_id, state.folder.name)
            return True
        return False

    def _booted(self, spec: MachineSpec) -> Started:
        accelerator = self._accelerator(spec)
        started = start_machine(spec, accelerator)
        log.info("machine %s started: pid %s, %s", spec.vm_id, started.qemu.pid, accelerator)
        return started

    def _restored(self, spec: MachineSpec) -> Started | None:
        """None when there is no state to go on from, or it is none; then all is laid out for a boot."""
        directory = spec.directory
        memory = directory / f"{MEMORY}.used"
        try:
            # Once: what is on the disk afterwards does not go with this memory any more.
            (directory / MEMORY).rename(memory)
        except FileNotFoundError:
            return None
        if (directory / console.LOG).exists():
            # Of an earlier machine of this number: what that said, this one has not.
            (directory / console.LOG).replace(directory / console.OLDER)
        started: Started | None = None
        try:
            started = start_machine(spec, self._accelerator(spec), memory=Memory(memory, shared=False), restored=True)
            restore_devices(directory)
            wait_become(directory, started.qemu)
        except (HypervisorError, OSError) as error:
            log.warning("machine %s is booted, as its state was not restored: %s", spec.vm_id, error)
            if started is not None:
                _kill(started.qemu, spec.vm_id)
            if (state := self._preparing.fitting(spec)) is not None:
                self._states.drop(state.folder, f"machine {spec.vm_id} did not go on from it")
            _lay_out(spec)
            return None
        finally:
            memory.unlink(missing_ok=True)
            forget_state(directory)
        log.info("machine %s restored: pid %s", spec.vm_id, started.qemu.pid)
        return started

    def _accelerator(self, spec: MachineSpec) -> Accelerator:
        if spec.kernel is None:
            return acceleration.host_accelerator(self._home)
        return acceleration.probe(self._home, spec.kernel).accelerator

    def _directory(self, vm_id: int) -> Path:
        return self._home.absolute() / "vms" / str(vm_id)

    def _running(self, vm_id: int) -> bool:
        record = Record.read(self._directory(vm_id))
        return record is not None and record.qemu is not None and record.qemu.alive()

    @contextmanager
    def _alone(self, vm_id: int) -> Iterator[Path]:
        with self._guard:
            lock = self._locks[vm_id]
        with lock:
            yield self._directory(vm_id)

    @contextmanager
    def _talk(self, vm_id: int) -> Iterator[Qmp]:
        if not self._running(vm_id):
            raise HypervisorError(f"machine {vm_id} does not run")
        with Qmp(self._directory(vm_id), seconds=30.0) as qmp:
            yield qmp


def _lay_out(spec: MachineSpec) -> None:
    """Whatever was there before: overlays over the images, and the context ISO."""
    forget_state(spec.directory)
    for disk in spec.disks:
        lay_out(spec.directory, disk)
    if spec.context:
        write_context_iso(spec.directory / CONTEXT_ISO, spec.context)


def _require_place(spec: MachineSpec, directory: Path) -> None:
    if spec.directory.absolute() != directory:
        raise HypervisorError(f"machine {spec.vm_id} belongs in {directory}, not in {spec.directory}")


def _kill(process: Process, vm_id: int) -> None:
    if not process.kill():
        raise HypervisorError(f"machine {vm_id}: process {process.pid} was killed and does not end")
