"""The traps of a real OpenNebula, and outages, as faults that this cloud plays."""

import dataclasses
import time
import xml.parsers.expat
import xmlrpc.client

import pyone
import pytest
import requests

from orchestrator.localcloud.hypervisors import machine_faults
from orchestrator.localcloud.knobs import CloudSettings
from orchestrator.localcloud.troubles import KINDS
from tests.conformance.localcloud_world import QUICK, until, world

TWO_HOSTS = dataclasses.replace(QUICK, hosts=2, unknown_after=0.1)


@pytest.fixture
def here(tmp_path):
    with world(tmp_path, TWO_HOSTS) as found:
        yield found
        found.hypervisor.zombies = False


# ── the wire ────────────────────────────────────────────────────────────────────────────────────────────────────────


def body(here, method="one.system.version", timeout=10.0):
    """The raw answer to a call without arguments."""
    text = f"<methodCall><methodName>{method}</methodName><params><param><value><string>{here.cloud.session}</string>"
    return requests.post(here.cloud.url, data=f"{text}</value></param></params></methodCall>", timeout=timeout)


@pytest.mark.parametrize("status", [500, 502, 503])
def test_an_http_error_executes_nothing(here, status):
    template = here.template()
    here.cloud.inject({"kind": "http_error", "method": "one.template.instantiate", "status": status})
    with pytest.raises(Exception, match=str(status)):
        here.one.template.instantiate(template, "no", True, "", False)
    assert here.one.vmpool.info(-2, -1, -1, -1).VM == []
    here.cloud.faults.http_error("*", status)
    answer = body(here)
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "text/html")


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("garbage", (xml.parsers.expat.ExpatError, UnicodeError)),
        ("cut", requests.exceptions.ChunkedEncodingError),
        ("html", xmlrpc.client.ResponseError),
    ],
)
def test_a_garbled_reply_was_executed(here, how, error):
    template = here.template()
    here.cloud.inject({"kind": "garble", "method": "one.template.instantiate", "how": how})
    with pytest.raises(error):
        here.one.template.instantiate(template, "yes", True, "", False)
    assert [vm.NAME for vm in here.one.vmpool.info(-2, -1, -1, -1).VM] == ["yes"]


def test_a_call_can_hang_and_executes_nothing(here):
    template = here.template()
    here.cloud.inject({"kind": "hang", "method": "one.template.instantiate", "seconds": 0.1})
    with pytest.raises(requests.ConnectionError):
        here.one.template.instantiate(template, "no", True, "", False)
    assert here.one.vmpool.info(-2, -1, -1, -1).VM == []


def test_an_outage_without_an_answer_lasts_until_it_is_cleared(here):
    here.cloud.inject({"kind": "outage", "how": "hang"})
    with pytest.raises(requests.Timeout):
        body(here, timeout=0.2)
    assert here.one._do_request("mayfly.fault", (here.cloud.session, '{"kind": "clear"}'))[0]
    assert here.one.system.version() == "7.2.0"


def test_an_outage_ends_by_itself(here):
    here.cloud.inject({"kind": "outage", "how": "http_error", "status": 502, "seconds": 0.3})
    started = time.monotonic()
    assert body(here).status_code == 502
    until("it is over", lambda: body(here).status_code == 200)
    assert time.monotonic() - started >= 0.29


@pytest.mark.parametrize("how", ["reset", "garbage"])
def test_other_outages(here, how):
    here.cloud.inject({"kind": "outage", "how": how})
    with pytest.raises((requests.ConnectionError, xml.parsers.expat.ExpatError, UnicodeError)):
        here.one.system.version()
    here.cloud.inject({"kind": "clear"})
    assert here.one.system.version() == "7.2.0"


@pytest.mark.parametrize(
    "order",
    [
        {"kind": "outage", "how": "sulk"},
        {"kind": "garble", "method": "*", "how": "sulk"},
        {"kind": "http_error", "method": "*", "status": 42},
        {"kind": "hang", "method": "*"},
        {"kind": "unreachable_host", "host": 9},
        {"kind": "unreachable_host"},
        {"kind": "power_off", "vm": 9},
        {"kind": "fail_step", "step": "sulk"},
        {"kind": "takes", "step": "boot", "seconds": "long"},
        {"kind": "sulk"},
        ["clear"],
    ],
)
def test_what_is_no_fault_is_refused(here, order):
    with pytest.raises(ValueError):
        here.cloud.inject(order)


