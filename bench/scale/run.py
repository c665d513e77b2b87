"""`python -m bench scale`: many machines at once, then many tasks, then both at the pace that OpenNebula recommends.

The smaller run is the default; `--full` is a thousand machines at once and ten thousand tasks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from bench.scale.far_side import running_far_side
from bench.scale.floor import FloorFigures, rss_bytes
from bench.scale.observed import Ramp, cpu_seconds, executing, starts_of, states_of
from bench.scale.world import World, make_world
from orchestrator.localcloud.knobs import CloudSettings
from tests.postgres import running_server

KNOBS = CloudSettings(scheduler_interval=0.02, scheduler_window_length=100, host_cpus=10_000, driver_threads=16)
AT_ONCE = 50
SLEEP_PER_VM = 0.15
"""The tasks of the first part sleep so long for each machine that there is to be, so that all of them are there at once
if seven and more start in a second."""
LOOK_SECONDS = 0.5
OVER = ("FINISHED", "FAILED", "CANCELED")


@dataclass(frozen=True)
class Size:
    """`vms` at once, `tasks` in all, `polite` of them at the recommended pace; seconds at most for each part."""

    vms: int
    tasks: int
    polite: int
    seconds: float


SMALL, FULL = Size(150, 450, 60, 75), Size(1000, 10_000, 300, 1500)


@dataclass(frozen=True)
class Part:
    """One part's figures. `calls`: of the cloud, by method. `peak`: processes at once; `bytes_per_vm`: of the runner's
    memory, there. `cpu`: seconds of each process. `states`: of the tasks in the end."""

    ramp: Ramp
    seconds: float
    calls: Counter[str]
    peak: int
    bytes_per_vm: float
    cpu: dict[str, float]
    states: dict[str, int]

    @property
    def pool_calls(self) -> int:
        return sum(count for method, count in self.calls.items() if "pool." in method)

    @property
    def lives(self) -> int:
        return self.calls["one.template.instantiate"]

    @property
    def requests_per_life(self) -> float:
        """Without those of the pools, of which there is one a tick however many VMs there are."""
        return (sum(self.calls.values()) - self.pool_calls) / max(1, self.lives)

    @property
    def requests_per_second(self) -> float:
        return sum(self.calls.values()) / self.seconds


def main(words: list[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench scale", description=__doc__)
    parser.add_argument("--full", action="store_true", help=f"{FULL.vms:,} VMs at once, {FULL.tasks:,} tasks")
    parser.add_argument("--vms", type=int)
    parser.add_argument("--tasks", type=int)
    options = parser.parse_args(words)
    size = FULL if options.full else SMALL
    size = Size(options.vms or size.vms, options.tasks or size.tasks, size.polite, size.seconds)
    with tempfile.TemporaryDirectory(prefix="mayfly-scale-") as scratch:
        folder = Path(scratch)
        database = folder / "postgres"
        with running_server(database, durable=True) as server, running_far_side(folder / "cloud", KNOBS) as far:
            postmaster = int((database / "data" / "postmaster.pid").read_text().split()[0])
            world = asyncio.run(make_world(folder, server.create("mayfly"), postmaster, far, size.vms))
            _measure(world, size)


def _measure(world: World, size: Size) -> None:
    smaller = " (the smaller run: --full for the whole)" if size.vms < FULL.vms else ""
    print(f"bench scale: {size.vms:,} VMs at once, {size.tasks:,} tasks{smaller}", flush=True)
    floor = _floor(world, size.vms)
    fleet = _part(world, size.vms, f"sleep {10 + SLEEP_PER_VM * size.vms:.0f}", size, "inf")
    many = _part(world, max(1, size.tasks - size.vms - size.polite), "true", size, "inf")
    polite = _part(world, size.polite, "true", size, "default")
    _print(floor, fleet, many, polite)


def _floor(world: World, vms: int) -> FloorFigures:
    words = [sys.executable, "-m", "bench.scale.floor", world.far.url, world.far.session]
    words += [str(world.template), str(vms), str(AT_ONCE)]
    printed = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout
    return FloorFigures(**json.loads(printed))


def _part(world: World, tasks: int, script: str, size: Size, rate: str) -> Part:
    """These tasks by a runner of their own."""
    with world.runner(size.vms, rate) as runner:
        _until_over(world, asyncio.run(world.submit(1, "true")), 60)  # what is loaded once only is no VM's
        idle = rss_bytes(runner)
        guests = int((world.far.home / "guests.pid").read_text())
        processes = {"runner": runner, "cloud": world.far.pid, "guests": guests, "database": world.server}
        before = {name: cpu_seconds(pid) for name, pid in processes.items()}
        calls = world.far.calls()
        began = time.monotonic()
        made = asyncio.run(world.submit(tasks, script))
        peak, grown = _until_over(world, made, size.seconds, runner)
        seconds = time.monotonic() - began
        print(f"{tasks:,} tasks of {script!r}: {seconds:.0f} s, {peak:,} at once", file=sys.stderr)
        return Part(
            ramp=starts_of(world.dsn, made),
            seconds=seconds,
            calls=world.far.calls() - calls - Counter({"mayfly.calls": 1}),
            peak=peak,
            bytes_per_vm=(grown - idle) / max(1, peak),
            cpu={name: cpu_seconds(pid) - before[name] for name, pid in processes.items()},
            states=states_of(world.dsn, made),
        )


def _until_over(world: World, tasks: Collection[str], seconds: float, runner: int | None = None) -> tuple[int, int]:
    """Wait for the tasks' end, at most so long: the most processes that ran at once, and the runner's memory then."""
    give_up = time.monotonic() + seconds
    peak = memory = 0
    while time.monotonic() < give_up:
        now = executing(world.dsn)
        if runner is not None and now >= peak:
            peak, memory = now, rss_bytes(runner)
        if sum(states_of(world.dsn, tasks).get(state, 0) for state in OVER) == len(tasks):
            break
        time.sleep(LOOK_SECONDS)
    return peak, memory


def _print(floor: FloorFigures, fleet: Part, many: Part, polite: Part) -> None:
    mebi, bare = 2**20, f"{floor.starts_per_second:.0f}"
    print(f"\n{'':52}{'measured':>10}{'aim':>8}{'floor':>8}")
    for name, value, aim, low in (
        (
            "starts per second, while the fleet is built",
            fleet.ramp.per_second,
            ">= 50",
            bare,
        ),
        ("starts per second, tasks of no length", many.ramp.per_second, ">= 50", bare),
        ("starts per second, at the recommended pace", polite.ramp.per_second, "", "14"),
        ("processes at once", fleet.peak, "", f"{floor.vms}"),
        ("MiB of the runner's memory for each", fleet.bytes_per_vm / mebi, "<= 1", f"{floor.bytes_per_vm / mebi:.2f}"),
        ("requests per VM life, the fleet", fleet.requests_per_life, "<= 6", "2"),
        ("requests per VM life, tasks of no length", many.requests_per_life, "<= 6", "2"),
        ("pool calls per second, the fleet", fleet.pool_calls / fleet.seconds, "", ""),
        ("requests per second, at the recommended pace", polite.requests_per_second, "<= 30", ""),
    ):
        print(f"{name:52}{value:10.2f}{aim:>8}{low:>8}")
    for name, part in (("the fleet", fleet), ("no length", many), ("polite", polite)):
        lives = max(1, part.lives)
        shares = ", ".join(f"{process} {1000 * used / lives:.0f}" for process, used in part.cpu.items())
        methods = ", ".join(f"{method.removeprefix('one.')} {count}" for method, count in part.calls.most_common(8))
        print(f"\n{name}: {part.states}, {part.seconds:.0f} s; CPU milliseconds per VM: {shares}\n  calls: {methods}")
    print(LIMITS)


LIMITS = """
How it was measured, and how far it carries
- One runner, the cloud, the guests (real SSH, no machine) and PostgreSQL share this machine's CPUs: the milliseconds
  of CPU say what each takes of them. A real OpenNebula and real machines take theirs elsewhere, and are slower to
  start.
- The floor in the same run, on the same cloud: one instantiate, one SSH connection, one request over it, one
  terminate for each VM, one pool call a tick; no database, no seal, no trace, no outputs, nothing that survives it.
- The first parts run without the runner's limit of requests per second, which is 28: OpenNebula recommends fewer than
  30. At that pace no client can start 50 VMs in a second: each needs two requests, three where the account places VMs
  itself.
- Memory: resident, at the peak, less what the idle runner had after one task. Starts: the event of EXECUTING, the
  first and the last tenth left out."""
