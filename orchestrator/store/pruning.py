"""Tasks that are over for long enough are forgotten."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime

from sqlalchemy import ColumnElement, and_, delete, literal, or_, select

from orchestrator.store.conditions import OVER, VM_OPEN
from orchestrator.store.guards import Room
from orchestrator.store.schema import ATTEMPTS, DEPENDENCIES, EVENTS, LAYERS, REVIEWS, TASKS, VMS


def _unneeded() -> ColumnElement[bool]:
    """Of a task that is over: its machines are gone, nobody waits for it, and it has built no layer for a task that is
    still remembered."""
    machine = select(literal(1)).where(VMS.c.task_id == TASKS.c.id, VM_OPEN).correlate(TASKS).exists()
    other = TASKS.alias("other")
    waits = (
        select(literal(1))
        .select_from(DEPENDENCIES.join(other, other.c.id == DEPENDENCIES.c.task_id))
        .where(DEPENDENCIES.c.on_task_id == TASKS.c.id, other.c.state.not_in(OVER))
        .correlate(TASKS)
        .exists()
    )
    user = TASKS.alias("user")
    laid = (
        select(literal(1))
        .select_from(LAYERS.join(user, user.c.layer == LAYERS.c.key))
        .where(LAYERS.c.task_id == TASKS.c.id)
        .correlate(TASKS)
        .exists()
    )
    return and_(TASKS.c.state.in_(OVER), ~machine, ~waits, ~laid)


class Pruning(Room):
    async def prunable(
        self, before_by_pool: Mapping[str, datetime], default_before: datetime, *, limit: int = 500
    ) -> tuple[str, ...]:
        """Tasks that have been over since before this instant of their pool, or before `default_before` in others. One
        whose machine is not gone, that another waits for, or that built the layer of a task that is kept, is kept."""
        each: list[ColumnElement[bool]] = [
            and_(TASKS.c.pool == pool, TASKS.c.finished_at < instant) for pool, instant in before_by_pool.items()
        ]
        rest = and_(TASKS.c.pool.not_in(tuple(before_by_pool)), TASKS.c.finished_at < default_before)
        old = select(TASKS.c.id).where(TASKS.c.finished_at.is_not(None), or_(*each, rest), _unneeded())
        async with self._database.reading() as connection:
            return tuple((await connection.execute(old.limit(limit))).scalars())

    async def delete(self, ids: Collection[str]) -> int:
        """Forget these tasks, with their attempts, machines, events, reviews and the layers that they built; their
        artifacts must be gone before. How many were forgotten: those that are not over, or needed, stay."""
        async with self._database.writing() as connection:
            # Who orders a layer holds its row: those that are wanted this moment are seen to be needed after this.
            built = select(LAYERS.c.key).where(LAYERS.c.task_id.in_(tuple(ids))).order_by(LAYERS.c.key)
            await connection.execute(built.with_for_update())
            found = select(TASKS.c.id).where(TASKS.c.id.in_(tuple(ids)), _unneeded()).with_for_update(of=TASKS)
            gone = tuple((await connection.execute(found)).scalars())
            if not gone:
                return 0
            machines = select(VMS.c.id).where(VMS.c.task_id.in_(gone))
            await connection.execute(delete(EVENTS).where(EVENTS.c.task_id.in_(gone)))
            await connection.execute(delete(EVENTS).where(EVENTS.c.vm_id.in_(machines)))
            await connection.execute(delete(ATTEMPTS).where(ATTEMPTS.c.task_id.in_(gone)))
            await connection.execute(delete(VMS).where(VMS.c.task_id.in_(gone)))
            of_them = or_(DEPENDENCIES.c.task_id.in_(gone), DEPENDENCIES.c.on_task_id.in_(gone))
            await connection.execute(delete(DEPENDENCIES).where(of_them))
            await connection.execute(delete(REVIEWS).where(REVIEWS.c.task_id.in_(gone)))
            await connection.execute(delete(LAYERS).where(LAYERS.c.task_id.in_(gone)))
            await connection.execute(delete(TASKS).where(TASKS.c.id.in_(gone)))
            return len(gone)
