"""How many machines a pool has, or is about to have: what its `max_vms` bounds, over all runners."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.store.asking import ask
from orchestrator.store.conditions import SQL_HELD, SQL_VM_OPEN
from orchestrator.store.guards import add_queues

SQL_LEFT_OVER = f"""{SQL_VM_OPEN} AND NOT EXISTS (
  SELECT 1 FROM tasks WHERE tasks.id = vms.task_id AND tasks.attempt = vms.attempt AND {SQL_HELD})"""  # noqa: S608
"""Of a VM: it is open, and no held attempt's. A held one counts as its task, which may have none yet."""

_LOCK = """
SELECT pool FROM queues WHERE pool IN (SELECT json_array_elements_text(CAST(:pools AS json))) ORDER BY pool FOR UPDATE
"""
_TAKEN = f"""
SELECT (SELECT count(*) FROM tasks WHERE {SQL_HELD} AND tasks.pool = :pool)
  + (SELECT count(*) FROM vms WHERE {SQL_LEFT_OVER} AND vms.pool = :pool) AS taken
"""  # noqa: S608  made of our own words alone


async def taken(connection: AsyncConnection, pools: Sequence[str]) -> dict[str, int]:
    """Lock the queues of these pools, as those who claim do, and count."""
    if not pools:
        return {}
    await add_queues(connection, pools)
    lock = [(_LOCK, {"pools": json.dumps(list(pools))})] if connection.dialect.name == "postgresql" else []
    answers = await ask(connection, [*lock, *((_TAKEN, {"pool": pool}) for pool in pools)])
    return {pool: rows[0]["taken"] for pool, rows in zip(pools, answers[len(lock) :], strict=True)}
