"""What becomes of a VM: states, actions, refusals, failures, and what monitoring notices."""

import contextlib
import dataclasses

import pyone
import pytest

from orchestrator.localcloud.actions import LEGAL
from orchestrator.localcloud.hypervisors.simulated import SimulatedHypervisor
from tests.conformance.localcloud_world import QUICK, until, world


@pytest.fixture
def here(tmp_path):
    with world(tmp_path) as found:
        yield found
        found.hypervisor.zombies = False


def test_from_pending_to_done(here):
    vm = here.one.template.instantiate(here.template(), "life", False, "TAG=x", False)
    here.wait(vm, "RUNNING")
    assert here.moves[vm] == ["LCM_INIT", "PROLOG", "BOOT", "RUNNING"]
    assert here.hypervisor.machines()[vm].name == "life"
    here.act(vm, "terminate-hard", "DONE")
    assert here.moves[vm][4:] == ["SHUTDOWN", "EPILOG", "DONE"]
    assert here.hypervisor.machines() == {}
    info = here.one.vm.info(vm)
    assert info.ETIME > 0
    assert info.USER_TEMPLATE == {"TAG": "x"}
    [record] = info.HISTORY_RECORDS.HISTORY
    assert (record.HOSTNAME, record.ACTION, record.UID) == ("localhost", 28, 0)
    assert 0 < record.PSTIME <= record.RSTIME <= record.RETIME <= record.ESTIME <= record.ETIME


@pytest.mark.parametrize(
    ("action", "states"),
    [
        ("poweroff", ["SHUTDOWN_POWEROFF", "POWEROFF"]),
        ("poweroff-hard", ["SHUTDOWN_POWEROFF", "POWEROFF"]),
        ("undeploy", ["SHUTDOWN_UNDEPLOY", "EPILOG_UNDEPLOY", "UNDEPLOYED"]),
        ("suspend", ["SAVE_SUSPEND", "SUSPENDED"]),
        ("stop", ["SAVE_STOP", "EPILOG_STOP", "STOPPED"]),
        ("terminate", ["SHUTDOWN", "EPILOG", "DONE"]),
    ],
)
def test_the_ways_out_of_running(here, action, states):
    vm = here.vm()
    here.moves[vm].clear()
    here.act(vm, action, states[-1])
    assert here.moves[vm] == states
    assert vm not in here.hypervisor.machines()


@pytest.mark.parametrize(
    ("action", "states"),
    [
        ("poweroff-hard", ["BOOT_POWEROFF", "RUNNING"]),
        ("suspend", ["BOOT_SUSPENDED", "RUNNING"]),
        ("undeploy-hard", ["PENDING", "LCM_INIT", "PROLOG_UNDEPLOY", "BOOT_UNDEPLOY", "RUNNING"]),
        ("stop", ["PENDING", "LCM_INIT", "PROLOG_RESUME", "BOOT_STOPPED", "RUNNING"]),
    ],
)
def test_and_back_again(here, action, states):
    vm = here.vm()
    here.act(vm, action, "POWEROFF", "SUSPENDED", "UNDEPLOYED", "STOPPED")
    here.moves[vm].clear()
    here.act(vm, "resume", "RUNNING")
    assert here.moves[vm] == states
    assert vm in here.hypervisor.machines()


def test_an_accepted_action_is_not_visible_at_once(tmp_path):
    with world(tmp_path, dataclasses.replace(QUICK, visible_delay=(0.3, 0.3))) as here:
        vm = here.vm()
        assert here.one.vm.action("poweroff-hard", vm) == vm
        assert here.state(vm) == "RUNNING"
        here.wait(vm, "POWEROFF")
        here.one.vm.action("resume", vm)
        assert here.state(vm) == "POWEROFF"
        here.wait(vm, "RUNNING")


@pytest.mark.parametrize("action", ["terminate-hard", "terminate"])
@pytest.mark.parametrize("state", ["PROLOG", "BOOT"])
def test_terminate_is_refused_while_a_vm_starts(here, action, state):
    here.hypervisor.hold(state.lower())
    vm = here.vm(wait=state)
    with pytest.raises(pyone.OneActionException) as refused:
        here.one.vm.action(action, vm)
    assert str(refused.value) == (
        f'[one.vm.action] Error performing action "{action}": Could not terminate VM {vm}, wrong state {state}.'
    )
    here.hypervisor.let_go(state.lower())
    here.wait(vm, "RUNNING")
    here.act(vm, action, "DONE")


