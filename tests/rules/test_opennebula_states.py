"""OpenNebula's states: the same names and numbers as pyone's, each with a meaning."""

import doctest

import pyone
import pytest

from orchestrator.opennebula import states
from orchestrator.opennebula.states import LcmState, Phase, State, ending, phase, state_name


def test_names_and_numbers_are_pyones():
    assert {state.name: state.value for state in State} == {state.name: state.value for state in pyone.VM_STATE}
    assert {state.name: state.value for state in LcmState} == {state.name: state.value for state in pyone.LCM_STATE}


@pytest.mark.parametrize("state", State)
def test_every_state_means_something(state):
    assert phase(state, LcmState.LCM_INIT) in Phase


@pytest.mark.parametrize("lcm_state", LcmState)
def test_every_active_state_means_something_else_than_off_or_done(lcm_state):
    assert phase(State.ACTIVE, lcm_state) not in (Phase.OFF, Phase.DONE, Phase.WAITING)


@pytest.mark.parametrize("lcm_state", [state for state in LcmState if state.name.endswith("FAILURE")])
def test_every_failure_is_one(lcm_state):
    assert phase(State.ACTIVE, lcm_state) is Phase.FAILED


@pytest.mark.parametrize(
    ("meaning", "names"),
    [
        (Phase.RUNNING, "RUNNING"),
        (Phase.UNKNOWN, "UNKNOWN"),
        (Phase.STARTING, "LCM_INIT PROLOG BOOT BOOT_POWEROFF BOOT_SUSPENDED PROLOG_UNDEPLOY PROLOG_RESUME"),
        (Phase.STARTING, "CLEANUP_RESUBMIT BOOT_UNKNOWN"),
        (Phase.STOPPING, "SHUTDOWN EPILOG SHUTDOWN_POWEROFF SAVE_STOP SAVE_SUSPEND EPILOG_STOP CLEANUP_DELETE"),
        (Phase.BUSY, "HOTPLUG HOTPLUG_NIC HOTPLUG_SAVEAS_POWEROFF DISK_SNAPSHOT DISK_RESIZE MIGRATE SAVE_MIGRATE"),
    ],
)
def test_what_an_active_state_means(meaning, names):
    assert {phase(State.ACTIVE, LcmState[name]) for name in names.split()} == {meaning}


def test_only_what_leads_to_done_is_ending():
    assert {state.name for state in LcmState if ending(State.ACTIVE, state)} == {
        "SHUTDOWN",
        "EPILOG",
        "CANCEL",
        "CLEANUP_DELETE",
    }
    assert not ending(State.POWEROFF, LcmState.LCM_INIT)


def test_the_lcm_state_names_an_active_vm_only():
    assert state_name(State.ACTIVE, LcmState.BOOT_FAILURE) == "BOOT_FAILURE"
    assert state_name(State.POWEROFF, LcmState.LCM_INIT) == "POWEROFF"


def test_the_examples_hold():
    assert doctest.testmod(states).failed == 0
