"""Saved states of real QEMU machines: made, gone on from, and done without when anything is wrong with them.

The guest is a few lines of shell that wait and go on as mayfly-clone does; the base image's own guest is tried in
test_clones.py.
"""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.localcloud.hypervisors import DiskSpec, MachineSpec, NicSpec, Power
from orchestrator.localcloud.hypervisors.console import read_console
from orchestrator.localcloud.hypervisors.qemu import QemuHypervisor
from orchestrator.localcloud.hypervisors.saved_state import SavedState
from orchestrator.localcloud.hypervisors.states import MAKING, States
from tests.driver import TestCloud, qemu_processes
from tests.machines.small_guest import CMDLINE, boot_files_with

# It keeps a number in its memory that only the machine which is saved makes, and says at each start which way it came.
FIRST_PROCESS = """#!/bin/sh
/bin/busybox mkdir -p /bin /context /dev /proc /sys
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
while read -r module; do insmod "$module" 2>/dev/null; done < /modules/first
case " $(cat /proc/cmdline) " in
*" mayfly.wait "*)
    for word in $(cat /proc/cmdline); do [ "$word" != cannot ] || poweroff -f; done
    echo "on the disk before" | dd of=/dev/vda conv=fsync 2>/dev/null
    number=$(cat /proc/sys/kernel/random/uuid)
    echo "mayfly-clone: waits"
    until blockdev --flushbufs /dev/vdb; dd if=/dev/vdb bs=512 count=1 2>/dev/null | grep -q "^mayfly-clone 1 "; do
        sleep 0.02
    done
    echo "guest: restored $number, disk: $(head -c 18 /dev/vda)" ;;
*) echo "guest: booted" ;;
esac
mount -t iso9660 -o ro /dev/vdb /context
. /context/context.sh
echo "guest: I am $WHO"
[ -z "$BREAKS" ] || poweroff -f
echo "mayfly-clone: goes on"
exec sleep 100000
"""