def test_every_fault_of_a_machine_is_known():
    assert machine_faults.KINDS < KINDS


# ── actions ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("action", "state"), [("terminate-hard", "SHUTDOWN"), ("poweroff", "SHUTDOWN_POWEROFF")])
def test_a_vm_can_be_stuck_until_it_is_recovered(here, action, state):
    vm = here.vm()
    here.cloud.inject({"kind": "stick", "method": action})
    here.act(vm, action, state)
    until("the machine is off", lambda: vm not in here.hypervisor.machines())
    for other in ("terminate-hard", "terminate", "poweroff-hard", "resume"):
        with pytest.raises(pyone.OneActionException):
            here.one.vm.action(other, vm)
    assert here.state(vm) == state
    here.one.vm.recover(vm, 3)
    here.wait(vm, "DONE")


@pytest.mark.parametrize(("operation", "states"), [(0, ["RUNNING", "POWEROFF"]), (1, ["EPILOG", "DONE"])])
def test_what_recover_makes_of_a_stuck_vm(here, operation, states):
    vm = here.vm()
    here.cloud.faults.stick("terminate-hard")
    here.act(vm, "terminate-hard", "SHUTDOWN")
    here.moves[vm].clear()
    here.one.vm.recover(vm, operation)
    here.wait(vm, states[-1])
    assert here.moves[vm] == states


def test_a_stuck_vm_is_stuck_after_a_restart_too(tmp_path):
    with world(tmp_path) as before:
        vm = before.vm()
        before.cloud.faults.stick("terminate-hard")
        before.act(vm, "terminate-hard", "SHUTDOWN")
    with world(tmp_path) as after:
        assert after.state(vm) == "SHUTDOWN"
        with pytest.raises(pyone.OneActionException):
            after.one.vm.action("terminate-hard", vm)
        after.one.vm.recover(vm, 1)
        after.wait(vm, "DONE")


def test_a_wedged_scheduler_places_nothing_any_more(here):
    here.cloud.inject({"kind": "wedge_scheduler", "pending": 2})
    first = here.vm()
    here.cloud.faults.stall_scheduler()
    vms = [here.vm(wait="PENDING") for _ in range(2)]
    here.cloud.faults.stall_scheduler(False)
    until("the wedge", lambda: here.cloud.scheduler._wedged)
    here.cloud.inject({"kind": "clear"})
    assert {here.state(vm) for vm in vms} == {"PENDING"}
    assert here.state(first) == "RUNNING"
    here.one.vm.deploy(vms[0], 0, False, -1, "")
    here.wait(vms[0], "RUNNING")


# ── hosts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def host_state(here, host):
    return int(here.one.host.info(host).STATE)


def on(here, host):
    """A VM that runs there."""
    return here.vm(f'SCHED_REQUIREMENTS="ID = {host}"')


def cut(here, host, unreachable=True):
    here.cloud.inject({"kind": "unreachable_host", "host": host, "unreachable": unreachable})


def test_there_can_be_several_hosts(here):
    assert [host.NAME for host in here.one.hostpool.info().HOST] == ["localhost-1", "localhost"]
    vm = on(here, 1)
    assert here.one.vm.info(vm).HISTORY_RECORDS.HISTORY[-1].HOSTNAME == "localhost-1"


def test_vms_of_an_unreachable_host_are_unknown_and_run_again_when_it_is_back(here):
    away, near = on(here, 1), on(here, 0)
    cut(here, 1)
    here.wait(away, "UNKNOWN")
    assert (host_state(here, 1), host_state(here, 0), here.state(near)) == (3, 2, "RUNNING")
    elsewhere = here.vm()
    assert here.one.vm.info(elsewhere).HISTORY_RECORDS.HISTORY[-1].HID == 0
    cut(here, 1, False)
    here.wait(away, "RUNNING")
    until("the host is MONITORED", lambda: host_state(here, 1) == 2)
    here.act(away, "terminate-hard", "DONE")


def test_a_machine_that_died_on_an_unreachable_host_is_poweroff_when_it_is_back(here):
    vm = on(here, 1)
    cut(here, 1)
    here.wait(vm, "UNKNOWN")
    here.cloud.inject({"kind": "power_off", "vm": vm})
    cut(here, 1, False)
    here.wait(vm, "POWEROFF")


