"""`python -m bench trace`: what tracing costs, by what the process does and by what is recorded.

In one real machine, each process in the unit that a task's has, the seal and the limits, from its arming to its end,
the trace sent here as it is written: untraced (the profile `none`), `audit` and `full`; and the same command under
plain `strace -f`, as anybody would call it, by the side. Every round runs each once, in turn, so that whatever else the
host does falls on all alike. A process's time is measured in the machine, around the command alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import shlex
import subprocess
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from bench.main_job import Place, surroundings
from bench.row import Row, median, table
from bench.start.bare import Bare, bare
from bench.start.held import held
from bench.start.reach import reach
from orchestrator.artifacts.members import Members
from orchestrator.domain.outcome import Exited
from orchestrator.domain.task import TraceProfile
from orchestrator.guest import TRACE_PATH, Launch
from orchestrator.trace.command import traced

AIM = 1.05
UNTRACED, AUDIT, FULL, PLAIN = "untraced", "audit", "full", "strace -f"
PROFILES = {UNTRACED: TraceProfile.NONE, AUDIT: TraceProfile.AUDIT, FULL: TraceProfile.FULL}

_SQLITE = """
import random, sqlite3
dice, base = random.Random(0), sqlite3.connect("base.db")
base.execute("create table visits (patient integer, day integer, ward text, value real)")
for part in range(10):
    rows = ((dice.randrange(5000), dice.randrange(3650), f"w{dice.randrange(40)}", dice.random()) for _ in range(2000))
    base.executemany("insert into visits values (?, ?, ?, ?)", rows)
    base.commit()
base.execute("create index of_patient on visits (patient, day)")
for _ in range(3):
    base.execute("select ward, count(*), avg(value), max(day) from visits group by ward").fetchall()
    base.execute("select a.patient, count(*) from visits a join visits b on a.patient = b.patient and b.day between"
                 " a.day and a.day + 30 group by a.patient order by 2 desc limit 20").fetchall()
"""
_PURE = "total = 0\nfor n in range(3_000_000): total = (total * 31 + n) % 1_000_003"

WORKLOADS: Mapping[str, str] = {
    "compile": "cp -r /usr/lib/python3.11/asyncio /usr/lib/python3.11/json . && python3 -m compileall -qf asyncio json",
    "sqlite": f"python3 -c {shlex.quote(_SQLITE)}",
    "start-up storm": "for n in 1 2 3 4 5 6 7 8 9 10; do python3 -c 'import json, subprocess'; done",
    "computation": f"python3 -c {shlex.quote(_PURE)}",
}
"""Shell commands, run in an empty folder. The image has no compiler but Python's own."""

STAMPED = 'echo "$EPOCHREALTIME"; eval "$0" || exit; echo "$EPOCHREALTIME"'
"""bash tells the time by itself, in microseconds, so nothing else is started."""

RESET = (
    "keeper=$(cat /run/mayfly-task/keeper 2>/dev/null) && kill -KILL $keeper; "
    "rm -rf /run/mayfly-task /var/lib/mayfly-task /task/out/* /task/tmp/*; true"
)
"""Makes a machine as good as new, which no task ever gets: the next process does not wait for another one to boot."""


@dataclass(frozen=True)
class Ran:
    """seconds: of the process. stored, plain: bytes of its trace. fast_path: as the machine told."""

    seconds: float
    stored: int = 0
    plain: int = 0
    fast_path: bool | None = None


class Held:
    """A stream in memory."""

    def __init__(self) -> None:
        self.data = bytearray()

    @property
    def offset(self) -> int:
        return len(self.data)

    async def write(self, data: bytes, /) -> None:
        self.data += data


def measure(place: Place, rounds: int, workloads: Sequence[str]) -> dict[str, dict[str, list[Ran]]]:
    """What each workload took, in every manner, by name."""
    ran: dict[str, dict[str, list[Ran]]] = defaultdict(lambda: defaultdict(list))
    with ExitStack() as stack:
        machine = stack.enter_context(bare(place))
        ssh = stack.enter_context(held(machine))
        runner = stack.enter_context(asyncio.Runner())
        for number in range(rounds):
            for workload in workloads:
                for manner in (*PROFILES, PLAIN):
                    subprocess.run([*ssh, RESET], check=True)
                    if manner == PLAIN:
                        one = plain(ssh, WORKLOADS[workload])
                    else:
                        one = runner.run(in_unit(machine, WORKLOADS[workload], PROFILES[manner]))
                    ran[workload][manner].append(one)
                    print(f"round {number + 1}, {workload}, {manner}: {one.seconds:.2f} s", flush=True)
    return ran


