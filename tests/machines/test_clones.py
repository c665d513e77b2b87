"""Clones of the base image's machine: what must differ differs, as root sees it and as a task's process sees it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh
import pyone
import pytest

from orchestrator.guest.keys import KeyPair, make_key
from tests.driver import Mayfly, TestCloud
from tests.guest_ends import CLIENT

DONE, POWEROFF, ACTIVE, RUNNING = 6, 8, 3, 3
LOOK = """
import json, os, socket, subprocess, time
def read(path): return open(path).read().strip()
def told(*argv):
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done.stdout.strip() or done.stderr.strip()
print(json.dumps({
    "clock": time.time(),
    "random": os.urandom(32).hex(),
    "boot id": read("/proc/sys/kernel/random/boot_id"),
    "boot id in namespaces of its own": told("unshare", "--mount-proc", "--pid", "--fork", "cat",
        "/proc/sys/kernel/random/boot_id"),
    "machine id": read("/etc/machine-id"),
    "host name": [socket.gethostname(), read("/etc/hostname")],
    "MAC": read("/sys/class/net/eth0/address"),
    "host key": told("ssh-keygen", "-y", "-f", "/etc/ssh/ssh_host_ed25519_key"),
    "address": told("ip", "-o", "-4", "address", "show", "eth0").split()[3],
    "route": told("ip", "route"),
    "waits": "mayfly.wait" in read("/proc/cmdline"),
    "leftover": [name for name in os.listdir("/etc/ssh") if name.startswith("ssh_host") and name.endswith(".pub")],
    "failed": told("systemctl", "list-units", "--failed", "--no-legend"),
    "started": read("/tmp/started") if os.path.exists("/tmp/started") else "",
}))
"""


@dataclass
class Machine:
    """A VM, and the host key that it was given."""

    vm: int
    name: str
    address: str
    mac: str
    key: KeyPair


Starter = Callable[..., Machine]


def until(so: Callable[[], bool], words: str, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < deadline, f"not within {seconds} s: {words}"
        time.sleep(0.05)


def states(cloud: TestCloud) -> list[dict[str, Any]]:
    listed = Mayfly({"MAYFLY_HOME": str(cloud.home), "ONE_XMLRPC": "", "ONE_AUTH": ""})("cloud", "status", "--json")
    found: list[dict[str, Any]] = listed.json()["states"]
    return found


def is_clone(cloud: TestCloud, machine: Machine) -> bool:
    return (cloud.home / "cloud" / "vms" / str(machine.vm) / "base.0").exists()


@pytest.fixture
def start(cloud: TestCloud) -> Iterator[Starter]:
    """Starts a VM of the promoted image, with a host key of its own; each is destroyed after the test."""
    one = cloud.client()
    made: list[int] = []
    network = {each.NAME: each.ID for each in one.vnpool.info(-2, -1, -1).VNET}["sealed"]
    promoted = [
        each.ID
        for each in one.templatepool.info(-2, -1, -1).VMTEMPLATE
        if dict(each.TEMPLATE).get("MAYFLY_STATE") == "promoted"
    ][-1]

    def start(name: str, memory_mb: int = 512, **more: str) -> Machine:
        key = make_key(name)
        given = {
            "NETWORK": "YES",
            "SET_HOSTNAME": name,
            "SSH_PUBLIC_KEY": CLIENT.public,
            "MAYFLY_HOST_KEY_BASE64": key.private_base64,
            **more,
        }
        context = ", ".join(f'{word}="{value}"' for word, value in given.items())
        extra = f"CPU=1\nVCPU=1\nMEMORY={memory_mb}\nNIC=[NETWORK_ID={network}]\nCONTEXT=[{context}]"
        vm = one.template.instantiate(promoted, name, False, extra)
        made.append(vm)
        nic = one.vm.info(vm).TEMPLATE["NIC"]
        return Machine(vm, name, nic["IP"], nic["MAC"], key)

    yield start
    for vm in made:
        while one.vm.info(vm).STATE != DONE:
            with contextlib.suppress(pyone.OneException):  # refused while it starts
                one.vm.action("terminate-hard", vm)


async def connected(machine: Machine, seconds: float = 240) -> asyncssh.SSHClientConnection:
    """A connection to what shows the host key that the machine was given."""
    deadline = time.monotonic() + seconds
    key = asyncssh.import_public_key(machine.key.public)
    while True:
        try:
            return await asyncssh.connect(
                machine.address,
                2222,
                known_hosts=([key], [], []),
                username="root",
                client_keys=[asyncssh.import_private_key(CLIENT.private)],
                config=None,
                login_timeout=20,
            )
        except (OSError, asyncssh.ConnectionLost, TimeoutError):
            assert time.monotonic() < deadline, f"{machine.name} does not answer"
            await asyncio.sleep(0.2)


async def look(machine: Machine) -> dict[str, Any]:
    """What the machine says of itself, and the host's clock before and after it said so."""
    async with await connected(machine) as connection:
        before = time.time()
        done = await connection.run("python3 -", input=LOOK, check=True)
        told: dict[str, Any] = json.loads(str(done.stdout))
        told["between"] = (before, time.time())
    return told