def test_terminate_is_refused_during_shutdown_and_terminate_hard_is_not(here):
    here.hypervisor.ignores_power_button = True
    vm = here.vm()
    here.act(vm, "terminate", "SHUTDOWN")
    with pytest.raises(pyone.OneActionException, match=f"Could not terminate VM {vm}, wrong state SHUTDOWN"):
        here.one.vm.action("terminate", vm)
    here.act(vm, "terminate-hard", "DONE")


@pytest.mark.parametrize("action", sorted(LEGAL))
def test_actions_on_a_powered_off_vm(here, action):
    vm = here.vm()
    here.act(vm, "poweroff-hard", "POWEROFF")
    if "POWEROFF" in LEGAL[action]:
        assert here.one.vm.action(action, vm) == vm
    else:
        with pytest.raises(pyone.OneActionException) as refused:
            here.one.vm.action(action, vm)
        assert str(refused.value) == (
            f'[one.vm.action] Error performing action "{action}": This action is not available for state POWEROFF'
        )


def test_a_vm_is_done_once_however_often_it_was_told_to_end(tmp_path):
    """Each is accepted while the first is not visible yet; none may bring a VM back that is DONE by its turn."""
    with world(tmp_path, dataclasses.replace(QUICK, visible_delay=(0.2, 0.2))) as here:
        vm = here.vm()
        here.moves[vm].clear()
        while here.state(vm) == "RUNNING":
            with contextlib.suppress(pyone.OneException):
                here.one.vm.action("terminate-hard", vm)
        here.wait(vm, "DONE")
        other = here.vm()  # what was still to come has come by the time that another VM was ended
        here.act(other, "terminate-hard", "DONE")
        assert here.moves[vm].count("DONE") == 1
        assert here.moves[vm][-1] == "DONE"


@pytest.mark.parametrize("action", ["bogus", "delete", "shutdown", ""])
def test_unknown_actions(here, action):
    vm = here.vm(hold=True)
    with pytest.raises(pyone.OneActionException) as refused:
        here.one.vm.action(action, vm)
    assert str(refused.value) == f'[one.vm.action] Action "{action}" is not supported'


def test_a_done_vm(here):
    vm = here.vm()
    address = here.one.vm.info(vm).TEMPLATE["NIC"]["IP"]
    here.act(vm, "terminate-hard", "DONE")
    assert here.one.vm.action("terminate", vm) == vm
    with pytest.raises(pyone.OneActionException, match="not available for state DONE"):
        here.one.vm.action("resume", vm)
    other = here.vm()
    assert here.one.vm.info(vm).TEMPLATE["NIC"]["IP"] == address
    assert here.one.vm.info(other).TEMPLATE["NIC"]["IP"] == address


def test_hold_release_and_terminate_without_a_machine(here):
    vm = here.vm(hold=True)
    assert here.one.vm.info(vm).HISTORY_RECORDS.HISTORY == []
    here.one.vm.action("release", vm)
    here.wait(vm, "RUNNING")
    held = here.vm(hold=True)
    here.one.vm.action("terminate", held)
    assert here.state(held) == "DONE"


def test_deploy_goes_past_the_scheduler(here):
    here.cloud.faults.stall_scheduler()
    vm = here.vm(wait="PENDING")
    assert here.one.vm.deploy(vm, 0, False, 0, "") == vm
    here.wait(vm, "RUNNING")
    assert here.one.vm.info(vm).HISTORY_RECORDS.HISTORY[0].PLAN_ID == -2
    with pytest.raises(pyone.OneActionException, match=f"Could not deploy VM {vm}, wrong state RUNNING"):
        here.one.vm.deploy(vm, 0, False, -1, "")
    with pytest.raises(pyone.OneNoExistsException, match=r"Error getting host \[9\]"):
        here.one.vm.deploy(vm, 9, False, -1, "")


