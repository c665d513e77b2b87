"""A pool: a named kind of machine, from an inventory file; also a queue of tasks."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from orchestrator.domain.seal import Seal
from orchestrator.domain.task import TraceProfile

STEPS_SECONDS = 300.0
"""What checks, the seal and the end of a machine may take together, on either side of the process."""


SEALED = Seal(
    "sealed",
    1,
    denied_calls=(
        "@mount", "@module", "@raw-io", "@reboot", "@swap", "@clock", "@cpu-emulation", "@obsolete", "@keyring",
        "bpf", "perf_event_open", "userfaultfd", "fanotify_init", "open_by_handle_at", "kexec_load", "kexec_file_load",
        "io_uring_setup", "unshare", "setns",
    ),
)  # fmt: skip
"""The profile of a pool that says nothing: `images/seals/sealed.yml` says the same."""


class Disclosure(StrEnum):
    """What of a task's results may be seen before somebody has released them. OPEN: all. REVIEW: sizes, counts and
    hashes. FOUR_EYES: as REVIEW, and whoever submitted it cannot be the one who releases it."""

    OPEN = "open"
    REVIEW = "review"
    FOUR_EYES = "four-eyes"


@dataclass(frozen=True, slots=True)
class LayerSources:
    """Where a pool that builds layers gets packages from. index_url: of pip's simple index, "" is pip's own default.
    proxy: for HTTP and HTTPS. ca_bundle: PEM text of further authorities, checked beside the system's."""

    index_url: str = ""
    proxy: str = ""
    ca_bundle: str = ""


class Placement(StrEnum):
    """Which of the hosts with room gets the next VM: the emptiest, or the fullest."""

    SPREAD = "spread"
    PACK = "pack"


