"""Very many tasks, in little time."""

from __future__ import annotations

from sqlalchemy import text

from orchestrator.store import Store
from orchestrator.store.schema import TASKS

COPIES = """
WITH RECURSIVE numbers(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < {last})
INSERT INTO tasks ({columns}) SELECT {values} FROM tasks, numbers WHERE tasks.id = '{like}'
"""
WAITS = """
INSERT INTO dependencies (task_id, on_task_id)
SELECT id, '{on}' FROM tasks WHERE id LIKE 'copy%' AND NOT EXISTS (SELECT 1 FROM dependencies WHERE task_id = id)
"""


async def fill(store: Store, like: str, first: int, last: int, on: str | None = None) -> None:
    """Copies of a task, as if they had been submitted one by one."""
    postgresql = store._database.is_postgresql
    number = "lpad(n::text, 8, '0')" if postgresql else "substr('0000000' || n, -8)"
    row = {column.name: f"tasks.{column.name}" for column in TASKS.c} | {"id": f"'copy' || {number}"}
    async with store._database.writing() as connection:
        words = {"first": first, "last": last, "like": like}
        await connection.execute(text(COPIES.format(columns=", ".join(row), values=", ".join(row.values()), **words)))
        if on is not None:
            await connection.execute(text(WAITS.format(on=on)))
        if postgresql:  # which does so by itself; nobody does on SQLite
            await connection.execute(text("ANALYZE"))