def test_what_does_not_fit_stays_pending_and_says_why(tmp_path):
    knobs = dataclasses.replace(QUICK, host_cpus=1, host_memory_mb=256)
    with world(tmp_path, knobs) as here:
        large = here.vm("CPU=2", wait="PENDING")
        until("a reason", lambda: "SCHED_MESSAGE" in here.one.vm.info(large).USER_TEMPLATE)
        assert here.one.vm.info(large).USER_TEMPLATE["SCHED_MESSAGE"].endswith(": [HOST] Not enough CPU on hosts: 0")
        many = here.vm("MEMORY=512", wait="PENDING")
        until("a reason", lambda: "Not enough MEMORY" in here.one.vm.info(many).USER_TEMPLATE.get("SCHED_MESSAGE", ""))
        elsewhere = here.vm('SCHED_REQUIREMENTS="NAME = \\"other\\""', wait="PENDING")
        until(
            "a reason",
            lambda: (
                "No host meets SCHED_REQUIREMENTS" in here.one.vm.info(elsewhere).USER_TEMPLATE.get("SCHED_MESSAGE", "")
            ),
        )
        first = here.vm("CPU=0.6")
        second = here.vm("CPU=0.6", wait="PENDING")
        until("a reason", lambda: "SCHED_MESSAGE" in here.one.vm.info(second).USER_TEMPLATE)
        assert here.one.host.info(0).HOST_SHARE.CPU_USAGE == 60
        here.act(first, "terminate-hard", "DONE")
        here.wait(second, "RUNNING")
        assert "SCHED_MESSAGE" not in here.one.vm.info(second).USER_TEMPLATE


def test_a_machine_that_dies_shows_as_poweroff_only_after_a_delay(tmp_path):
    with world(tmp_path, dataclasses.replace(QUICK, crash_visible_after=0.5)) as here:
        vm = here.vm()
        here.hypervisor.crash(vm)
        assert here.state(vm) == "RUNNING"
        here.wait(vm, "POWEROFF")
        here.act(vm, "resume", "RUNNING")


@pytest.mark.parametrize(("step", "state"), [("prolog", "PROLOG_FAILURE"), ("boot", "BOOT_FAILURE")])
def test_failures_keep_their_reason_and_are_terminated(here, step, state):
    here.hypervisor.fail_next(step, "no " + "x" * 300)
    vm = here.vm(wait=state)
    error = here.one.vm.info(vm).USER_TEMPLATE["ERROR"]
    assert f"{step}: no xxx" in error and error.endswith("... see more details in VM log")
    for action in ("resume", "poweroff", "undeploy"):
        with pytest.raises(pyone.OneActionException, match=f"not available for state {state}"):
            here.one.vm.action(action, vm)
    here.act(vm, "terminate", "DONE")
    assert here.one.vm.info(vm).HISTORY_RECORDS.HISTORY[-1].ACTION == 13


def test_a_driver_that_breaks_is_a_failure_too(tmp_path):
    def guest(spec):
        raise RuntimeError("no guest today")

    with world(tmp_path, hypervisor=SimulatedHypervisor(guest)) as here:
        vm = here.vm(wait="BOOT_FAILURE")
        assert here.one.vm.info(vm).USER_TEMPLATE["ERROR"].endswith(": RuntimeError: no guest today")
        here.act(vm, "terminate-hard", "DONE")
        assert here.hypervisor.machines() == {}


@pytest.mark.parametrize("step", ["prolog", "boot"])
def test_retry_after_a_failure_leaves_the_error_there(here, step):
    here.hypervisor.fail_next(step)
    vm = here.vm(wait=f"{step.upper()}_FAILURE")
    here.one.vm.recover(vm, 2)
    here.wait(vm, "RUNNING")
    assert "simulated failure" in here.one.vm.info(vm).USER_TEMPLATE["ERROR"]


@pytest.mark.parametrize("action", ["terminate-hard", "poweroff-hard", "undeploy-hard"])
def test_a_zombie_is_running_again_without_an_error(here, action):
    here.hypervisor.zombies = True
    vm = here.vm()
    here.moves[vm].clear()
    here.one.vm.action(action, vm)
    until("it fell back", lambda: len(here.moves[vm]) == 2)
    assert here.moves[vm][0].startswith("SHUTDOWN") and here.moves[vm][1] == "RUNNING"
    assert "ERROR" not in here.one.vm.info(vm).USER_TEMPLATE
    here.hypervisor.zombies = False
    here.act(vm, "terminate-hard", "DONE")