@dataclass(frozen=True, slots=True)
class Times:
    """The minutes that a cron line matches, by the clock: those in all five. days: of the month. weekdays: 0 is a
    Monday."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]


@dataclass(frozen=True, slots=True)
class Period:
    """Other numbers for a time. when: a cron line of five fields; the period lasts for every minute that it matches, by
    the clock of `time_zone`. times: what the line says; either will do where there are two. What is None stays as the
    pool has it.

    >>> Period(when="* 19-23 * * *", min_ready=0).time_zone
    'UTC'
    """

    when: str
    time_zone: str = "UTC"
    min_ready: int | None = None
    max_ready: int | None = None
    scale_factor: float | None = None
    max_vms: int | None = None
    times: tuple[Times, ...] = ()


@dataclass(frozen=True, slots=True)
class Warm:
    """How many machines of a pool stand ready before anybody asks. All runners together have as many.

    min_ready: at least so many, whatever is in use. scale_factor: so many more ready ones for each in use, up to
    max_ready. max_ready_age_seconds: one that has waited longer is replaced. launch_rate: of each runner, launches a
    minute over a while, of which `launch_burst` may come at once. max_failures: so many launches in a row that failed,
    of one image version or on one host, put it aside for quarantine_seconds. periods: of those that match, the last
    one's numbers count.

    >>> Warm().wanted
    False
    """

    min_ready: int = 0
    max_ready: int | None = None
    scale_factor: float = 0.0
    max_ready_age_seconds: float = 3600.0
    launch_rate: float = 60.0
    launch_burst: int = 10
    max_failures: int = 3
    quarantine_seconds: float = 900.0
    periods: tuple[Period, ...] = ()

    @property
    def wanted(self) -> bool:
        """Whether there may ever be a ready machine."""
        numbers = ((self.min_ready, self.scale_factor), *((each.min_ready, each.scale_factor) for each in self.periods))
        return any(ready or factor for ready, factor in numbers)


@dataclass(frozen=True, slots=True)
class Pool:
    """One host of the inventory group `pools`, its variables checked.

    Sizes are in bytes, times in seconds. `network` and `security_groups` are names in OpenNebula; `ssh_port` is the
    port on which the NIC's address answers (Ansible's `ansible_port`).

    max_vms: of all runners together. max_waiting: tasks that wait at once; more are refused. max_queue_seconds: the
    longest that one may wait. max_attempts, retry_backoff_seconds (doubled from try to try, at most
    retry_backoff_max_seconds): what a failure of the platform is answered with. max_pending_vms: those that OpenNebula
    may have yet to place. retention_seconds: how long a task that is over is kept with its artifacts.

    seals: what a task may choose from, the first is the pool's own. traces: likewise. disclosure: what of results is
    seen before they are released. max_open_files: of each process. max_scratch_bytes: in /task/tmp and /tmp; None is
    the disk's. max_output_files, max_output_depth: how many entries come out, and how many folders deep.

    layers: the pool in which layers are built for this one's tasks; "" where tasks can bring no packages.
    debian_packages: names that they may bring, as shell patterns. layer_sources: of a pool that builds layers.

    >>> Pool(name="small", image="debian-12").cpus
    1
    """

    name: str
    image: str
    cpus: int = 1
    memory_bytes: int = 512 * 2**20
    network: str = "sealed"
    ssh_port: int = 22
    max_vms: int = 2
    default_timeout_seconds: float = 3600.0
    max_timeout_seconds: float = 86400.0
    task_memory_bytes: int | None = None
    max_processes: int = 512
    boot_timeout_seconds: float = 300.0
    launch_timeout_seconds: float = 120.0
    kill_grace_seconds: float = 5.0
    max_output_bytes: int = 10 * 2**30
    max_log_bytes: int = 1 * 2**30
    max_waiting: int = 100_000
    max_queue_seconds: float = 30 * 86400.0
    staging_timeout_seconds: float = 6 * 3600.0
    max_attempts: int = 3
    retry_backoff_seconds: float = 5.0
    retry_backoff_max_seconds: float = 300.0
    max_pending_vms: int = 20
    retention_seconds: float = 30 * 86400.0
    placement: Placement = Placement.SPREAD
    seals: tuple[Seal, ...] = (SEALED,)
    traces: tuple[TraceProfile, ...] = (TraceProfile.AUDIT, TraceProfile.FULL)
    disclosure: Disclosure = Disclosure.REVIEW
    max_open_files: int = 4096
    max_scratch_bytes: int | None = None
    max_output_files: int = 100_000
    max_output_depth: int = 32
    layers: str = ""
    debian_packages: tuple[str, ...] = ()
    layer_sources: LayerSources = field(default_factory=LayerSources)
    warm: Warm = field(default_factory=Warm)

    @property
    def seal(self) -> Seal:
        """The pool's own profile."""
        return self.seals[0]

    def seal_named(self, name: str) -> Seal | None:
        """The profile that a task asks for by this name; "" is the pool's own. None when the pool does not allow it."""
        return next((seal for seal in self.seals if name in ("", seal.name)), None)

    def attempt_seconds(self, timeout_seconds: float | None) -> float:
        """How long one attempt may take in all: every stage at its own limit, for a process with this limit (None: the
        pool's). What is not over by then is stuck.

        >>> pool = Pool(name="small", image="debian-12", staging_timeout_seconds=60)
        >>> pool.attempt_seconds(10)
        1190.0
        """
        machine = self.launch_timeout_seconds + self.boot_timeout_seconds + STEPS_SECONDS
        process = (timeout_seconds or self.default_timeout_seconds) + 2 * self.kill_grace_seconds + STEPS_SECONDS
        return machine + process + 2 * self.staging_timeout_seconds + 30.0

    @property
    def process_memory_bytes(self) -> int:
        """The most that a process may use: what the pool says, else the machine's memory less what its system and the
        tracer need, a quarter of it and at least 96 MiB.

        >>> Pool(name="small", image="debian-12").process_memory_bytes // 2**20
        384
        """
        return self.task_memory_bytes or self.memory_bytes - max(96 * 2**20, self.memory_bytes // 4)