def test_poweroff_on_an_unreachable_host_shows_running_again(here):
    vm = on(here, 1)
    cut(here, 1)
    here.wait(vm, "UNKNOWN")
    here.moves[vm].clear()
    here.one.vm.action("poweroff", vm)
    until("it is UNKNOWN again", lambda: len(here.moves[vm]) == 3)
    assert here.moves[vm] == ["SHUTDOWN_POWEROFF", "RUNNING", "UNKNOWN"]
    assert vm in here.hypervisor.machines()


@pytest.mark.parametrize(("action", "state"), [("terminate-hard", "SHUTDOWN"), ("poweroff-hard", "SHUTDOWN_POWEROFF")])
@pytest.mark.parametrize("operation", [0, 3])
def test_hard_actions_on_an_unreachable_host_are_stuck_for_good(here, action, state, operation):
    vm = on(here, 1)
    cut(here, 1)
    here.wait(vm, "UNKNOWN")
    here.act(vm, action, state)
    cut(here, 1, False)
    until("the host is MONITORED", lambda: host_state(here, 1) == 2)
    with pytest.raises(pyone.OneActionException):
        here.one.vm.action("terminate-hard", vm)
    assert here.state(vm) == state
    here.one.vm.recover(vm, operation)
    here.wait(vm, "RUNNING" if operation == 0 else "DONE")
    assert (vm in here.hypervisor.machines()) == (operation == 0)


@pytest.mark.parametrize("operation", [0, 1, 2])
def test_recover_settles_nothing_in_a_vm_that_is_unknown(here, operation):
    vm = on(here, 1)
    cut(here, 1)
    here.wait(vm, "UNKNOWN")
    assert here.one.vm.recover(vm, operation) == vm
    assert here.state(vm) == "UNKNOWN"
    here.one.vm.recover(vm, 3)
    here.wait(vm, "DONE")
    assert vm in here.hypervisor.machines()  # nobody could end it: the original calls such a machine a zombie
    cut(here, 1, False)
    until("it is ended when its host is back", lambda: vm not in here.hypervisor.machines())


def test_what_starts_on_an_unreachable_host_fails(here):
    cut(here, 1)
    vm = here.vm(hold=True)
    here.one.vm.deploy(vm, 1, False, -1, "")
    here.wait(vm, "PROLOG_FAILURE")
    assert "No route to host" in here.one.vm.info(vm).USER_TEMPLATE["ERROR"]
    here.one.vm.recover(vm, 3)
    here.wait(vm, "DONE")


def test_an_unreachable_host_stays_so_after_a_restart(tmp_path):
    with world(tmp_path, TWO_HOSTS) as before:
        cut(before, 1)
        until("the host is in ERROR", lambda: host_state(before, 1) == 3)
    with world(tmp_path, TWO_HOSTS) as after:
        assert host_state(after, 1) == 3
        cut(after, 1, False)
        until("the host is MONITORED", lambda: host_state(after, 1) == 2)


# ── machines and drivers ────────────────────────────────────────────────────────────────────────────────────────────


def test_faults_of_machines_and_drivers_over_the_wire(here):
    vm = here.vm()
    here.cloud.inject({"kind": "power_off", "vm": vm})
    here.wait(vm, "POWEROFF")
    here.cloud.inject({"kind": "fail_step", "step": "boot", "text": "no fuel"})
    failed = here.vm(wait="BOOT_FAILURE")
    assert "no fuel" in here.one.vm.info(failed).USER_TEMPLATE["ERROR"]
    here.cloud.inject({"kind": "hold", "step": "boot"})
    held = here.vm(wait="BOOT")
    here.cloud.inject({"kind": "let_go", "step": "boot"})
    here.wait(held, "RUNNING")
    here.cloud.inject({"kind": "zombies", "on": True})
    here.moves[held].clear()
    here.one.vm.action("terminate-hard", held)
    until("it fell back", lambda: here.moves[held] == ["SHUTDOWN", "RUNNING"])


def test_the_times_of_the_real_one():
    assert CloudSettings.like_the_real_one().unknown_after == 163


def test_a_machine_that_stands_still_says_why(here):
    vm = here.vm()
    here.cloud.inject({"kind": "pause", "vm": vm, "because": "io-error (no space left on the host's disk)"})
    error = until("an ERROR", lambda: here.one.vm.info(vm).USER_TEMPLATE.get("ERROR"))
    assert error.endswith(": Paused by simulated: io-error (no space left on the host's disk)")
    assert here.state(vm) == "RUNNING"
    here.cloud.inject({"kind": "pause", "vm": vm, "because": ""})
    here.act(vm, "terminate-hard", "DONE")
