"""State is on disk: what was, is there again after a restart; and faults that tests inject."""

import dataclasses
import json
import logging
import os
import signal
import time

import pyone
import pytest
import requests

from orchestrator.localcloud import daemon
from orchestrator.localcloud.defaults import make_directories
from orchestrator.localcloud.hypervisors.simulated import SimulatedHypervisor
from orchestrator.localcloud.knobs import CloudSettings
from tests.conformance.localcloud_world import QUICK, until, world


def test_everything_is_there_again(tmp_path):
    machines = SimulatedHypervisor()
    with world(tmp_path, hypervisor=machines) as before:
        image = before.image()
        vm = before.vm(f"DISK=[IMAGE_ID={image}]\nTAG=x")
        done = before.vm()
        before.act(done, "terminate-hard", "DONE")
        uid, _ = before.user("alice")
        url, session = before.cloud.url, before.cloud.session
        kept = machines.machines()
    machines._machines.update(kept)  # a machine outlives the cloud's process
    with world(tmp_path, hypervisor=machines) as after:
        assert (after.cloud.url, after.cloud.session) == (url, session)
        info = after.one.vm.info(vm)
        assert (after.state(vm), info.USER_TEMPLATE) == ("RUNNING", {"TAG": "x"})
        assert after.state(done) == "DONE"
        assert [vm] == after.one.image.info(image).VMS.ID
        assert after.one.user.info(uid).NAME == "alice"
        assert after.vm() > done
        after.act(vm, "terminate-hard", "DONE")
        assert after.one.vn.info(0).USED_LEASES == 1


def test_a_machine_that_died_meanwhile_shows_as_poweroff(tmp_path):
    with world(tmp_path) as before:
        vm = before.vm()
    with world(tmp_path) as after:
        after.wait(vm, "POWEROFF")


STEPS = [
    ("prolog", "PROLOG", "RUNNING"),
    ("boot", "BOOT", "RUNNING"),
    ("destroy", "SHUTDOWN", "DONE"),
    ("epilog", "EPILOG", "DONE"),
]


def stopped_in(tmp_path, step, state):
    """A cloud that ended while a VM was in a passing state: the row is what a killed process leaves."""
    with world(tmp_path) as before:
        vm = before.vm() if state in ("SHUTDOWN", "EPILOG") else None
        before.hypervisor.hold(step)
        if vm is None:
            vm = before.vm(wait=state)
        else:
            before.act(vm, "terminate-hard", state)
        before.cloud.cloud.store.close()  # as if killed: what comes after is not written
        before.hypervisor.let_go(step)
    return vm


@pytest.mark.parametrize(("step", "state", "outcome"), STEPS)
def test_what_was_under_way_is_done_again(tmp_path, caplog, step, state, outcome):
    caplog.set_level(logging.CRITICAL)
    vm = stopped_in(tmp_path, step, state)
    with world(tmp_path) as after:
        after.wait(vm, outcome)


@pytest.mark.parametrize(("step", "state", "outcome"), STEPS)
def test_or_left_for_an_administrator_as_in_the_original(tmp_path, caplog, step, state, outcome):
    caplog.set_level(logging.CRITICAL)
    vm = stopped_in(tmp_path, step, state)
    with world(tmp_path, dataclasses.replace(QUICK, resume_in_flight=False)) as after:
        assert after.state(vm) == state
        after.one.vm.recover(vm, 1)
        after.wait(vm, outcome)


def test_an_image_that_was_being_copied_is_copied_again(tmp_path):
    with world(tmp_path, dataclasses.replace(QUICK, image_lock_time=60)) as before:
        image = before.one.image.allocate(f'NAME="i"\nPATH="{before.file()}"', 1, False)
        assert before.one.image.info(image).STATE == 4
        store = before.cloud.cloud.store
        locked = dataclasses.replace(store.images.get(image))
    with world(tmp_path) as after:
        after.cloud.cloud.store.images.save(locked)
    with world(tmp_path) as again:
        until("the image is READY", lambda: again.one.image.info(image).STATE == 1)


# ── faults ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def here(tmp_path):
    with world(tmp_path) as found:
        yield found


def test_a_lost_reply_was_executed(here):
    template = here.template()
    here.cloud.faults.lose_reply("one.template.instantiate")
    with pytest.raises(requests.ConnectionError):
        here.one.template.instantiate(template, "lost", True, "", False)
    assert [vm.NAME for vm in here.one.vmpool.info(-2, -1, -1, -1).VM] == ["lost"]


def test_a_dropped_connection_executes_nothing(here):
    template = here.template()
    here.cloud.faults.drop_connection("one.template.instantiate")
    with pytest.raises(requests.ConnectionError):
        here.one.template.instantiate(template, "lost", True, "", False)
    assert here.one.vmpool.info(-2, -1, -1, -1).VM == []


