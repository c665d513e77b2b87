"""OpenNebula's own names for where a VM is, and what each means to us. Pure.

Numbers and names are those of OpenNebula's XML-RPC reference and of pyone (a test compares the two).
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import assert_never


class State(IntEnum):
    """`STATE` of a VM."""

    INIT = 0
    PENDING = 1
    HOLD = 2
    ACTIVE = 3
    STOPPED = 4
    SUSPENDED = 5
    DONE = 6
    FAILED = 7
    POWEROFF = 8
    UNDEPLOYED = 9
    CLONING = 10
    CLONING_FAILURE = 11


class LcmState(IntEnum):
    """`LCM_STATE` of a VM, which says something only while its `STATE` is ACTIVE."""

    LCM_INIT = 0
    PROLOG = 1
    BOOT = 2
    RUNNING = 3
    MIGRATE = 4
    SAVE_STOP = 5
    SAVE_SUSPEND = 6
    SAVE_MIGRATE = 7
    PROLOG_MIGRATE = 8
    PROLOG_RESUME = 9
    EPILOG_STOP = 10
    EPILOG = 11
    SHUTDOWN = 12
    CANCEL = 13
    FAILURE = 14
    CLEANUP_RESUBMIT = 15
    UNKNOWN = 16
    HOTPLUG = 17
    SHUTDOWN_POWEROFF = 18
    BOOT_UNKNOWN = 19
    BOOT_POWEROFF = 20
    BOOT_SUSPENDED = 21
    BOOT_STOPPED = 22
    CLEANUP_DELETE = 23
    HOTPLUG_SNAPSHOT = 24
    HOTPLUG_NIC = 25
    HOTPLUG_SAVEAS = 26
    HOTPLUG_SAVEAS_POWEROFF = 27
    HOTPLUG_SAVEAS_SUSPENDED = 28
    SHUTDOWN_UNDEPLOY = 29
    EPILOG_UNDEPLOY = 30
    PROLOG_UNDEPLOY = 31
    BOOT_UNDEPLOY = 32
    HOTPLUG_PROLOG_POWEROFF = 33
    HOTPLUG_EPILOG_POWEROFF = 34
    BOOT_MIGRATE = 35
    BOOT_FAILURE = 36
    BOOT_MIGRATE_FAILURE = 37
    PROLOG_MIGRATE_FAILURE = 38
    PROLOG_FAILURE = 39
    EPILOG_FAILURE = 40
    EPILOG_STOP_FAILURE = 41
    EPILOG_UNDEPLOY_FAILURE = 42
    PROLOG_MIGRATE_POWEROFF = 43
    PROLOG_MIGRATE_POWEROFF_FAILURE = 44
    PROLOG_MIGRATE_SUSPEND = 45
    PROLOG_MIGRATE_SUSPEND_FAILURE = 46
    BOOT_UNDEPLOY_FAILURE = 47
    BOOT_STOPPED_FAILURE = 48
    PROLOG_RESUME_FAILURE = 49
    PROLOG_UNDEPLOY_FAILURE = 50
    DISK_SNAPSHOT_POWEROFF = 51
    DISK_SNAPSHOT_REVERT_POWEROFF = 52
    DISK_SNAPSHOT_DELETE_POWEROFF = 53
    DISK_SNAPSHOT_SUSPENDED = 54
    DISK_SNAPSHOT_REVERT_SUSPENDED = 55
    DISK_SNAPSHOT_DELETE_SUSPENDED = 56
    DISK_SNAPSHOT = 57
    DISK_SNAPSHOT_REVERT = 58
    DISK_SNAPSHOT_DELETE = 59
    PROLOG_MIGRATE_UNKNOWN = 60
    PROLOG_MIGRATE_UNKNOWN_FAILURE = 61
    DISK_RESIZE = 62
    DISK_RESIZE_POWEROFF = 63
    DISK_RESIZE_UNDEPLOYED = 64
    HOTPLUG_NIC_POWEROFF = 65
    HOTPLUG_RESIZE = 66
    HOTPLUG_SAVEAS_UNDEPLOYED = 67
    HOTPLUG_SAVEAS_STOPPED = 68


class Phase(StrEnum):
    """What a pair of states means to somebody who wants a running machine, or none."""

    WAITING = "waiting"
    """It has no host yet."""
    STARTING = "starting"
    RUNNING = "running"
    """The hypervisor has it. Its guest may be far from answering."""
    BUSY = "busy"
    """It is being worked on (a disk, a NIC, a snapshot), and goes back to where it was."""
    STOPPING = "stopping"
    OFF = "off"
    """It exists and does not run. A machine that crashed shows so too."""
    FAILED = "failed"
    """A step failed. It stays so until somebody terminates it (or an administrator recovers it)."""
    UNKNOWN = "unknown"
    """Its host does not report."""
    DONE = "done"


_STOPPING = frozenset(
    {
        LcmState.SAVE_STOP,
        LcmState.SAVE_SUSPEND,
        LcmState.EPILOG_STOP,
        LcmState.EPILOG,
        LcmState.SHUTDOWN,
        LcmState.CANCEL,
        LcmState.SHUTDOWN_POWEROFF,
        LcmState.CLEANUP_DELETE,
        LcmState.SHUTDOWN_UNDEPLOY,
        LcmState.EPILOG_UNDEPLOY,
    }
)

_ENDING = frozenset({LcmState.EPILOG, LcmState.SHUTDOWN, LcmState.CANCEL, LcmState.CLEANUP_DELETE})


def phase(state: State, lcm_state: LcmState) -> Phase:
    """What the pair means.

    >>> phase(State.ACTIVE, LcmState.BOOT_FAILURE)
    <Phase.FAILED: 'failed'>
    >>> phase(State.POWEROFF, LcmState.LCM_INIT)
    <Phase.OFF: 'off'>
    """
    match state:
        case State.INIT | State.PENDING | State.HOLD | State.CLONING:
            return Phase.WAITING
        case State.ACTIVE:
            return _active(lcm_state)
        case State.STOPPED | State.SUSPENDED | State.POWEROFF | State.UNDEPLOYED:
            return Phase.OFF
        case State.FAILED | State.CLONING_FAILURE:
            return Phase.FAILED
        case State.DONE:
            return Phase.DONE
        case _:
            assert_never(state)


def _active(lcm_state: LcmState) -> Phase:
    if lcm_state is LcmState.RUNNING:
        return Phase.RUNNING
    if lcm_state is LcmState.UNKNOWN:
        return Phase.UNKNOWN
    if lcm_state.name.endswith("FAILURE"):
        return Phase.FAILED
    if lcm_state in _STOPPING:
        return Phase.STOPPING
    if lcm_state.name.startswith(("HOTPLUG", "DISK_", "MIGRATE", "SAVE_MIGRATE")):
        return Phase.BUSY
    return Phase.STARTING


def ending(state: State, lcm_state: LcmState) -> bool:
    """Whether a VM in this pair is on its way to DONE (a power-off or a stop is not)."""
    return state is State.ACTIVE and lcm_state in _ENDING


def state_name(state: State, lcm_state: LcmState) -> str:
    """One name for the pair, as OpenNebula's own messages have it: the LCM_STATE while ACTIVE, else the STATE.

    >>> state_name(State.ACTIVE, LcmState.PROLOG), state_name(State.PENDING, LcmState.LCM_INIT)
    ('PROLOG', 'PENDING')
    """
    return lcm_state.name if state is State.ACTIVE else state.name
