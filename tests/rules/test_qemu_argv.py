"""The command line of a machine."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from orchestrator.localcloud.hypervisors import DiskSpec, MachineSpec, NicSpec
from orchestrator.localcloud.hypervisors.qemu_argv import PORTS, Channels, machine_argv, port_name

OVERLAY = DiskSpec(0, Path("/images/a,b=c"))
SEALED = NicSpec(0, "127.4.0.7", "02:00:7f:04:00:07", 2222, outbound=False)
OPEN = NicSpec(1, "127.4.0.8", "02:00:7f:04:00:08", 2222, outbound=True)
SPEC = MachineSpec(
    vm_id=7,
    name="a name, with a comma",
    uuid="6a3f0c8e-7d3b-4b53-9b0c-1c7f1a2b3c4d",
    directory=Path("/cloud, home/vms/7"),
    cpus=2,
    memory_mb=512,
    disks=(OVERLAY,),
    nics=(SEALED, OPEN),
    context={"NETWORK": "YES"},
    kernel=Path("/files/kernel"),
    initrd=Path("/files/initrd"),
    kernel_cmdline="root=/dev/vda, quiet",
)


def argv(spec: MachineSpec = SPEC) -> list[str]:
    return machine_argv(spec, "tcg", Channels(qmp=5, console=6))


def values(option: str, words: list[str]) -> list[str]:
    return [value for name, value in pairwise(words) if name == option]


def blockdevs(words: list[str]) -> dict[str, dict[str, object]]:
    return {node["node-name"]: node for node in map(json.loads, values("-blockdev", words))}


def test_a_sealed_nic_has_no_way_out_and_an_open_one_has() -> None:
    sealed, opened = values("-netdev", argv())
    assert "restrict=on" in sealed.split(",")
    assert "restrict=off" in opened.split(",")
    assert "ipv6=off" in sealed.split(",")


def test_the_lease_reaches_the_guests_sshd_and_nothing_else_comes_in() -> None:
    for nic, netdev in zip((SEALED, OPEN), values("-netdev", argv()), strict=True):
        forwards = [part for part in netdev.split(",") if part.startswith(("hostfwd", "guestfwd"))]
        assert forwards == [f"hostfwd=tcp:{nic.address}:2222-10.0.2.15:22"]


def test_every_nic_sits_in_a_port_of_its_own_so_that_it_can_be_unplugged() -> None:
    devices = [value for value in values("-device", argv()) if value.startswith("virtio-net-pci")]
    assert [f"bus={port_name(place)}" in device.split(",") for place, device in enumerate(devices)] == [True, True]
    assert [f"mac={nic.mac}" in device.split(",") for nic, device in zip((SEALED, OPEN), devices, strict=True)] == [
        True,
        True,
    ]
    assert sum(value.startswith("pcie-root-port") for value in values("-device", argv())) == PORTS


def test_an_overlay_is_written_in_the_machines_directory_and_the_image_is_not_named() -> None:
    node = blockdevs(argv())["disk0"]
    assert node["driver"] == "qcow2"
    assert node["file"] == {"driver": "file", "filename": "/cloud, home/vms/7/disk.0", "discard": "unmap"}
    assert not any("/images/" in word for word in argv())


def test_a_persistent_disk_is_the_image_itself_and_its_flushes_are_honoured() -> None:
    persistent = replace(OVERLAY, persistent=True, format="raw")
    node = blockdevs(argv(replace(SPEC, disks=(persistent,))))["disk0"]
    assert node["driver"] == "raw"
    assert node["cache"] == {"no-flush": False}
    assert node["file"] == {"driver": "file", "filename": "/images/a,b=c", "discard": "unmap"}


def test_the_context_is_read_only_and_comes_after_the_disks() -> None:
    words = argv()
    assert blockdevs(words)["context"]["read-only"] is True
    block = [value for value in values("-device", words) if value.startswith("virtio-blk-pci")]
    assert ["drive=disk0" in block[0], "drive=context" in block[1], len(block)] == [True, True, 2]


def test_without_context_there_is_no_iso() -> None:
    assert "context" not in blockdevs(argv(replace(SPEC, context={})))


def test_a_kernel_is_started_directly_with_its_command_line_as_one_word() -> None:
    words = argv()
    assert values("-kernel", words) == ["/files/kernel"]
    assert values("-initrd", words) == ["/files/initrd"]
    assert values("-append", words) == ["root=/dev/vda, quiet"]


def test_without_a_kernel_the_firmware_boots_the_first_disk() -> None:
    second = DiskSpec(1, Path("/images/data"))
    words = argv(replace(SPEC, kernel=None, disks=(OVERLAY, second)))
    assert not {"-kernel", "-initrd", "-append"} & set(words)
    order = [value.rpartition("bootindex=")[2] for value in values("-device", words) if "drive=disk" in value]
    assert order == ["1", "2"]


@pytest.mark.parametrize(("accelerator", "accel", "cpu"), [("kvm", "kvm", "host"), ("tcg", "tcg,thread=multi", "max")])
def test_the_accelerator_is_the_one_given(accelerator: str, accel: str, cpu: str) -> None:
    words = machine_argv(SPEC, accelerator, Channels(5, 6))  # type: ignore[arg-type]
    assert (values("-accel", words), values("-cpu", words)) == ([accel], [cpu])


def test_the_host_is_protected_where_qemu_can() -> None:
    (sandbox,) = values("-sandbox", argv())
    assert sandbox == "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
    assert "-sandbox" not in machine_argv(SPEC, "tcg", Channels(5, 6), sandbox=())


def test_the_machine_has_nothing_that_was_not_asked_for() -> None:
    words = argv()
    assert {"-nodefaults", "-no-user-config"} <= set(words)
    assert values("-display", words) == ["none"]
    assert "usb=off" in values("-machine", words)[0]


def test_size_and_names() -> None:
    words = argv()
    assert (values("-smp", words), values("-m", words)) == (["2"], ["512M"])
    assert (values("-name", words), values("-uuid", words)) == (["one-7"], [SPEC.uuid])
    assert not any(SPEC.name in word for word in words)


def test_relative_paths_become_absolute_as_qemu_has_another_directory() -> None:
    words = argv(replace(SPEC, directory=Path("vms/7"), kernel=Path("kernel"), initrd=Path("initrd")))
    here = str(Path.cwd())
    for option in ("-kernel", "-initrd", "-pidfile"):
        assert values(option, words)[0].startswith(here)