def test_a_request_can_be_executed_twice(here):
    here.cloud.faults.execute_twice("one.template.instantiate")
    vm = here.one.template.instantiate(here.template(), "twice", True, "", False)
    assert [item.ID for item in here.one.vmpool.info(-2, -1, -1, -1).VM] == [vm, vm - 1]


def test_a_call_can_be_delayed_or_fail(here):
    here.cloud.faults.delay("one.system.version", 0.2)
    started = time.monotonic()
    assert here.one.system.version() == "7.2.0"
    assert time.monotonic() - started >= 0.2
    here.cloud.faults.fail("*", 8192, "no room", times=2)
    for _ in range(2):
        with pytest.raises(pyone.OneInternalException, match="no room"):
            here.one.system.version()
    assert here.one.system.version() == "7.2.0"


@pytest.mark.parametrize("action", ["terminate-hard", "poweroff"])
def test_an_accepted_action_can_come_to_nothing(here, action):
    vm = here.vm()
    here.cloud.faults.fall_back(action)
    here.moves[vm].clear()
    here.one.vm.action(action, vm)
    until("it fell back", lambda: here.moves[vm][-1:] == ["RUNNING"])
    assert len(here.moves[vm]) == 2
    here.act(vm, "terminate-hard", "DONE")


def test_the_scheduler_can_stall_and_wedge(tmp_path):
    with world(tmp_path, dataclasses.replace(QUICK, scheduler_wedge=3)) as here:
        here.cloud.faults.stall_scheduler()
        vm = here.vm(wait="PENDING")
        here.cloud.faults.stall_scheduler(False)
        here.wait(vm, "RUNNING")
        held = [here.vm(hold=True) for _ in range(3)]
        here.cloud.faults.stall_scheduler()
        for one in held:
            here.one.vm.action("release", one)
        here.cloud.faults.clear()
        until("the wedge", lambda: here.cloud.scheduler._wedged)  # the original says nothing either
        assert {here.state(one) for one in held} == {"PENDING"}


def test_faults_over_the_wire_are_for_oneadmin(here):
    order = json.dumps({"kind": "fail", "method": "one.system.version", "code": 2048, "text": "x"})
    call = here.one._do_request
    assert call("mayfly.fault", (here.cloud.session, order))[0]
    with pytest.raises(pyone.OneActionException):
        here.one.system.version()
    here.user("alice")
    assert call("mayfly.fault", ("alice:pw", order))[2] == 512
    assert call("mayfly.fault", (here.cloud.session, '{"kind": "nonsense"}'))[2] == 4096
    assert call("mayfly.fault", (here.cloud.session, "nonsense"))[2] == 4096


# ── the daemon ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def home(tmp_path):
    yield tmp_path / "cloud"
    daemon.stop(tmp_path / "cloud")


def test_the_daemon(home):
    assert daemon.status(home) is None
    assert daemon.stop(home) is False
    started = daemon.start(home, "simulated", CloudSettings(host_cpus=3))
    assert daemon.status(home) == started
    one = pyone.OneServer(started.url, session=started.auth_path.read_text().strip())
    assert one.host.info(0).HOST_SHARE.TOTAL_CPU == 300
    assert started.auth_path.stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o777 == 0o700
    with pytest.raises(daemon.AlreadyRunning, match="runs on"):
        daemon.start(home, "simulated")
    assert daemon.stop(home) is True
    assert daemon.status(home) is None
    again = daemon.start(home, "simulated")
    assert (again.url, again.auth_path) == (started.url, started.auth_path)
    assert again.pid != started.pid


def test_a_killed_daemon_is_not_taken_for_a_running_one(home):
    started = daemon.start(home, "simulated")
    os.kill(started.pid, signal.SIGKILL)
    until("it is gone", lambda: daemon.status(home) is None)
    assert (home / "pid").exists()
    assert daemon.start(home, "simulated").pid != started.pid


def test_a_number_used_again_is_not_the_daemon(home):
    home.mkdir()
    (home / "endpoint").write_text("http://127.0.0.1:1/RPC2\n")
    (home / "pid").write_text(json.dumps({"pid": os.getpid(), "started": 1}))
    assert daemon.status(home) is None


def test_the_lock_refuses_a_second_one_even_before_the_first_answers(home):
    make_directories(home)
    with daemon._alone(home), pytest.raises(daemon.AlreadyRunning, match="another process holds"):
        daemon.start(home, "simulated")


def test_a_daemon_that_cannot_start_says_why(home):
    with pytest.raises(daemon.CloudNotStarted, match="no such hypervisor: xen"):
        daemon.start(home, "xen")
    make_directories(home)
    (home / "cloud.db").write_text("this is no database, and long enough to be seen as none" * 100)
    with pytest.raises(daemon.CloudNotStarted, match="not a database"):
        daemon.start(home, "simulated")