def test_a_guest_that_does_not_react_is_running_again(here):
    here.hypervisor.ignores_power_button = True
    vm = here.vm()
    here.moves[vm].clear()
    here.one.vm.action("poweroff", vm)
    until("it fell back", lambda: here.moves[vm] == ["SHUTDOWN_POWEROFF", "RUNNING"])


def test_a_failed_resume_is_poweroff_again(here):
    vm = here.vm()
    here.act(vm, "poweroff-hard", "POWEROFF")
    here.hypervisor.fail_next("boot")
    here.moves[vm].clear()
    here.one.vm.action("resume", vm)
    until("it fell back", lambda: here.moves[vm] == ["BOOT_POWEROFF", "POWEROFF"])


def test_recover_delete_works_while_a_vm_starts(here):
    here.hypervisor.hold("boot")
    vm = here.vm(wait="BOOT")
    assert here.one.vm.recover(vm, 3) == vm
    here.hypervisor.let_go("boot")
    here.wait(vm, "DONE")
    assert here.moves[vm][-2:] == ["CLEANUP_DELETE", "DONE"]
    assert here.hypervisor.machines() == {}
    assert here.one.vnpool.info(-2, -1, -1).VNET[-1].USED_LEASES == 0


@pytest.mark.parametrize(("operation", "state"), [(0, "BOOT_FAILURE"), (1, "RUNNING")])
def test_recover_settles_what_hangs(here, operation, state):
    here.hypervisor.hold("boot")
    vm = here.vm(wait="BOOT")
    here.one.vm.recover(vm, operation)
    assert here.state(vm) == state
    here.hypervisor.let_go("boot")
    until("the driver answered", lambda: vm in here.hypervisor.machines())
    assert here.state(vm) == state


def test_recover_recreates_and_refuses(here):
    vm = here.vm()
    here.moves[vm].clear()
    here.one.vm.recover(vm, 4)
    until("it runs again", lambda: here.moves[vm][-1:] == ["RUNNING"])
    assert here.moves[vm] == ["CLEANUP_RESUBMIT", "PENDING", "LCM_INIT", "PROLOG", "BOOT", "RUNNING"]
    with pytest.raises(pyone.OneApiException, match="Wrong recovery operation code"):
        here.one.vm.recover(vm, 9)
    here.act(vm, "poweroff-hard", "POWEROFF")
    with pytest.raises(pyone.OneActionException, match="Cannot delete-recreate a powered off VM"):
        here.one.vm.recover(vm, 4)
    with pytest.raises(pyone.OneActionException, match=f"Could not perform a retry on VM {vm}, wrong state POWEROFF"):
        here.one.vm.recover(vm, 2)


@pytest.mark.parametrize("action", ["reboot", "reboot-hard"])
def test_a_reboot_stays_running(here, action):
    vm = here.vm()
    boots = (here.directory / "cloud" / "vms" / str(vm) / "console.log").read_text
    here.one.vm.action(action, vm)
    until("a second boot", lambda: boots().count("starts") == 2)
    until("the machine runs", lambda: vm in here.hypervisor.machines())
    assert here.state(vm) == "RUNNING"


def test_figures_of_running_vms(here):
    vm = here.vm()
    until("figures", lambda: here.one.vm.monitoring(vm).MONITORING)
    sample = here.one.vm.monitoring(vm).MONITORING[-1]
    assert (int(sample.ID), int(sample.MEMORY)) == (vm, 65536)
    assert int(here.one.vm.info(vm).MONITORING.MEMORY) == 65536
    here.act(vm, "terminate-hard", "DONE")
    assert here.one.vm.monitoring(vm).MONITORING
    assert len(here.one.vmpool.monitoring(-2, 0).MONITORING) == 1


def test_console_logs_of_the_newest_done_vms_are_kept(tmp_path):
    with world(tmp_path, dataclasses.replace(QUICK, console_logs_kept=1, done_vms_kept=2)) as here:
        vms = [here.vm() for _ in range(3)]
        for vm in vms:
            here.act(vm, "terminate-hard", "DONE")
        logs = here.directory / "cloud" / "vms"
        until("one log", lambda: [path.name for path in logs.iterdir()] == [str(vms[-1])])
        assert "starts" in (logs / str(vms[-1]) / "console.log").read_text()
        with pytest.raises(pyone.OneNoExistsException):
            here.one.vm.info(vms[0])