def wait_for_clones(cloud: TestCloud, start: Starter, memory_mb: int) -> None:
    """Return when machines of that size are clones: the first ones boot, while a state is being made."""
    one = cloud.client()

    def cloned() -> bool:
        machine = start("first", memory_mb=memory_mb)
        until(
            lambda: (one.vm.info(machine.vm).STATE, one.vm.info(machine.vm).LCM_STATE) == (ACTIVE, RUNNING), "it runs"
        )
        found = is_clone(cloud, machine)
        one.vm.action("terminate-hard", machine.vm)
        until(lambda: one.vm.info(machine.vm).STATE == DONE, "it is gone")
        return found

    until(cloned, f"a machine of {memory_mb} MB is a clone", 400)


@pytest.fixture
def a_state(cloud: TestCloud, start: Starter) -> None:
    wait_for_clones(cloud, start, 512)


@pytest.mark.usefixtures("a_state")
async def test_two_clones_share_nothing_that_is_a_machines_own(cloud: TestCloud, start: Starter) -> None:
    uses = sum(each["uses"] for each in states(cloud))
    machines = [start("clone-one"), start("clone-two")]
    told = await asyncio.gather(*map(look, machines))
    assert [is_clone(cloud, machine) for machine in machines] == [True, True]
    assert sum(each["uses"] for each in states(cloud)) == uses + 2
    for name in ("random", "boot id", "machine id", "host name", "MAC", "host key"):
        assert told[0][name] != told[1][name], name
    for machine, facts in zip(machines, told, strict=True):
        assert facts["boot id"] == facts["boot id in namespaces of its own"]
        assert facts["host name"] == [machine.name, machine.name]
        assert facts["MAC"] == machine.mac
        assert facts["host key"].split()[:2] == machine.key.public.split()[:2]
        assert len(facts["machine id"]) == 32 and set(facts["machine id"]) <= set("0123456789abcdef")
        assert facts["address"] == "10.0.2.15/24"
        assert "default via 10.0.2.2 dev eth0" in facts["route"]
        before, after = facts["between"]
        assert before - 2 < facts["clock"] < after + 2
        assert (facts["waits"], facts["leftover"], facts["failed"], facts["started"]) == (True, [], "", "")


@pytest.mark.usefixtures("a_state")
async def test_a_clone_takes_from_its_context_what_a_booted_machine_takes(cloud: TestCloud, start: Starter) -> None:
    script = base64.b64encode(b"#!/bin/sh\nhostname > /tmp/started\n").decode()
    machine = start("clone-three", START_SCRIPT_BASE64=script)
    async with asyncio.timeout(240):
        while (facts := await look(machine))["started"] == "":
            await asyncio.sleep(0.2)
    assert is_clone(cloud, machine)
    assert facts["started"] == "clone-three"
    assert facts["MAC"] == machine.mac
    assert facts["host key"].split()[:2] == machine.key.public.split()[:2]


@pytest.mark.usefixtures("a_state")
async def test_a_clone_that_was_off_boots_as_the_machine_that_it_was(cloud: TestCloud, start: Starter) -> None:
    one = cloud.client()
    machine = start("clone-four")
    first = await look(machine)
    one.vm.action("poweroff", machine.vm)
    until(lambda: one.vm.info(machine.vm).STATE == POWEROFF, "it is off")
    one.vm.action("resume", machine.vm)
    again = await look(machine)
    assert is_clone(cloud, machine)
    assert not again["waits"]
    for name in ("machine id", "host name", "MAC", "host key", "address"):
        assert again[name] == first[name], name
    assert again["boot id"] != first["boot id"]


@pytest.mark.usefixtures("a_state")
async def test_another_size_boots_until_it_has_a_state_of_its_own(cloud: TestCloud, start: Starter) -> None:
    first = start("larger-one", memory_mb=640)
    assert (await look(first))["host name"] == ["larger-one", "larger-one"]
    await asyncio.to_thread(wait_for_clones, cloud, start, 640)
    second = start("larger-two", memory_mb=640)
    facts = await look(second)
    assert is_clone(cloud, second)
    assert facts["host name"] == ["larger-two", "larger-two"]


@pytest.mark.usefixtures("a_state")
def test_two_processes_in_clones(mayfly: Mayfly, cloud: TestCloud, tmp_path: Path) -> None:
    """As the process of a task sees it, in the namespaces of its own unit."""
    uses = sum(each["uses"] for each in states(cloud))
    words = ("cat /proc/sys/kernel/random/boot_id /etc/machine-id /etc/hostname; head -c 16 /dev/urandom | base64",)
    said = []
    for _ in range(2):
        done = mayfly("run", "--", "sh", "-c", *words)
        assert done.exit_code == 0, done.stderr
        said.append(done.stdout.splitlines())
    assert len(said[0]) == len(said[1]) == 4
    assert [one for one, other in zip(*said, strict=True) if one == other] == []
    assert sum(each["uses"] for each in states(cloud)) == uses + 2