@pytest.fixture(scope="module")
def boot_files(running_cloud: TestCloud, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return boot_files_with(FIRST_PROCESS, running_cloud, tmp_path_factory.mktemp("guest"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / ("a, deep=home " + "x" * 100) / "cloud"


class Machines:
    """A hypervisor with saved states, and the machines that a test starts on it."""

    def __init__(self, home: Path, boot_files: tuple[Path, Path], image: Path, states_mb: int = 1000) -> None:
        self.home = home
        self.hypervisor = QemuHypervisor(home, states_mb)
        self.states = States(home, states_mb)
        kernel, initrd = boot_files
        self.plain = MachineSpec(
            vm_id=0,
            name="guest",
            uuid="0b9c6a3f-7d3b-4b53-9b0c-1c7f1a2b3c4d",
            directory=home,
            cpus=1,
            memory_mb=128,
            disks=(DiskSpec(0, image),),
            nics=(NicSpec(0, "127.202.4.1", "02:00:7f:ca:04:01", 2222, outbound=False),),
            context={"WHO": "nobody"},
            kernel=kernel,
            initrd=initrd,
            kernel_cmdline=CMDLINE,
        )

    def spec(self, vm_id: int, **context: str) -> MachineSpec:
        nic = replace(self.plain.nics[0], address=f"127.202.4.{vm_id}", mac=f"02:00:7f:ca:04:{vm_id:02x}")
        context = {"WHO": f"machine {vm_id}", **context}
        return replace(self.plain, vm_id=vm_id, directory=self.home / "vms" / str(vm_id), nics=(nic,), context=context)

    def start(self, vm_id: int, **context: str) -> str:
        """What the machine has printed when it has started and knows who it is."""
        spec = self.spec(vm_id, **context)
        self.hypervisor.prolog(spec)
        assert self.hypervisor.boot(spec) == f"one-{vm_id}"
        until(lambda: "guest: I am" in read_console(spec.directory), f"machine {vm_id} says who it is")
        return read_console(spec.directory)

    def made(self, spec: MachineSpec | None = None) -> SavedState:
        """The state, once it is made."""
        self.hypervisor.prepare(spec or self.plain)
        until(lambda: bool(self.states.all()), "the state is made", 120)
        return self.states.all()[0]

    def refused(self, spec: MachineSpec) -> str:
        """Why the state was not made."""
        self.hypervisor.prepare(spec)
        until(lambda: bool(list(self.states.folder.glob("*.failed"))), "the making has failed", 120)
        until(lambda: not (self.states.folder / MAKING).exists(), "nothing is left of it")
        return next(iter(self.states.folder.glob("*.failed"))).read_text()

    def end(self) -> None:
        self.hypervisor.stop_preparing()
        for vm in (self.home / "vms").glob("*"):
            self.hypervisor.destroy(int(vm.name))


def until(so: Callable[[], bool], words: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < deadline, f"not within {seconds} s: {words}"
        time.sleep(0.02)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "8M"], check=True)
    return path


Start = Callable[..., Machines]


@pytest.fixture
def machines_of(home: Path, boot_files: tuple[Path, Path], image: Path) -> Iterator[Start]:
    made: list[Machines] = []

    def start(states_mb: int = 1000) -> Machines:
        made.append(Machines(home, boot_files, image, states_mb))
        return made[-1]

    yield start
    for each in made:
        each.end()
    assert qemu_processes(home) == []


@pytest.fixture
def machines(machines_of: Start) -> Machines:
    return machines_of()


def test_machines_go_on_from_one_memory_and_each_is_itself(machines: Machines, image: Path) -> None:
    before = image.read_bytes()
    first = machines.start(1)
    assert "guest: booted" in first, "there is no state yet"
    state = machines.made(machines.spec(1))
    assert (state.cpus, state.memory_mb, state.uses()) == (1, 128, 0)
    said = [machines.start(vm_id) for vm_id in (2, 3)]
    restored = {line for text in said for line in text.splitlines() if line.startswith("guest: restored")}
    assert len(restored) == 1, "both have what was in the memory"
    assert restored.pop().endswith("disk: on the disk before")
    for vm_id, text in zip((2, 3), said, strict=True):
        assert f"guest: I am machine {vm_id}\n" in text.replace("\r", "")
        assert "guest: booted" not in text
        assert not (machines.home / "vms" / str(vm_id) / "memory").exists()
    assert state.uses() == 2
    state.require_whole()
    assert image.read_bytes() == before


def test_a_clone_that_is_started_again_boots_from_its_own_disk(machines: Machines) -> None:
    state = machines.made()
    assert "guest: restored" in machines.start(2)
    machines.states.drop(state.folder, "a test")
    assert machines.hypervisor.power(2) == Power.RUNNING
    machines.hypervisor.destroy(2)
    machines.hypervisor.boot(machines.spec(2))
    until(lambda: "guest: I am machine 2" in log_of(machines, 2), "it is up again")
    assert "guest: booted" in log_of(machines, 2)
    saved = machines.home / "saved"
    machines.hypervisor.save_disk(2, 0, saved)
    raw = subprocess.run(["qemu-io", "-r", "-c", "read -v 0 18", saved], capture_output=True, text=True, check=True)
    assert "on.the.disk.befo" in raw.stdout
    machines.hypervisor.destroy(2)
    machines.hypervisor.epilog(2, machines.spec(2).directory)
    assert [path.name for path in machines.spec(2).directory.iterdir() if not path.name.startswith("console")] == []


def log_of(machines: Machines, vm_id: int) -> str:
    return (machines.spec(vm_id).directory / "console.log").read_text()


@pytest.mark.parametrize("name", ["memory", "devices", "base.0"])
def test_a_state_that_was_cut_short_is_not_used_and_made_anew(
    machines: Machines, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    state = machines.made()
    os.truncate(state.folder / name, (state.folder / name).stat().st_size // 2)
    with caplog.at_level(logging.WARNING):
        assert "guest: booted" in machines.start(2)
    assert f"{name} is not as it was saved" in caplog.text
    machines.made().require_whole()
    assert "guest: restored" in machines.start(3)


def test_a_state_that_qemu_cannot_read_is_not_used_again(machines: Machines, caplog: pytest.LogCaptureFixture) -> None:
    """Spoilt in the middle, where no check but QEMU's own looks."""
    state = machines.made()
    with (state.folder / "devices").open("r+b") as devices:
        devices.seek(100_000)
        devices.write(os.urandom(100_000))
    with caplog.at_level(logging.WARNING):
        assert "guest: booted" in machines.start(2)
    assert "its state was not restored" in caplog.text
    assert machines.states.all() == []


def test_a_clone_that_breaks_is_booted(machines: Machines, caplog: pytest.LogCaptureFixture) -> None:
    machines.made()
    spec = machines.spec(2, BREAKS="yes")
    machines.hypervisor.prolog(spec)
    with caplog.at_level(logging.WARNING):
        machines.hypervisor.boot(spec)
    assert "the clone ended before it had read its context" in caplog.text
    until(lambda: "guest: booted" in read_console(spec.directory), "it was booted then")


def test_a_context_that_fits_no_medium_is_for_a_machine_that_boots(machines: Machines) -> None:
    machines.made()
    assert "guest: booted" in machines.start(2, LONG="x" * (1 << 20))
    assert "guest: restored" in machines.start(3)


def test_of_a_guest_that_does_not_wait_no_state_is_made(machines: Machines) -> None:
    foreign = replace(machines.plain, kernel_cmdline=f"{CMDLINE} cannot")
    assert "ended before it said that it waits for a context" in machines.refused(foreign)
    machines.hypervisor.prepare(foreign)
    machines.made()  # a second wish for the first, which failed lately, was not tried before this one
    assert len(machines.states.all()) == 1
    assert len(list(machines.states.folder.glob("*.failed"))) == 1


def test_where_states_may_take_less_than_one_needs_there_is_none(machines_of: Start) -> None:
    machines = machines_of(states_mb=5)
    assert "saved states may take 5 MB" in machines.refused(machines.plain)
    assert machines.states.all() == []
    assert "guest: booted" in machines.start(2)


def test_a_disk_without_room_makes_no_state(machines: Machines) -> None:
    huge = replace(machines.plain, memory_mb=1 << 24)
    assert machines.refused(huge).startswith("no room on the disk: ")


def test_no_states_are_made_where_none_are_wanted(machines_of: Start) -> None:
    machines = machines_of(states_mb=0)
    machines.hypervisor.prepare(machines.plain)
    assert "guest: booted" in machines.start(2)
    machines.hypervisor.stop_preparing()
    assert not machines.states.folder.exists()


def test_a_cloud_that_ends_leaves_no_half_made_state(machines: Machines) -> None:
    machines.hypervisor.prepare(machines.plain)
    until(lambda: len(qemu_processes(machines.home)) == 1, "the making has begun")
    machines.hypervisor.stop_preparing()
    assert qemu_processes(machines.home) == []
    assert list(machines.states.folder.iterdir()) == []


KILLED = """
import os, pickle, sys, time
from orchestrator.localcloud.hypervisors.qemu import QemuHypervisor
home, spec = pickle.load(sys.stdin.buffer)
QemuHypervisor(home, 1000).prepare(spec)
while not (home / "states/.making/qemu.pid").exists():
    time.sleep(0.01)
os._exit(0)
"""


def test_what_a_killed_cloud_left_half_made_is_cleared_away(machines: Machines) -> None:
    words = pickle.dumps((machines.home, machines.plain))
    subprocess.run([sys.executable, "-c", KILLED], input=words, check=True, timeout=60)
    (left,) = qemu_processes(machines.home)
    machines.made()
    assert left not in qemu_processes(machines.home)
    assert not (machines.states.folder / MAKING).exists()
    assert "guest: restored" in machines.start(2)
    later = QemuHypervisor(machines.home, 1000)
    spec = machines.spec(3)
    later.prolog(spec)
    later.boot(spec)
    assert "guest: restored" in read_console(spec.directory), "another process on the same home finds it"
