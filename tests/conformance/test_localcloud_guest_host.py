"""Simulated machines live in a process of their own, which outlives the cloud's and ends when it should."""

import os
import signal
from contextlib import asynccontextmanager
from pathlib import Path

import pyone
import pytest

from orchestrator.domain.outcome import Exited
from orchestrator.guest import connect
from orchestrator.localcloud import daemon
from orchestrator.localcloud.hypervisors import HypervisorError, Power
from orchestrator.localcloud.hypervisors.hosted import PID, HostedHypervisor
from orchestrator.localcloud.hypervisors.process import Process
from orchestrator.localcloud.hypervisors.runs import FILE, read_runs
from tests.conformance.localcloud_world import QUICK, until
from tests.guest_ends import CLIENT, HOST, Sinks, launch


@pytest.fixture
def home(tmp_path):
    home = tmp_path / "cloud"
    yield home
    daemon.stop(home)
    daemon.end_machines(home)


def client(home: Path):
    started = daemon.status(home)
    assert started is not None
    return pyone.OneServer(started.url, session=started.auth_path.read_text().strip())


def start(home: Path):
    daemon.start(home, "simulated", QUICK)
    return client(home)


def machine(one, name="mayfly-t1-2"):
    """The id of a VM that runs, and the address of its guest."""
    keys = f'SSH_PUBLIC_KEY="{CLIENT.public.strip()}",MAYFLY_HOST_KEY_BASE64="{HOST.private_base64}"'
    text = f'CPU=0.1\nMEMORY=64\nNIC=[NETWORK_ID=0]\nCONTEXT=[SET_HOSTNAME="{name}",{keys}]'
    vm = one.vm.allocate(text, False)
    until("it runs", lambda: one.vm.info(vm).LCM_STATE == 3)
    return vm, one.vm.info(vm).TEMPLATE["NIC"]["IP"]


@asynccontextmanager
async def reached(address, **changes):
    wanted = {"host_key": HOST.public, "client_key": CLIENT.private, "deadline": 30.0, "reconnect_seconds": 10.0}
    guest = await connect(address, QUICK.guest_ssh_port, **{**wanted, **changes})
    try:
        yield guest
    finally:
        await guest.close()


def machines_process(home: Path) -> Process:
    found = Process.of(int((home / PID).read_text()))
    assert found is not None
    return found


async def test_a_process_goes_on_while_the_cloud_is_killed_and_started(home):
    one = start(home)
    vm, address = machine(one)
    async with reached(address) as guest:
        await guest.start(launch("sh", "-c", "echo before; count once; sleep 0.5; echo after", token="t1.2"))
        os.kill(daemon.status(home).pid, signal.SIGKILL)
        until("it is gone", lambda: daemon.status(home) is None)
        one = start(home)
        assert one.vm.info(vm).LCM_STATE == 3
        sinks = Sinks()
        outcome, _ = await guest.follow(*sinks)
    assert (sinks.stdout.data, outcome) == (b"before\nafter\n", Exited(0))
    lines = read_runs(home / FILE)
    assert [line["event"] for line in lines] == ["started", "counted", "ended"]
    assert {(line["vm"], line["task"], line["hostname"], line["token"]) for line in lines} == {
        (vm, "t1", "mayfly-t1-2", "t1.2")
    }
    assert lines[1]["count"] == "once"
    assert lines[2]["record"]["status"] == "0"
    one.vm.action("terminate-hard", vm)
    until("it is DONE", lambda: one.vm.info(vm).STATE == 6)


def test_the_machines_process_ends_with_the_last_machine_and_the_cloud(home):
    one = start(home)
    vm, _ = machine(one)
    process = machines_process(home)
    daemon.stop(home)
    assert process.alive()
    one = start(home)
    assert machines_process(home) == process
    one.vm.action("terminate-hard", vm)
    until("it is DONE", lambda: one.vm.info(vm).STATE == 6)
    assert process.alive()
    daemon.stop(home)
    assert process.wait(20)


def test_a_power_cut_of_all_machines(home):
    one = start(home)
    vm, _ = machine(one)
    process = machines_process(home)
    assert process.kill()
    until("the cloud noticed", lambda: one.vm.info(vm).STATE == 8)
    assert machine(one)[0] == vm + 1
    assert machines_process(home) != process


def test_machines_can_be_ended_from_outside(home):
    one = start(home)
    machine(one)
    process = machines_process(home)
    assert daemon.end_machines(home) is True
    assert not process.alive()
    daemon.stop(home)
    daemon.end_machines(home)
    assert daemon.end_machines(home) is False


def test_what_is_asked_and_makes_no_sense(home):
    home.mkdir()
    machines = HostedHypervisor(home)
    assert machines.power(7) == Power.OFF
    assert machines.running([7]) == set()
    with pytest.raises(HypervisorError):
        machines.save_disk(7, 0, home / "nowhere" / "disk")
    with pytest.raises(ValueError, match="no machine 7 runs"):
        machines.inject({"kind": "power_off", "vm": 7})
    machines.close()
