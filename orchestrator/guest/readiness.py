"""Is this machine fit for a task? A list of requirements, each with a hint for the person who must put it right."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from orchestrator.domain.errors import Unreachable
from orchestrator.guest.errors import StepFailed, printable
from orchestrator.guest.scripts.facts import PROGRAMS
from orchestrator.guest.wire import Reply

MIN_DISK_BYTES = 128 * 2**20
MAX_CLOCK_OFFSET_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Requirement:
    """One thing that must be so: `detail` says how it is, `hint` what to do when it is not met."""

    name: str
    met: bool
    detail: str
    hint: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What a machine told of itself. Bytes and seconds; `clock_offset_seconds` is its clock less ours; `boot_id`
    differs after each of its boots. `quotas`: what a process writes can be bounded; else the disk alone does that."""

    requirements: tuple[Requirement, ...]
    kernel: str
    boot_id: str
    disk_free_bytes: int
    memory_bytes: int
    clock_offset_seconds: float
    uptime_seconds: float
    quotas: bool = False

    @property
    def unmet(self) -> tuple[Requirement, ...]:
        return tuple(requirement for requirement in self.requirements if not requirement.met)


def require(facts: Facts) -> None:
    """Raise Unreachable, naming every requirement that is not met and its hint."""
    if facts.unmet:
        lines = (f"{each.name}: {each.detail} ({each.hint})" for each in facts.unmet)
        raise Unreachable("the VM answers, but is not fit for a task: " + "; ".join(lines))


def read_facts(reply: Reply) -> Facts:
    """The facts in what `scripts/facts.py` wrote. Raises StepFailed when it is not that."""
    if reply.status != 0:
        raise StepFailed(f"the guest did not tell its facts (status {reply.status}): {reply.stderr}")
    told: dict[str, list[str]] = {}
    for line in reply.stdout.decode(errors="replace").splitlines():
        key, _, value = line.partition("=")
        told.setdefault(key, []).append(printable(value))
    try:
        blocks, _, size = told.get("disk", ["0:0"])[0].partition(":")
        disk_free = int(blocks) * int(size)
        clock = float(told["clock"][0]) - time.time()
        uptime = float(told["uptime"][0])
        memory = int(told.get("memory_kib", ["0"])[0]) * 1024
        if not (math.isfinite(clock) and math.isfinite(uptime)):
            raise ValueError("a time that is none")
    except (KeyError, ValueError) as error:
        raise StepFailed(f"the guest's facts cannot be read: {error}") from error
    return Facts(
        requirements=_requirements(told, disk_free, clock),
        kernel=told.get("kernel", [""])[0],
        boot_id=told.get("boot", [""])[0],
        disk_free_bytes=disk_free,
        memory_bytes=memory,
        clock_offset_seconds=clock,
        uptime_seconds=uptime,
        quotas="quotas" in told,
    )


def _requirements(told: dict[str, list[str]], disk_free: int, clock: float) -> tuple[Requirement, ...]:
    rebuild = "build the image anew: `mayfly image build`"
    missing = [program for program in PROGRAMS if program not in told.get("program", [])]
    user = told.get("user", ["none"])[0]
    uid = user.partition(":")[0]
    directories = {}
    for line in told.get("directory", []):
        path, _, rest = line.partition(":")
        directories[path] = rest.partition(":")[0]
    wanted = {"/task/in": "0", "/task/out": uid, "/task/tmp": uid}
    wrong = [path for path, owner in wanted.items() if directories.get(path) != owner]
    return (
        Requirement("programs", not missing, f"missing: {', '.join(missing)}" if missing else "all there", rebuild),
        Requirement("systemd", "systemd" in told, "running" if "systemd" in told else "not running", rebuild),
        Requirement(
            "cgroup v2",
            "cgroup2" in told,
            "mounted" if "cgroup2" in told else "not mounted",
            "boot the image without systemd.unified_cgroup_hierarchy=0",
        ),
        Requirement("user task", uid not in ("none", "0"), f"uid and gid {user}", rebuild),
        Requirement(
            "task directories",
            not wrong,
            f"missing, or not of the right owner: {', '.join(wrong)}" if wrong else "as they should be",
            rebuild,
        ),
        Requirement(
            "free disk",
            disk_free >= MIN_DISK_BYTES,
            f"{disk_free // 2**20} MiB free",
            f"at least {MIN_DISK_BYTES // 2**20} MiB are needed: give the image a larger disk",
        ),
        Requirement(
            "clock",
            abs(clock) <= MAX_CLOCK_OFFSET_SECONDS,
            f"{clock:+.1f} s from ours",
            "set the clocks of the hypervisors and of this machine",
        ),
        Requirement(
            "fresh",
            "used" not in told,
            "it has had a task" if "used" in told else "never used",
            "destroy it: a VM has one task and no second",
        ),
    )
