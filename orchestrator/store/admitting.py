"""Tasks whose time has come, or that have nothing to wait for any more, become ready; others never will."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import TextClause, bindparam, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.decide.waiting import layer_failed
from orchestrator.domain.outcome import Reason
from orchestrator.domain.task import TaskState
from orchestrator.store.columns import UtcDateTime
from orchestrator.store.conditions import PENDING, SQL_LAID, SQL_PENDING
from orchestrator.store.events import EventKind, write_events
from orchestrator.store.guards import BUILDERS, Room, give_up
from orchestrator.store.schema import DEPENDENCIES, TASKS

_NEVER = "a task that it depends on did not finish"
_DEPENDS_ON = """EXISTS (
  SELECT 1 FROM dependencies AS needs JOIN tasks AS other ON other.id = needs.on_task_id
  WHERE needs.task_id = tasks.id AND other.state {STATES})"""
_LOST = _DEPENDS_ON.format(STATES=f"IN ('{TaskState.FAILED}', '{TaskState.CANCELED}')")
_BLOCKED = _DEPENDS_ON.format(STATES=f"<> '{TaskState.FINISHED}'")
_FREE = f"NOT {_BLOCKED} AND {SQL_LAID}"


def _search(which: str, told: str, *, of: str = "tasks") -> TextClause:
    """Of the tasks that wait: those that `which` names, and of which `told` is true."""
    words = f"""
    SELECT DISTINCT tasks.id, {_LOST} AS lost FROM {of} WHERE {SQL_PENDING} AND {which} AND ({told})
    LIMIT :most
    """  # noqa: S608  made of our own words alone
    instants = [bindparam(name, type_=UtcDateTime()) for name in ("now", "since") if f":{name}" in words]
    return text(words).bindparams(*instants)


_ALL = (
    _search("tasks.not_before IS NULL", f"{_FREE} OR {_LOST}"),
    _search("tasks.not_before <= :now", f"{_FREE} OR {_LOST}"),
    # Of what is for later only what depends on something is looked at.
    _search("tasks.not_before > :now AND tasks.id IN (SELECT task_id FROM dependencies)", _LOST),
)
_NEWS = (
    _search("tasks.not_before > :since AND tasks.not_before <= :now", f"{_FREE} OR {_LOST}"),
    # In this order, on SQLite: https://www.sqlite.org/optoverview.html#manual_control_of_query_plans_using_cross_join
    _search(
        "ended.pool = queues.pool AND ended.finished_at >= :since AND ended.finished_at IS NOT NULL "
        "AND dependencies.on_task_id = ended.id AND tasks.id = dependencies.task_id",
        f"{_LOST} OR ((tasks.not_before IS NULL OR tasks.not_before <= :now) AND {_FREE})",
        of="queues CROSS JOIN tasks AS ended CROSS JOIN dependencies CROSS JOIN tasks",
    ),
)


# Whose layer will never be there, and what its builder says.
_UNLAID = (
    select(DEPENDENCIES.c.task_id, TASKS.c.id, TASKS.c.message)
    .join(TASKS, TASKS.c.id == DEPENDENCIES.c.on_task_id)
    .where(DEPENDENCIES.c.task_id.in_(bindparam("ids", expanding=True)), TASKS.c.frontend == BUILDERS)
    .where(TASKS.c.state.in_((TaskState.FAILED, TaskState.CANCELED)))
    .order_by(DEPENDENCIES.c.task_id)
)


async def _unlaid(connection: AsyncConnection, never: Sequence[str]) -> Mapping[str, list[str]]:
    """By what is said of it: those of these tasks whose packages could not be installed."""
    told: dict[str, list[str]] = {}
    if never:
        for row in await connection.execute(_UNLAID, {"ids": list(never)}):
            told.setdefault(layer_failed(row.id, row.message), []).append(row.task_id)
    return told


class Admitting(Room):
    async def admit(self, *, now: datetime, limit: int = 500, since: datetime | None = None) -> tuple[str, ...]:
        """Let in what is due; end what depends on a task that will never have FINISHED, which ends what depends on that
        in the next round. The ids of all that were moved. What brings packages is due when its layer is ready, which
        depends on its builder.

        since: look only at what may have changed since then: tasks that became due, and those that depend on one that
        ended. None: at all that wait. Where there is nothing to be done nothing is locked.
        """
        ready, never = await self._found(now, since, limit)
        if not (ready or never):
            return ()
        async with self._database.writing() as connection:
            # What was found stays so: what has ended has ended. Another that admits at the same time passes these by.
            still = select(TASKS.c.id).where(TASKS.c.id.in_((*ready, *never)), PENDING).order_by(TASKS.c.id)
            locked = still.with_for_update(of=TASKS, skip_locked=True, key_share=True)
            mine = set((await connection.execute(locked)).scalars())
            ready, never = [each for each in ready if each in mine], [each for each in never if each in mine]
            if ready:
                admitted = update(TASKS).where(TASKS.c.id.in_(ready), PENDING).values(admitted_at=now)
                await connection.execute(admitted)
            await write_events(connection, EventKind.TASK_ADMITTED, [{"task_id": each} for each in ready], now=now)
            unlaid = await _unlaid(connection, never)
            for message, ids in unlaid.items():
                await give_up(connection, ids, Reason.LAYER_FAILED, message, now=now)
            others = set(never).difference(*unlaid.values())
            await give_up(connection, sorted(others), Reason.DEPENDENCY_FAILED, _NEVER, now=now)
        if ready:
            self._bell.ring()
        return (*ready, *never)

    async def _found(self, now: datetime, since: datetime | None, limit: int) -> tuple[list[str], list[str]]:
        """What is due, and what will never be."""
        found: dict[str, bool] = {}
        async with self._database.reading() as connection:
            for query in _ALL if since is None else _NEWS:
                rows = await connection.execute(query, {"now": now, "since": since, "most": limit})
                found |= {row.id: bool(row.lost) for row in rows}
        return [each for each, lost in found.items() if not lost], [each for each, lost in found.items() if lost]

    async def shorten_waits(self, *, now: datetime, longest_seconds: Mapping[str, float]) -> int:
        """Cut what tasks that were tried wait for their next attempt to the longest of their pool, since a clock jumped
        back: how many."""
        cut = 0
        async with self._database.writing() as connection:
            for pool, seconds in longest_seconds.items():
                most = now + timedelta(seconds=seconds)
                waits = (PENDING, TASKS.c.not_before > most, TASKS.c.attempt > 0, TASKS.c.pool == pool)
                cut += (await connection.execute(update(TASKS).where(*waits).values(not_before=most))).rowcount
        return cut
