"""Real QEMU machines, seen from inside: guests with the base image's kernel and a few lines of shell as first process.

The lines come in the context (`TEST`), so every test here also shows that a guest reads it.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.localcloud.hypervisors import DiskSpec, Hypervisor, HypervisorError, MachineSpec, NicSpec, Power
from orchestrator.localcloud.hypervisors.acceleration import DEVICE, probe, verdict
from orchestrator.localcloud.hypervisors.console import read_console
from orchestrator.localcloud.hypervisors.qemu import QemuHypervisor
from tests.driver import TestCloud, qemu_processes
from tests.machines.small_guest import CMDLINE, boot_files_with

VM = 3
NIC = NicSpec(0, "127.202.3.1", "02:00:7f:ca:03:01", 2222, outbound=False)
FIRST_PROCESS = """#!/bin/sh
/bin/busybox mkdir -p /bin /context /dev /proc /sys
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
while read -r module; do insmod "$module" 2>/dev/null; done < /modules/first
ip link set lo up
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
ip route add default via 10.0.2.2
mount -t iso9660 -o ro /dev/vdb /context
. /context/context.sh
echo "guest: up"
eval "$TEST"
echo "guest: done"
exec sleep 100000
"""


@pytest.fixture(scope="session")
def boot_files(running_cloud: TestCloud, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return boot_files_with(FIRST_PROCESS, running_cloud, tmp_path_factory.mktemp("guest"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "cloud"


@pytest.fixture
def hypervisor(home: Path) -> Iterator[Hypervisor]:
    hypervisor = QemuHypervisor(home)
    yield hypervisor
    hypervisor.destroy(VM)
    assert qemu_processes(home) == []


class Guest:
    """A machine that runs `test`."""

    def __init__(self, hypervisor: Hypervisor, spec: MachineSpec) -> None:
        self.hypervisor, self.spec = hypervisor, spec
        hypervisor.prolog(spec)
        hypervisor.boot(spec)

    def console(self) -> str:
        return read_console(self.spec.directory)

    def until(self, words: str | Callable[[], bool], seconds: float = 60) -> None:
        """Wait until the guest has printed `words`, or something is so."""
        deadline = time.monotonic() + seconds
        while not (words in self.console() if isinstance(words, str) else words()):
            assert time.monotonic() < deadline, f"not within {seconds} s: {words}\n{self.console()}"
            time.sleep(0.05)


Starter = Callable[..., Guest]


@pytest.fixture
def start(hypervisor: Hypervisor, home: Path, boot_files: tuple[Path, Path], tmp_path: Path) -> Starter:
    def start(test: str, nic: NicSpec = NIC, **context: str) -> Guest:
        disk = tmp_path / "image"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "8M"], check=True)
        kernel, initrd = boot_files
        spec = MachineSpec(
            vm_id=VM,
            name="guest",
            uuid="0b9c6a3f-7d3b-4b53-9b0c-1c7f1a2b3c4d",
            directory=home / "vms" / str(VM),
            cpus=2,
            memory_mb=256,
            disks=(DiskSpec(0, disk),),
            nics=(nic,),
            context={"TEST": test, **context},
            kernel=kernel,
            initrd=initrd,
            kernel_cmdline=CMDLINE,
        )
        return Guest(hypervisor, spec)

    return start


def answer(nic: NicSpec, seconds: float = 30) -> str:
    """What listens on the guest's port 22 says, asked at the lease."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((nic.address, nic.host_port), timeout=5) as client:
            said = client.makefile("rb").read()
            if said:
                return said.decode()
        time.sleep(0.1)
    raise AssertionError(f"nothing answered at {nic.address}:{nic.host_port} within {seconds} s")


def test_a_guest_reads_its_context_and_is_reached_at_its_lease(start: Starter) -> None:
    value = "it's $HOME, `two`\nlines, ünï"
    guest = start('echo "$VALUE" > /value; nc -ll -p 22 -e cat /value', VALUE=value)
    assert answer(NIC) == value + "\n"
    assert "guest: up" in guest.console()


