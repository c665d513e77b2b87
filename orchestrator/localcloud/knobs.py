"""How the local cloud behaves: its settings, each with what a real OpenNebula 7.2.0 has beside it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CloudSettings:
    """All times in seconds. The defaults are those that a developer wants; `like_the_real_one` are the real ones."""

    scheduler_interval: float = 0.05
    """Between two looks at the pending VMs. Real: a timer of 5 s."""
    scheduler_window: float = 0.0
    """How old the oldest pending VM must be before it is placed. Real: SCHED_MAX_WND_TIME 10 s."""
    scheduler_window_length: int = 7
    """That many pending VMs are placed at once, whatever their age. Real: SCHED_MAX_WND_LENGTH 7."""
    scheduler_wedge: int = 0
    """From that many pending VMs on, the scheduler stops for good, without a word; 0: never. Real: between 100 and
    200."""
    visible_delay: tuple[float, float] = (0.02, 0.06)
    """How long an accepted action stays invisible: info still shows the old state. Real: 20 to 60 ms."""
    passing_time: float = 0.01
    """How long a step lasts at least in which this cloud has nothing to do: LCM_INIT, EPILOG_STOP, PROLOG_UNDEPLOY
    and the like. Real: up to seconds, as files are moved."""
    monitor_interval: float = 1.0
    """Between two looks at the machines. Real: 5 s for the state, 30 s for figures."""
    figures_interval: float = 5.0
    """Between two samples of CPU, memory and network figures. Real: 30 s."""
    crash_visible_after: float = 2.0
    """How long a dead machine still counts as RUNNING before it shows as POWEROFF. Real: 30 s (5 missed reports)."""
    shutdown_timeout: float = 60.0
    """How long a guest may take to power itself off before `terminate` and `poweroff` fall back to RUNNING. Real: about
    180 s by default in the drivers."""
    shutdown_poll: float = 0.2
    """Between two looks whether a guest powered itself off. Real: 1 s or more."""
    image_lock_time: float = 0.0
    """How long at least a new image stays LOCKED. Real: 1 s for 430 MB."""
    driver_threads: int = 16
    """How many slow things (prolog, boot, epilog, image copies) happen at once. Real: 15, but one boot at a time a
    host."""
    resume_in_flight: bool = True
    """Whether what was under way when the cloud stopped is done again when it starts. Real: no; such VMs stay where
    they are until an administrator's `one.vm.recover`."""
    unknown_after: float = 2.0
    """How long a host is unreachable until it shows as ERROR, and its VMs as UNKNOWN. Real: 163 s seen
    (MONITORING_INTERVAL_HOST 180 s)."""
    hosts: int = 1
    """How many hosts there are at least, all of them this machine. Real: what the administrator adds."""
    host_cpus: float = 0.0
    """Cores of host 0; 0: as many as the machine has (a thousand with the simulated hypervisor)."""
    host_memory_mb: int = 0
    """Memory of host 0; 0: as the machine has (4 TB with the simulated hypervisor)."""
    guest_ssh_port: int = 2222
    """The port of a NIC's address that leads to the guest's port 22. Real: 22; lower ports need privileges here."""
    states_mb: int = 4096
    """What saved states of machines may take on the disk together, MB; 0: none are made, and every machine is booted.
    Real: a machine is always booted."""
    console_logs_kept: int = 50
    """Of how many DONE VMs the console log is kept. Real: not offered by the API at all."""
    done_vms_kept: int = 2000
    """How many DONE VMs one.vm.info still knows. Real: all of them."""

    @classmethod
    def like_the_real_one(cls) -> CloudSettings:
        """The times of an OpenNebula 7.2.0 with default settings."""
        return cls(
            scheduler_interval=5.0,
            scheduler_window=10.0,
            scheduler_wedge=150,
            monitor_interval=5.0,
            figures_interval=30.0,
            crash_visible_after=30.0,
            unknown_after=163.0,
            shutdown_timeout=180.0,
            shutdown_poll=1.0,
            image_lock_time=1.0,
            resume_in_flight=False,
        )

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> CloudSettings:
        """Raises TypeError when a key is unknown."""
        data = json.loads(text)
        if "visible_delay" in data:
            data["visible_delay"] = tuple(data["visible_delay"])
        return cls(**data)