async def in_unit(machine: Bare, workload: str, profile: TraceProfile) -> Ran:
    """As a task's process."""
    launch = Launch(
        argv=("bash", "-c", STAMPED, workload),
        timeout_seconds=1800,
        memory_bytes=300 << 20,
        processes=64,
        trace=traced(profile, output=TRACE_PATH),
    )
    guest = await reach(machine)
    try:
        stdout, stderr, trace = Held(), Held(), Held()
        await guest.start(launch)
        outcome, _ = await guest.follow(stdout, stderr, trace)
    finally:
        await guest.close()
    if outcome != Exited(0):
        raise RuntimeError(f"{workload} ended with {outcome}: {stderr.data!r}")
    size = Members().measure(bytes(trace.data), 1 << 40)
    return Ran(seconds_between(bytes(stdout.data)), len(trace.data), size, guest.tracing.fast_path)


def plain(ssh: Sequence[str], workload: str) -> Ran:
    """As anybody would trace it: nothing is left out, and all goes to a file."""
    words = ["strace", "-f", "-u", "task", "-o", "/var/tmp/trace", "bash", "-c", STAMPED, workload]
    command = f"cd /task/out && {shlex.join(words)}"
    stdout = subprocess.run([*ssh, command], stdout=subprocess.PIPE, check=True).stdout
    size = subprocess.run([*ssh, "stat -c %s /var/tmp/trace"], stdout=subprocess.PIPE, check=True).stdout
    return Ran(seconds_between(stdout), int(size), int(size))


def seconds_between(stamps: bytes) -> float:
    first, *_, last = stamps.split()
    return float(last) - float(first)


def ratio(ran: Mapping[str, Sequence[Ran]], manner: str) -> float:
    """Of the medians of both, to untraced."""
    return seconds(ran, manner) / seconds(ran, UNTRACED)


def seconds(ran: Mapping[str, Sequence[Ran]], manner: str) -> float:
    return median([each.seconds for each in ran[manner]])


def geometric(values: Sequence[float]) -> float:
    """
    >>> geometric([1.0, 4.0])
    2.0
    """
    return math.exp(sum(map(math.log, values)) / len(values))


def rows(ran: Mapping[str, Mapping[str, Sequence[Ran]]]) -> list[Row]:
    """A row for each workload in audit; the last one, the geometric mean, has the aim."""
    found = [
        Row(
            name=workload,
            ours=seconds(by_manner, AUDIT),
            unit="s",
            aim="–",
            met=None,
            floor=seconds(by_manner, UNTRACED),
            floor_name=UNTRACED,
            samples=len(by_manner[AUDIT]),
            details={
                **{f"{manner}, ratio": ratio(by_manner, manner) for manner in (AUDIT, FULL, PLAIN)},
                "audit, plain bytes": by_manner[AUDIT][-1].plain,
                "audit, stored bytes": by_manner[AUDIT][-1].stored,
            },
        )
        for workload, by_manner in ran.items()
    ]
    mean = geometric([ratio(by_manner, AUDIT) for by_manner in ran.values()])
    floor = geometric([seconds(by_manner, UNTRACED) for by_manner in ran.values()])
    whole = Row(
        name="geometric mean",
        ours=mean * floor,
        unit="s",
        aim=f"≤ {AIM} times untraced",
        met=mean <= AIM,
        floor=floor,
        floor_name=UNTRACED,
        samples=min(row.samples for row in found),
        note="" if mean <= AIM else "a call that is recorded stops the process twice, and its tracer writes a line",
    )
    return [*found, whole]


def shown(ran: Mapping[str, Mapping[str, Sequence[Ran]]]) -> str:
    """Ratios to untraced, and sizes, as Markdown."""
    lines = [
        "| what | untraced | audit | full | strace -f | trace of audit, plain → stored |",
        "|---|---|---|---|---|---|",
    ]
    for workload, by_manner in ran.items():
        ratios = " | ".join(f"{ratio(by_manner, manner):.3f}" for manner in (AUDIT, FULL, PLAIN))
        last = by_manner[AUDIT][-1]
        sizes = f"{last.plain} → {last.stored} B" + ("" if last.fast_path else ", without its fast path")
        lines.append(f"| {workload} | {seconds(by_manner, UNTRACED):.2f} s | {ratios} | {sizes} |")
    means = [geometric([ratio(by_manner, manner) for by_manner in ran.values()]) for manner in (AUDIT, FULL, PLAIN)]
    lines.append(f"| geometric mean | | {' | '.join(f'{mean:.3f}' for mean in means)} | |")
    return "\n".join(lines)


def main(words: Sequence[str] = ()) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m bench trace",
        description=textwrap.dedent(__doc__),
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5, help="[%(default)s]")
    parser.add_argument("--workload", action="append", choices=list(WORKLOADS), help="only this one; may be repeated")
    parser.add_argument("--json", action="store_true", help="print the table of aims as JSON")
    options = parser.parse_args(words)
    with surroundings() as place:
        print(f"{options.rounds} rounds in turn; medians; accelerator {place.accelerator}\n", flush=True)
        ran = measure(place, options.rounds, options.workload or list(WORKLOADS))
    found = rows(ran)
    print(f"\n{shown(ran)}\n")
    print(json.dumps([row.as_json() for row in found], indent=2) if options.json else table(found))
