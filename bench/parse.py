"""`python -m bench parse`: how fast traces are read, beside a floor in the same run.

The traces are real ones, made now by the strace of this machine with the words that Mayfly traces with, of programs
that do much of what is recorded: Pythons that start, a library that is compiled, a database that commits, a shell that
loops, a search through files. The floor reads the same file, splits it into lines, and does nothing with them.
Rounds alternate; of each the best counts, in seconds of CPU of one core. Needs root (strace -u) and strace.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator.domain.task import TraceProfile
from orchestrator.trace.command import traced
from orchestrator.trace.findings import Finder
from orchestrator.trace.parse import Parser

LINES_AIM, BYTES_AIM = 300_000, 50_000_000
_CHUNK = 1 << 20

_COMMIT = """
import sqlite3
base = sqlite3.connect("numbers.db")
base.execute("create table if not exists t (a, b)")
for number in range(1000):
    base.execute("insert into t values (?, ?)", (number, str(number) * 50))
    base.commit()
print(base.execute("select count(*), sum(a) from t").fetchone())
"""
PROGRAMS = {
    "Pythons that start": ("sh", "-c", "for i in $(seq 60); do /usr/bin/python3 -c 'import json, asyncio'; done"),
    "a library compiled": ("/usr/bin/python3", "-m", "compileall", "-q", "-j", "2", "library"),
    "a database that commits": ("/usr/bin/python3", "-c", _COMMIT),
    "a shell that loops": (
        "sh", "-c", "for i in $(seq 400); do cat /etc/hostname | wc -c; echo $i >s$i; rm s$i; done",
    ),
    "a search through files": ("grep", "-rl", "nowhere to be found", "/usr/lib/python3.11", "/usr/share/doc"),
}  # fmt: skip


def main(words: list[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench parse", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", choices=["audit", "full"], help="only this one [both]")
    given = parser.parse_args(words)
    if os.geteuid() or not shutil.which("strace"):
        sys.exit("it takes root, and strace")
    profiles = [TraceProfile(given.profile)] if given.profile else [TraceProfile.AUDIT, TraceProfile.FULL]
    print(
        f"best of {given.rounds} rounds, seconds of CPU of one core; load {os.getloadavg()[0]:.1f} on {os.cpu_count()}"
    )
    print(f"\n{'trace':38}{'lines':>8}{'MB':>6} {'floor':>9} {'parser':>9} {'findings':>9}  {'':9} {'floor':>6}")
    print(f"{'':38}{'':8}{'':6} {'lines/s':>9} {'lines/s':>9} {'lines/s':>9}  {'MB/s':>9} {'times':>6}")
    rates: dict[TraceProfile, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="mayfly-bench-parse-") as folder:
        Path(folder).chmod(0o755)
        for profile in profiles:
            for name, program in PROGRAMS.items():
                trace = record(Path(folder), profile, program)
                rates.setdefault(profile, []).append(measure(f"{profile.value}: {name}", trace, given.rounds))
    print()
    for profile, each in rates.items():
        print(f"{profile.value}: geometric mean {statistics.geometric_mean(each):,.0f} lines/s")
    print(f"aim: {LINES_AIM:,} lines/s or {BYTES_AIM / 1e6:.0f} MB/s")


def measure(name: str, trace: Path, rounds: int) -> float:
    """Print a line; the findings' lines per second."""
    size = trace.stat().st_size
    lines = split(trace)
    best = dict.fromkeys((split, parse, find), float("inf"))
    for _ in range(rounds):
        for work in best:
            best[work] = min(best[work], seconds(work, trace))
    floor, parser, findings = (lines / each for each in best.values())
    megabytes = size / best[find] / 1e6
    met = "met" if findings >= LINES_AIM or megabytes * 1e6 >= BYTES_AIM else "missed"
    print(
        f"{name:38}{lines:8}{size / 1e6:6.1f} {floor:9,.0f} {parser:9,.0f} {findings:9,.0f}  {megabytes:9.0f} "
        f"{best[find] / best[split]:6.1f}  {met}",
        flush=True,
    )
    return findings


def seconds(work: Callable[[Path], int], trace: Path) -> float:
    """Of CPU, so that others on the machine count as little as may be."""
    began = time.process_time()
    work(trace)
    return time.process_time() - began


def split(trace: Path) -> int:
    """The floor: lines, and nothing more."""
    count, rest = 0, b""
    for chunk in chunks(trace):
        *lines, rest = (rest + chunk).split(b"\n")
        count += len(lines)
    return count


def parse(trace: Path) -> int:
    """Every call told apart and counted."""
    parser = Parser(lambda name, error: False)
    for chunk in chunks(trace):
        for _ in parser.feed(chunk):
            pass
    return parser.lines


def find(trace: Path) -> int:
    """All that Mayfly makes of it."""
    finder = Finder()
    for chunk in chunks(trace):
        finder.feed(chunk)
    return int(finder.findings()["trace"]["lines"])


def chunks(trace: Path) -> Iterator[bytes]:
    with trace.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def record(folder: Path, profile: TraceProfile, program: tuple[str, ...]) -> Path:
    """The trace of a program, in a folder of its own, as another user."""
    work = Path(tempfile.mkdtemp(dir=folder))
    if "library" in program:
        source = Path("/usr/lib/python3.11")
        shutil.copytree(
            source, work / "library", symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "config-*")
        )
    for each in (work, *work.rglob("*")):
        if not each.is_symlink():
            each.chmod(0o777)
    trace = folder / f"{work.name}.strace"
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    # -D: strace is no child of ours; the pipe that it and all that it traces hold open says when it has written all
    reading, writing = os.pipe()
    words = [*traced(profile, output=str(trace), user="nobody"), *program]
    running = subprocess.Popen(
        words, cwd=work, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=[writing]
    )
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)
    running.wait()
    return trace