@pytest.mark.parametrize("outbound", [False, True])
def test_a_sealed_guest_reaches_nothing_and_an_open_one_the_host(start: Starter, outbound: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as host, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", 0))
        for listener in (host, datagrams):
            listener.setblocking(False)
        tcp, udp = host.getsockname()[1], datagrams.getsockname()[1]
        guest = start(
            f"""
            for n in 1 2 3; do echo out | timeout 2 nc 10.0.2.2 {tcp}; done
            timeout 4 tftp -g -r file 10.0.2.2 {udp}
            echo "tried"
            nc -ll -p 22 -e echo "inbound works"
            """,
            NicSpec(0, NIC.address, NIC.mac, NIC.host_port, outbound),
        )
        guest.until("tried")
        reached = []
        for name, receive in (("tcp", host.accept), ("udp", lambda: datagrams.recv(10))):
            with contextlib.suppress(BlockingIOError):
                got = receive()
                reached.append(name)
                if isinstance(got, tuple):
                    got[0].close()
    assert reached == (["tcp", "udp"] if outbound else [])
    assert answer(NIC) == "inbound works\n"


def test_a_nic_comes_and_goes_while_the_guest_runs(start: Starter, hypervisor: Hypervisor) -> None:
    guest = start("while sleep 0.2; do echo nics: $(ls /sys/class/net) end; done")
    guest.until("nics: eth0 lo end")
    more = NicSpec(1, "127.202.3.2", "02:00:7f:ca:03:02", 2222, outbound=False)
    hypervisor.attach_nic(VM, more)
    guest.until("nics: eth0 eth1 lo end")
    hypervisor.detach_nic(VM, 1)
    # One that was there from the start can go as well.
    hypervisor.detach_nic(VM, 0)
    guest.until("nics: lo end")
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((NIC.address, NIC.host_port), timeout=5)
    hypervisor.attach_nic(VM, more)
    guest.until(lambda: guest.console().rstrip().endswith("nics: eth0 lo end"))


def test_a_guest_that_keeps_a_nic_is_cut_off_all_the_same(start: Starter, hypervisor: Hypervisor) -> None:
    # It never looks at the unplug request: its kernel has stopped.
    guest = start("nc -ll -p 22 -e echo here & sleep 3; echo c > /proc/sysrq-trigger")
    guest.until("sysrq: Trigger a crash")
    with pytest.raises(HypervisorError, match="did not let go of NIC 0"):
        hypervisor.detach_nic(VM, 0)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((NIC.address, NIC.host_port), timeout=5)


def test_a_guest_that_powers_itself_off_is_off(start: Starter, hypervisor: Hypervisor) -> None:
    guest = start("poweroff -f")
    guest.until(lambda: hypervisor.power(VM) == Power.OFF)
    assert "guest: up" in guest.console()
    hypervisor.destroy(VM)


def test_a_guest_that_reboots_goes_on(start: Starter, hypervisor: Hypervisor) -> None:
    guest = start('[ -n "$(head -c 5 /dev/vda | tr -d "\\0")" ] || { echo again > /dev/vda; sync; reboot -f; }')
    guest.until("guest: done")
    assert guest.console().count("guest: up") == 2
    assert hypervisor.power(VM) == Power.RUNNING


def test_a_guest_that_prints_for_ever_fills_no_disk(start: Starter) -> None:
    guest = start("yes 'all work and no play makes Jack a dull boy, all work and no play makes Jack a dull boy'")
    directory = guest.spec.directory
    guest.until(lambda: (directory / "console.log.1").exists(), seconds=120)
    assert sum(path.stat().st_size for path in directory.glob("console.log*")) <= 2 * 512 * 1024
    assert guest.hypervisor.power(VM) == Power.RUNNING


def test_what_a_guest_wrote_is_saved_from_under_it(start: Starter, hypervisor: Hypervisor, tmp_path: Path) -> None:
    guest = start("echo 'written by the guest' > /dev/vda; sync")
    guest.until("guest: done")
    hypervisor.save_disk(VM, 0, tmp_path / "saved")
    subprocess.run(["qemu-img", "convert", "-O", "raw", tmp_path / "saved", tmp_path / "raw"], check=True)
    assert (tmp_path / "raw").read_bytes().startswith(b"written by the guest\n")


def test_the_verdict_on_this_host_is_a_trial_and_leaves_no_qemu(home: Path, boot_files: tuple[Path, Path]) -> None:
    kernel, _ = boot_files
    found = probe(home, kernel)
    assert found.reason
    assert verdict(home, kernel) in (found, None) or not DEVICE.exists()
    if found.accelerator == "kvm":
        assert found.reason == "a guest kernel came up under KVM"
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert not [line for line in running.splitlines() if str(kernel) in line and "-accel kvm" in line]
