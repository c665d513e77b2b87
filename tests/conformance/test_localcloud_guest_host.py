"""Simulated machines live in a process of their own, which outlives the cloud's and ends when it should."""

import asyncio
import contextlib
import os
import random
import signal
import threading
import time
import xml.parsers.expat
from contextlib import asynccontextmanager
from pathlib import Path

import pyone
import pytest
import requests

from orchestrator.domain.errors import Unreachable
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


KEYS = f'SSH_PUBLIC_KEY="{CLIENT.public.strip()}",MAYFLY_HOST_KEY_BASE64="{HOST.private_base64}"'
MACHINE = f'CPU=0.1\nMEMORY=64\nNIC=[NETWORK_ID=0]\nCONTEXT=[SET_HOSTNAME="mayfly-t1-2",{KEYS}]'


def machine(one):
    """The id of a VM that runs, and the address of its guest."""
    vm = one.vm.allocate(MACHINE, False)
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


def events(home):
    return [line["event"] for line in read_runs(home / FILE)]


async def until_async(what, condition):
    return await asyncio.to_thread(until, what, condition)


@pytest.mark.parametrize("how", ["freeze_guest", "unreachable_host"])
async def test_a_silent_guest_goes_on_and_its_output_comes_when_it_is_heard_again(home, how):
    one = start(home)
    vm, address = machine(one)
    trouble = {"freeze_guest": {"vm": vm, "frozen": True}, "unreachable_host": {"host": 0, "unreachable": True}}[how]
    async with reached(address) as guest:
        await guest.start(launch("sh", "-c", "echo before; sleep 0.2; echo after", token="t1.1"))
        daemon.fault(home, {"kind": how, **trouble})
        sinks = Sinks()
        following = asyncio.create_task(guest.follow(*sinks))
        await until_async("the process ended", lambda: events(home) == ["started", "ended"])
        with pytest.raises(Unreachable):
            async with reached(address, deadline=0.5):
                pass
        assert not following.done()
        assert b"after" not in sinks.stdout.data
        if how == "unreachable_host":
            await until_async("it is UNKNOWN", lambda: one.vm.info(vm).LCM_STATE == 16)
        daemon.fault(home, {"kind": how, **{key: False if value is True else value for key, value in trouble.items()}})
        outcome, _ = await following
    assert (outcome, sinks.stdout.data) == (Exited(0), b"before\nafter\n")
    assert events(home) == ["started", "ended"]


async def test_connections_that_are_dropped_are_made_again(home):
    one = start(home)
    vm, address = machine(one)
    async with reached(address) as guest:
        await guest.start(launch("sh", "-c", "echo before; sleep 0.2; echo after", token="t1.1"))
        for target in (vm, "all"):
            daemon.fault(home, {"kind": "drop_connections", "vm": target})
        sinks = Sinks()
        outcome, _ = await guest.follow(*sinks)
    assert (outcome, sinks.stdout.data) == (Exited(0), b"before\nafter\n")


async def test_a_guest_can_be_slow(home):
    one = start(home)
    vm, address = machine(one)
    async with reached(address) as guest:
        await guest.facts()
        daemon.fault(home, {"kind": "slow_guest", "vm": vm, "seconds": 0.3})
        started = time.monotonic()
        await guest.facts()
        assert time.monotonic() - started >= 0.3


async def test_a_machine_that_goes_off_takes_its_process_along(home):
    one = start(home)
    vm, address = machine(one)
    async with reached(address, reconnect_seconds=0.5) as guest:
        await guest.start(launch("sleep", "600", token="t1.1"))
        await until_async("it started", lambda: events(home) == ["started"])
        daemon.fault(home, {"kind": "power_off", "vm": vm})
        await until_async("it shows", lambda: one.vm.info(vm).STATE == 8)
    assert events(home) == ["started"]


async def test_a_machine_left_behind_does_not_keep_its_address(home):
    one = start(home)
    vm, address = machine(one)
    daemon.fault(home, {"kind": "unreachable_host", "host": 0})
    await until_async("it is UNKNOWN", lambda: one.vm.info(vm).LCM_STATE == 16)
    one.vm.recover(vm, 3)
    await until_async("it is DONE", lambda: one.vm.info(vm).STATE == 6)
    other = one.host.allocate("another", "simulated", "simulated", -1)
    await until_async("it is MONITORED", lambda: one.host.info(other).STATE == 2)
    following, same = await asyncio.to_thread(machine, one)
    assert (following, same) == (vm + 1, address)
    async with reached(address) as guest:
        await guest.facts()
        machines = HostedHypervisor(home)
        assert machines.running([vm, following]) == {vm, following}
        daemon.fault(home, {"kind": "unreachable_host", "host": 0, "unreachable": False})
        await until_async("it is ended", lambda: machines.running([vm, following]) == {following})
        machines.close()
        await guest.facts()


def test_faults_that_are_refused(home):
    with pytest.raises(daemon.CloudNotStarted, match="no local cloud runs"):
        daemon.fault(home, {"kind": "clear"})
    start(home)
    with pytest.raises(ValueError, match="no machine 9 runs"):
        daemon.fault(home, {"kind": "drop_connections", "vm": 9})
    with pytest.raises(ValueError, match="not a fault"):
        daemon.fault(home, {"kind": "sulk"})


def test_calls_are_counted_from_the_start(home):
    one = start(home)
    before = daemon.calls(home)["one.system.version"]
    daemon.fault(home, {"kind": "drop_connection", "method": "one.system.version"})
    for _ in range(2):
        with contextlib.suppress(requests.ConnectionError):
            one.system.version()
    assert daemon.calls(home)["one.system.version"] == before + 2


def test_nothing_is_left_of_vms_that_came_and_went_while_the_cloud_was_killed(home):
    one = start(home)
    rand = random.Random(7)
    stop = threading.Event()

    def come_and_go() -> None:
        mine = client(home)
        while not stop.is_set():
            with contextlib.suppress(OSError, pyone.OneException, xml.parsers.expat.ExpatError):
                vm = mine.vm.allocate(MACHINE, False)
                stop.wait(0.05)
                mine.vm.action("terminate-hard", vm)

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            stop.wait(rand.uniform(0.1, 0.4))
            os.kill(daemon.status(home).pid, signal.SIGKILL)
            until("it is gone", lambda: daemon.status(home) is None)
            daemon.start(home, "simulated", QUICK)
    finally:
        stop.set()
        for thread in threads:
            thread.join()

    def all_done() -> bool:
        left = [vm.ID for vm in one.vmpool.info(-2, -1, -1, -1).VM]
        for vm in left:
            with contextlib.suppress(pyone.OneException):  # it starts, or ends already
                one.vm.action("terminate-hard", vm)
        return not left

    until("every VM is DONE", all_done)
    machines = HostedHypervisor(home)
    assert machines.running(range(10_000)) == set()
    machines.close()
    assert one.vn.info(0).USED_LEASES == 0
