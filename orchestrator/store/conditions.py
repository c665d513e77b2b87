"""What is asked of tasks and VMs again and again, in the words of the schema's partial indexes."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import ColumnElement, literal_column

from orchestrator.domain.task import TaskState
from orchestrator.domain.vm import VmState


def one_of(values: Iterable[str]) -> str:
    """The right side of SQL's IN.

    >>> one_of(["A", "B"])
    "('A', 'B')"
    """
    return "(" + ", ".join(f"'{value}'" for value in values) + ")"


HELD = (TaskState.RUNNING, TaskState.WAITING)
"""The states in which a runner holds the task, under a lease."""
OVER = tuple(state for state in TaskState if state.over)

# Partial indexes are found only by those who ask in their very words: no bound values here.
SQL_READY = f"tasks.state = '{TaskState.QUEUED}' AND tasks.admitted_at IS NOT NULL"
SQL_PENDING = f"tasks.state = '{TaskState.QUEUED}' AND tasks.admitted_at IS NULL"
SQL_HELD = f"tasks.state IN {one_of(HELD)}"
SQL_OPEN = f"tasks.state NOT IN {one_of(OVER)}"
SQL_UNLAID = f"{SQL_PENDING} AND tasks.brings_packages AND tasks.layer IS NULL"
"""It waits, and nobody has found out yet which layer its packages make."""
SQL_LAID = """(NOT tasks.brings_packages OR EXISTS (
  SELECT 1 FROM layers WHERE layers.key = tasks.layer AND layers.ready_at IS NOT NULL))"""
"""What its packages make is there, if it brings some."""
SQL_UNSTATED = "attempts.finished_at IS NOT NULL AND attempts.receipt_sha256 IS NULL"
SQL_VM_OPEN = f"vms.state <> '{VmState.DESTROYED}'"
SQL_SPARE = "vms.task_id IS NULL"


def condition(words: str) -> ColumnElement[bool]:
    """One of the above, to put after WHERE."""
    # Not typed as Boolean: SQLite would be asked whether it equals 1, and find no index for that.
    return literal_column(f"({words})")


READY, PENDING, IS_HELD, IS_OPEN = map(condition, (SQL_READY, SQL_PENDING, SQL_HELD, SQL_OPEN))
UNLAID, LAID, UNSTATED = map(condition, (SQL_UNLAID, SQL_LAID, SQL_UNSTATED))
VM_OPEN, IS_SPARE = map(condition, (SQL_VM_OPEN, SQL_SPARE))
