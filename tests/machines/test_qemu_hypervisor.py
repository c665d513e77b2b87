"""Real QEMU machines, seen from the host: started, found again, plugged, saved, ended. Their disks are empty, so no
guest runs in them but the firmware."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import select
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.localcloud.hypervisors import DiskSpec, Hypervisor, HypervisorError, MachineSpec, NicSpec, Power
from orchestrator.localcloud.hypervisors.console import LOG
from orchestrator.localcloud.hypervisors.qemu import QemuHypervisor
from orchestrator.localcloud.hypervisors.qmp import Qmp
from tests.driver import qemu_processes

VM = 7


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A cloud's home, deeper than a socket's address is long. No QEMU of it survives the test."""
    home = tmp_path / ("a, deep=home " + "x" * 100) / "cloud"
    home.mkdir(parents=True)
    yield home
    left = qemu_processes(home)
    for vm in home.glob("vms/*"):
        QemuHypervisor(home).destroy(int(vm.name))
    assert left == [], "QEMU processes survived the test"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk of 8 MB with words at its beginning."""
    raw, path = tmp_path / "raw", tmp_path / "image"
    raw.write_bytes(b"the image's own words".ljust(8 * 1024 * 1024, b"\0"))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path], check=True)
    return path


@pytest.fixture
def spec(home: Path, image: Path) -> MachineSpec:
    nic = NicSpec(0, "127.201.7.1", "02:00:7f:c9:07:01", 2222, outbound=False)
    return MachineSpec(
        vm_id=VM,
        name="test",
        uuid="6a3f0c8e-7d3b-4b53-9b0c-1c7f1a2b3c4d",
        directory=home / "vms" / str(VM),
        cpus=1,
        memory_mb=64,
        disks=(DiskSpec(0, image),),
        nics=(nic,),
        context={"NETWORK": "YES"},
    )


@pytest.fixture
def hypervisor(home: Path) -> Iterator[Hypervisor]:
    hypervisor = QemuHypervisor(home)
    yield hypervisor
    hypervisor.destroy(VM)


@pytest.fixture
def running(hypervisor: Hypervisor, spec: MachineSpec) -> MachineSpec:
    hypervisor.prolog(spec)
    assert hypervisor.boot(spec) == "one-7"
    return spec


def contents(disk: Path) -> bytes:
    """What a guest reads from a disk."""
    raw = disk.with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-O", "raw", disk, raw], check=True)
    return raw.read_bytes()


def write(disk: Path, words: str, offset: int) -> None:
    """Write to a disk that is not in use, as a guest would have."""
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -P 0x{ord(words):x} {offset} 512", disk], check=True)


def listening(nic: NicSpec) -> bool:
    with socket.socket() as client:
        return client.connect_ex((nic.address, nic.host_port)) == 0


def test_the_life_of_a_machine(hypervisor: Hypervisor, home: Path, spec: MachineSpec) -> None:
    assert hypervisor.power(VM) == Power.OFF
    hypervisor.prolog(spec)
    assert hypervisor.power(VM) == Power.OFF
    hypervisor.boot(spec)
    assert hypervisor.power(VM) == Power.RUNNING
    assert len(qemu_processes(home)) == 1
    assert listening(spec.nics[0])
    hypervisor.destroy(VM)
    assert qemu_processes(home) == []
    assert hypervisor.power(VM) == Power.OFF
    assert not listening(spec.nics[0])
    hypervisor.epilog(VM, spec.directory)
    assert [path.name for path in spec.directory.iterdir()] == [LOG]


def test_ending_twice_and_ending_what_never_was_is_success(hypervisor: Hypervisor, running: MachineSpec) -> None:
    for _ in range(2):
        hypervisor.destroy(VM)
    for _ in range(2):
        hypervisor.epilog(VM, running.directory)
    hypervisor.destroy(99)
    hypervisor.epilog(99, running.directory.with_name("99"))
    hypervisor.shutdown(99)
    assert (hypervisor.power(99), hypervisor.monitoring(99)) == (Power.OFF, {})


def test_a_machine_goes_on_from_where_a_power_off_left_it(hypervisor: Hypervisor, running: MachineSpec) -> None:
    hypervisor.destroy(VM)
    write(running.directory / "disk.0", "W", 4096)
    hypervisor.boot(running)
    assert hypervisor.power(VM) == Power.RUNNING
    hypervisor.destroy(VM)
    assert contents(running.directory / "disk.0")[4096:4608] == b"W" * 512


def test_a_machine_outlives_the_process_that_started_it(home: Path, spec: MachineSpec, hypervisor: Hypervisor) -> None:
    code = (
        "import pickle, sys; from orchestrator.localcloud.hypervisors.qemu import QemuHypervisor;"
        "home, spec = pickle.load(sys.stdin.buffer); h = QemuHypervisor(home); h.prolog(spec); h.boot(spec)"
    )
    subprocess.run([sys.executable, "-c", code], input=pickle.dumps((home, spec)), check=True, timeout=60)
    assert hypervisor.power(VM) == Power.RUNNING
    assert hypervisor.monitoring(VM)["MEMORY"] > 0
    hypervisor.destroy(VM)
    assert hypervisor.power(VM) == Power.OFF


def test_a_machine_whose_start_was_not_written_down_is_found(
    home: Path, running: MachineSpec, hypervisor: Hypervisor
) -> None:
    # The cloud's process died after QEMU had started, before the record was complete.
    record = json.loads((running.directory / "machine.json").read_text())
    (running.directory / "machine.json").write_text(json.dumps(record | {"qemu": None, "keeper": None}))
    later = QemuHypervisor(home)
    assert later.power(VM) == Power.RUNNING
    later.destroy(VM)
    assert qemu_processes(home) == []


def test_a_recycled_pid_is_not_taken_for_the_machine(running: MachineSpec, hypervisor: Hypervisor) -> None:
    hypervisor.destroy(VM)
    with subprocess.Popen(["sleep", "60"]) as stranger:
        record = json.loads((running.directory / "machine.json").read_text())
        record["qemu"]["pid"] = stranger.pid
        (running.directory / "machine.json").write_text(json.dumps(record))
        (running.directory / "qemu.pid").write_text(f"{stranger.pid}\n")
        assert hypervisor.power(VM) == Power.OFF
        hypervisor.destroy(VM)
        record["qemu"] = None
        (running.directory / "machine.json").write_text(json.dumps(record))
        assert hypervisor.power(VM) == Power.OFF
        hypervisor.destroy(VM)
        assert stranger.poll() is None
        stranger.kill()


def test_a_qemu_that_was_killed_is_seen_as_off(home: Path, running: MachineSpec, hypervisor: Hypervisor) -> None:
    (pid,) = qemu_processes(home)
    pidfd = os.pidfd_open(pid)
    os.kill(pid, 9)
    assert select.select([pidfd], [], [], 20)[0]
    os.close(pidfd)
    assert hypervisor.power(VM) == Power.OFF
    with pytest.raises(HypervisorError, match="machine 7 does not run"):
        hypervisor.attach_nic(VM, replace(running.nics[0], nic_id=1))
    hypervisor.boot(running)
    assert hypervisor.power(VM) == Power.RUNNING


def test_a_qemu_that_answers_nobody_is_ended_all_the_same(
    home: Path, running: MachineSpec, hypervisor: Hypervisor
) -> None:
    (pid,) = qemu_processes(home)
    os.kill(pid, 19)  # SIGSTOP
    hypervisor.destroy(VM)
    assert qemu_processes(home) == []


def test_the_files_of_a_machine_are_its_owners(running: MachineSpec) -> None:
    assert stat.S_IMODE(running.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((running.directory / "context.iso").stat().st_mode) == 0o600


def test_the_power_button_can_be_pressed(running: MachineSpec, hypervisor: Hypervisor) -> None:
    # The firmware does not listen to it; that a guest does is shown with the product's image.
    hypervisor.shutdown(VM)
    assert hypervisor.power(VM) == Power.RUNNING


def test_what_a_machine_uses_is_told(running: MachineSpec, hypervisor: Hypervisor) -> None:
    for _ in range(2):
        usage = hypervisor.monitoring(VM)
        assert 0 <= usage["CPU"] < 10000
        assert 1000 < usage["MEMORY"] < 10_000_000
    hypervisor.destroy(VM)
    assert hypervisor.monitoring(VM) == {}


# -- refusals --------------------------------------------------------------------------------------------------------


def test_an_address_in_use_is_told_and_nothing_runs(hypervisor: Hypervisor, home: Path, spec: MachineSpec) -> None:
    hypervisor.prolog(spec)
    with socket.create_server((spec.nics[0].address, spec.nics[0].host_port)):
        with pytest.raises(HypervisorError, match=r"127\.201\.7\.1:2222: Address already in use"):
            hypervisor.boot(spec)
        assert (hypervisor.power(VM), qemu_processes(home)) == (Power.OFF, [])
    hypervisor.boot(spec)


def test_qemus_own_words_are_the_error(hypervisor: Hypervisor, home: Path, spec: MachineSpec) -> None:
    huge = replace(spec, memory_mb=400_000_000)
    hypervisor.prolog(huge)
    with pytest.raises(HypervisorError, match=r"cannot set up guest memory 'pc.ram': Cannot allocate memory"):
        hypervisor.boot(huge)
    assert (hypervisor.power(VM), qemu_processes(home)) == (Power.OFF, [])


def test_a_missing_image_is_told(hypervisor: Hypervisor, spec: MachineSpec, tmp_path: Path) -> None:
    with pytest.raises(HypervisorError, match=r"disk 0: the image's file .*gone is missing"):
        hypervisor.prolog(replace(spec, disks=(DiskSpec(0, tmp_path / "gone"),)))


def test_an_image_that_is_none_is_told(hypervisor: Hypervisor, spec: MachineSpec, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no disk")
    with pytest.raises(HypervisorError, match="Image is not in qcow2 format"):
        hypervisor.prolog(replace(spec, disks=(DiskSpec(0, tmp_path / "text"),)))


@pytest.mark.parametrize("which", ["kernel", "initrd"])
def test_a_missing_kernel_is_told(hypervisor: Hypervisor, spec: MachineSpec, image: Path, which: str) -> None:
    hypervisor.prolog(spec)
    files = {"kernel": image, "initrd": image} | {which: Path("/gone")}
    with pytest.raises(HypervisorError, match="the file /gone is missing"):
        hypervisor.boot(replace(spec, **files))


def test_an_overlay_that_vanished_is_told(hypervisor: Hypervisor, home: Path, spec: MachineSpec) -> None:
    hypervisor.prolog(spec)
    (spec.directory / "disk.0").unlink()
    with pytest.raises(HypervisorError, match=r"disk\.0.*No such file or directory"):
        hypervisor.boot(spec)
    assert qemu_processes(home) == []


def test_a_directory_that_cannot_be_made_is_told(hypervisor: Hypervisor, home: Path, spec: MachineSpec) -> None:
    (home / "vms").touch()
    with pytest.raises(HypervisorError, match=r"(Not a directory|File exists)"):
        hypervisor.prolog(spec)
    (home / "vms").unlink()


def test_a_running_machine_is_neither_laid_out_nor_booted_nor_deleted(
    running: MachineSpec, hypervisor: Hypervisor
) -> None:
    with pytest.raises(HypervisorError, match="machine 7 runs already"):
        hypervisor.prolog(running)
    with pytest.raises(HypervisorError, match="machine 7 runs already"):
        hypervisor.boot(running)
    with pytest.raises(HypervisorError, match="machine 7 still runs"):
        hypervisor.epilog(VM, running.directory)
    assert hypervisor.power(VM) == Power.RUNNING


def test_a_machine_has_one_place(hypervisor: Hypervisor, spec: MachineSpec, tmp_path: Path) -> None:
    with pytest.raises(HypervisorError, match="machine 7 belongs in "):
        hypervisor.prolog(replace(spec, directory=tmp_path))


def test_more_nics_than_ports_are_refused(hypervisor: Hypervisor, spec: MachineSpec) -> None:
    nics = tuple(replace(spec.nics[0], nic_id=n, address=f"127.201.8.{n + 1}") for n in range(9))
    hypervisor.prolog(spec)
    with pytest.raises(HypervisorError, match="9 NICs, 8 is the most"):
        hypervisor.boot(replace(spec, nics=nics))


# -- disks -----------------------------------------------------------------------------------------------------------


def test_an_image_is_never_written(hypervisor: Hypervisor, running: MachineSpec, image: Path) -> None:
    before = hashlib.sha256(image.read_bytes()).digest()
    hypervisor.destroy(VM)
    write(running.directory / "disk.0", "W", 0)
    hypervisor.boot(running)
    hypervisor.destroy(VM)
    assert hashlib.sha256(image.read_bytes()).digest() == before


@pytest.mark.parametrize(("size_mb", "expected"), [(0, 8), (4, 8), (32, 32)])
def test_a_disk_is_as_big_as_asked_and_never_smaller_than_its_image(
    hypervisor: Hypervisor, spec: MachineSpec, size_mb: int, expected: int
) -> None:
    hypervisor.prolog(replace(spec, disks=(replace(spec.disks[0], size_mb=size_mb),)))
    assert len(contents(spec.directory / "disk.0")) == expected * 1024 * 1024


def test_a_raw_image_is_taken_as_raw_whatever_it_holds(
    hypervisor: Hypervisor, spec: MachineSpec, tmp_path: Path
) -> None:
    # A guest that wrote a qcow2 header into a raw disk must not make the host follow the header's backing file.
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret".ljust(65536, b"\0"))
    raw = tmp_path / "raw image"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", secret, raw], check=True)
    raw.write_bytes(raw.read_bytes().ljust(1024 * 1024, b"\0"))
    hypervisor.prolog(replace(spec, disks=(DiskSpec(0, raw, format="raw"),)))
    read = contents(spec.directory / "disk.0")
    assert read[:4] == b"QFI\xfb"
    assert len(read) == 1024 * 1024


@pytest.mark.parametrize("on", [True, False])
def test_a_saved_disk_is_whole_and_stands_alone(
    hypervisor: Hypervisor, running: MachineSpec, tmp_path: Path, on: bool
) -> None:
    hypervisor.destroy(VM)
    write(running.directory / "disk.0", "W", 4096)
    if on:
        hypervisor.boot(running)
    target = tmp_path / "saved"
    hypervisor.save_disk(VM, 0, target)
    assert (hypervisor.power(VM) == Power.RUNNING) is on
    facts = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", target]))
    assert (facts["format"], facts.get("backing-filename")) == ("qcow2", None)
    saved = contents(target)
    assert saved.startswith(b"the image's own words")
    assert saved[4096:4608] == b"W" * 512
    assert sorted(path.name for path in tmp_path.glob("saved*")) == ["saved", "saved.raw"]


def test_a_persistent_disk_is_the_image_itself(hypervisor: Hypervisor, spec: MachineSpec, image: Path) -> None:
    persistent = replace(spec, disks=(DiskSpec(0, image, persistent=True),))
    hypervisor.prolog(persistent)
    hypervisor.boot(persistent)
    with Qmp(spec.directory) as qmp:
        (disk, _) = [device["inserted"] for device in qmp.execute("query-block")]
    assert (disk["file"], disk["ro"]) == (str(image), False)
    hypervisor.destroy(VM)
    hypervisor.epilog(VM, spec.directory)
    assert contents(image).startswith(b"the image's own words")


@pytest.mark.parametrize("on", [True, False])
def test_a_disk_that_cannot_be_saved_leaves_nothing(
    hypervisor: Hypervisor, running: MachineSpec, tmp_path: Path, on: bool
) -> None:
    if not on:
        hypervisor.destroy(VM)
    with pytest.raises(HypervisorError, match="machine 7 has no disk 3"):
        hypervisor.save_disk(VM, 3, tmp_path / "saved")
    with pytest.raises(HypervisorError, match="No such file or directory"):
        hypervisor.save_disk(VM, 0, tmp_path / "gone" / "saved")
    assert list(tmp_path.glob("**/saved*")) == []
    hypervisor.destroy(VM)
    with pytest.raises(HypervisorError, match="machine 99 has no disk 0"):
        hypervisor.save_disk(99, 0, tmp_path / "saved")


# -- NICs ------------------------------------------------------------------------------------------------------------


def plugged(spec: MachineSpec) -> list[str]:
    with Qmp(spec.directory) as qmp:
        devices = [child["name"] for child in qmp.execute("qom-list", path="/machine/peripheral")]
    return sorted(device for device in devices if device.startswith("nic"))


def test_a_nic_is_plugged_into_a_running_machine(hypervisor: Hypervisor, running: MachineSpec) -> None:
    nic = NicSpec(1, "127.201.7.2", "02:00:7f:c9:07:02", 2222, outbound=True)
    hypervisor.attach_nic(VM, nic)
    assert plugged(running) == ["nic0", "nic1"]
    assert listening(nic)


def test_a_nic_that_cannot_be_plugged_leaves_nothing(hypervisor: Hypervisor, running: MachineSpec) -> None:
    with pytest.raises(HypervisorError, match=r"127\.201\.7\.1:2222: Address already in use"):
        hypervisor.attach_nic(VM, replace(running.nics[0], nic_id=1))
    elsewhere = replace(running.nics[0], address="127.201.7.3")
    with pytest.raises(HypervisorError, match=r"net0|nic0"):
        hypervisor.attach_nic(VM, elsewhere)
    assert not listening(elsewhere)
    with pytest.raises(HypervisorError, match=r"device_add.*mac"):
        hypervisor.attach_nic(VM, replace(elsewhere, nic_id=2, mac="no address"))
    assert not listening(elsewhere)
    hypervisor.attach_nic(VM, replace(elsewhere, nic_id=2))
    assert listening(elsewhere)


def test_what_may_go_out_of_a_nic_stays_as_long_as_the_machine_runs(
    home: Path, hypervisor: Hypervisor, running: MachineSpec
) -> None:
    sealed, plugged_in = running.nics[0], NicSpec(1, "127.201.7.2", "02:00:7f:c9:07:02", 2222, outbound=True)
    hypervisor.attach_nic(VM, plugged_in)
    for machines in (hypervisor, QemuHypervisor(home)):  # another process finds it so, too
        for nic in (sealed, plugged_in):
            machines.update_nic(VM, nic)
            with pytest.raises(HypervisorError, match=f"NIC {nic.nic_id} cannot be changed while the machine runs"):
                machines.update_nic(VM, replace(nic, outbound=not nic.outbound))
    hypervisor.destroy(VM)
    opened = replace(sealed, outbound=True)
    hypervisor.boot(replace(running, nics=(opened,)))
    hypervisor.update_nic(VM, opened)
    with pytest.raises(HypervisorError):
        hypervisor.update_nic(VM, sealed)


def test_there_are_only_so_many_ports(hypervisor: Hypervisor, running: MachineSpec) -> None:
    for number in range(1, 8):
        hypervisor.attach_nic(VM, replace(running.nics[0], nic_id=number, address=f"127.201.9.{number}"))
    with pytest.raises(HypervisorError, match="no port is free"):
        hypervisor.attach_nic(VM, replace(running.nics[0], nic_id=8, address="127.201.9.8"))


def test_a_nic_that_is_not_there_cannot_be_unplugged(hypervisor: Hypervisor, running: MachineSpec) -> None:
    with pytest.raises(HypervisorError, match="nic5"):
        hypervisor.detach_nic(VM, 5)
    assert plugged(running) == ["nic0"]


# -- many at once ----------------------------------------------------------------------------------------------------


def test_many_threads_start_and_end_machines(home: Path, hypervisor: Hypervisor, spec: MachineSpec) -> None:
    def live(vm: int) -> None:
        nic = replace(spec.nics[0], address=f"127.201.10.{vm}")
        own = replace(spec, vm_id=vm, directory=home / "vms" / str(vm), nics=(nic,))
        hypervisor.prolog(own)
        hypervisor.boot(own)
        assert hypervisor.power(vm) == Power.RUNNING
        hypervisor.destroy(vm)
        hypervisor.epilog(vm, own.directory)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(live, range(100, 106)))
    assert qemu_processes(home) == []


def test_of_two_boots_at_once_one_wins(home: Path, hypervisor: Hypervisor, spec: MachineSpec) -> None:
    hypervisor.prolog(spec)

    def boot(_: int) -> str:
        try:
            return hypervisor.boot(spec)
        except HypervisorError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(boot, range(2))) == ["machine 7 runs already", "one-7"]
    assert len(qemu_processes(home)) == 1


def test_it_is_a_hypervisor(home: Path) -> None:
    hypervisor: Hypervisor = QemuHypervisor(home)
    assert hypervisor.name == "qemu"


FULL = """
import sys, time
from pathlib import Path
from orchestrator.localcloud.hypervisors import DiskSpec, MachineSpec
from orchestrator.localcloud.hypervisors.qemu import QemuHypervisor
home, image = Path(sys.argv[1]), Path(sys.argv[2])
machines = QemuHypervisor(home)
spec = MachineSpec(7, "full", "6a3f0c8e-7d3b-4b53-9b0c-1c7f1a2b3c4d", home / "vms" / "7", 1, 64,
                   (DiskSpec(0, image, format="raw"),), (), {})
