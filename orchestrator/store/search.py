"""A task by what a person typed of its id."""

from __future__ import annotations

import difflib

from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.errors import NotFound
from orchestrator.store.ids import LENGTH, as_typed
from orchestrator.store.schema import TASKS
from orchestrator.store.views import Row

SHORTEST = 4
_SHOWN = 5
_COMPARED = 500


async def find_task(connection: AsyncConnection, reference: str) -> Row:
    """The row of the one task whose id is, begins with or ends with `reference`. Raises NotFound with near misses."""
    part = as_typed(reference)
    if part is None or len(part) < SHORTEST:
        raise NotFound(
            "task",
            f"{reference!r} is not an id",
            f"give an id, or at least {SHORTEST} characters of its beginning or end",
        )
    # `part` is made of letters and digits alone, so LIKE has no wildcard to find in it.
    alike = TASKS.c.id == part if len(part) == LENGTH else or_(TASKS.c.id.like(f"{part}%"), TASKS.c.id.like(f"%{part}"))
    query = select(TASKS).where(alike).order_by(TASKS.c.id.desc()).limit(_SHOWN + 1)
    rows = (await connection.execute(query)).mappings().all()
    match rows:
        case []:
            raise NotFound("task", f"no task {reference!r}", await _near(connection, part))
        case [row]:
            return row
        case _:
            ids = ", ".join(row["id"] for row in rows[:_SHOWN]) + (", …" if len(rows) > _SHOWN else "")
            raise NotFound("task", f"{reference!r} is not the only one: {ids}", "give more of the id")


async def _near(connection: AsyncConnection, part: str) -> str:
    recent = (await connection.execute(select(TASKS.c.id).order_by(TASKS.c.id.desc()).limit(_COMPARED))).scalars().all()
    near = difflib.get_close_matches(part, recent, n=3, cutoff=0.7)
    if len(part) < LENGTH:
        ends = {task_id[-len(part) :]: task_id for task_id in reversed(recent)}
        near += [ends[end] for end in difflib.get_close_matches(part, ends, n=3, cutoff=0.6)]
    return f"did you mean {', '.join(dict.fromkeys(near))}?" if near else "see `mayfly list`"
