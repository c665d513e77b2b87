"""What can be seen from outside: processes in /proc, the events in the database."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psycopg

_TICKS = os.sysconf("SC_CLK_TCK")

STARTS = """
SELECT at FROM events WHERE kind = 'task.stage' AND data->>'stage' = 'EXECUTING' AND task_id = ANY(%s) ORDER BY at
"""
EXECUTING = "SELECT count(*) FROM tasks WHERE state = 'RUNNING' AND stage = 'EXECUTING'"
LIVES = "SELECT state, count(*) FROM tasks WHERE id = ANY(%s) GROUP BY state"


@dataclass(frozen=True)
class Ramp:
    """How many processes began, and how fast: between the first tenth and the last, where both ends are cut off."""

    starts: int
    per_second: float


def starts_of(dsn: str, tasks: Collection[str]) -> Ramp:
    """When the processes of these tasks began, by the event log."""
    with psycopg.connect(dsn) as connection:
        at: list[datetime] = [row[0] for row in connection.execute(STARTS, [list(tasks)])]
    low, high = len(at) // 10, len(at) - 1 - len(at) // 10
    seconds = (at[high] - at[low]).total_seconds() if high > low else 0.0
    return Ramp(len(at), (high - low) / seconds if seconds else 0.0)


def states_of(dsn: str, tasks: Collection[str]) -> dict[str, int]:
    """How many of these tasks are in each state."""
    with psycopg.connect(dsn) as connection:
        return {str(state): int(count) for state, count in connection.execute(LIVES, [list(tasks)])}


def executing(dsn: str) -> int:
    """How many processes run now."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute(EXECUTING).fetchone()
    return int(row[0]) if row else 0


def cpu_seconds(pid: int) -> float:
    """What a process has used so far, and its children: those that it waited for, and those that live."""
    total = _used(pid)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            total += _used(int(stat.parent.name))
    return total


def _used(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(field) for field in fields[11:15]) / _TICKS