machines.prolog(spec)
machines.boot(spec)
try:
    give_up = time.monotonic() + 60
    while not machines.paused([7]) and time.monotonic() < give_up:
        time.sleep(0.1)
    print(machines.power(7), machines.paused([7]))
finally:
    machines.destroy(7)
"""
# A boot sector that writes 32 KiB after 32 KiB behind itself, by the firmware's call to write to a disk (INT 13h, 43h).
WRITES_ON_AND_ON = bytes.fromhex("31c0 8ed8 8ec0 be157c b80043 cd13 83061d7c40 ebf4 10004000 007c0000 8000000000000000")


def test_a_machine_whose_overlay_finds_no_room_says_so(tmp_path: Path) -> None:
    image, small = tmp_path / "image", tmp_path / "small"
    image.write_bytes(WRITES_ON_AND_ON.ljust(510, b"\0") + b"\x55\xaa" + bytes((8 << 20) - 512))
    small.mkdir()
    script = 'mount -t tmpfs -o size=2m tmpfs "$1" && exec "$2" -c "$3" "$1" "$4"'
    namespace = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh")
    ran = subprocess.run(
        [*namespace, str(small), sys.executable, FULL, str(image)], capture_output=True, text=True, timeout=120
    )
    assert ran.stdout.strip() == 'running {7: "io-error (no space left on the host\'s disk)"}', ran.stderr


def test_a_machine_that_was_stopped_stands_still(hypervisor: Hypervisor, running: MachineSpec) -> None:
    assert hypervisor.paused([VM, 99]) == {}
    with Qmp(running.directory) as qmp:
        qmp.execute("stop")
    assert hypervisor.paused([VM]) == {VM: "paused"}
    assert hypervisor.power(VM) == Power.RUNNING
