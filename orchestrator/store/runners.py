"""Runners: who is there to claim tasks. A runner that stops beating is seen by nobody but this table."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, insert, select, update

from orchestrator.domain.errors import NotPossible
from orchestrator.store.engine import Database
from orchestrator.store.events import EventKind, write_event
from orchestrator.store.ids import new_id
from orchestrator.store.schema import INSTALLATION, RUNNERS
from orchestrator.store.views import RunnerRow, runner_view

ALIVE_SECONDS = 30.0
"""After so long without a heartbeat a runner is taken to be gone."""


class Runners:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def register(
        self,
        *,
        name: str,
        host: str,
        pid: int,
        pools: Collection[str],
        now: datetime,
        gone: Callable[[int], bool] | None = None,
    ) -> RunnerRow:
        """A runner begins: a new one each time, so that a restarted process never passes for its former self.

        gone: of the pid of a process of this host, whether it is no more. Raises NotPossible when a runner of this name
        is alive. One that merely has not left is taken to have, also one of this host that beat a moment ago, if its
        process is gone.
        """
        row = {
            "id": new_id(now),
            "name": name,
            "host": host,
            "pid": pid,
            "pools": list(pools),
            "started_at": now,
            "heartbeat_at": now,
        }
        dead: set[str] = set()
        while True:
            other, is_ours = await self._join(row, dead, now=now)
            if is_ours:
                return other
            if other.host != host or gone is None or not gone(other.pid):
                problem = f"a runner {name!r} is at work, process {other.pid} on {other.host}"
                raise NotPossible("name", problem, "give each its own name, or wait until it is gone")
            dead.add(other.id)

    async def _join(self, row: Mapping[str, Any], dead: Collection[str], *, now: datetime) -> tuple[RunnerRow, bool]:
        """The new runner, and True; or the one that is alive and not among the `dead`, and False."""
        namesake = (RUNNERS.c.name == row["name"]) & RUNNERS.c.left_at.is_(None)
        alive = namesake & _beat_within(ALIVE_SECONDS, now) & RUNNERS.c.id.not_in(dead)
        async with self._database.writing() as connection:
            # One at a time: two would not see each other.
            await connection.execute(select(INSTALLATION.c.id).with_for_update())
            other = (await connection.execute(select(RUNNERS).where(alive))).mappings().first()
            if other is not None:
                return runner_view(other), False
            await connection.execute(update(RUNNERS).where(namesake).values(left_at=now))
            made = (await connection.execute(insert(RUNNERS).values(row).returning(RUNNERS))).mappings().one()
            data = {name: row[name] for name in ("name", "host", "pid", "pools")}
            await write_event(connection, EventKind.RUNNER_JOINED, now=now, runner_id=made["id"], data=data)
            return runner_view(made), True

    async def heartbeat(self, runner_id: str, *, now: datetime) -> bool:
        """Still there. False: no such runner, or it has left."""
        async with self._database.writing() as connection:
            guarded = update(RUNNERS).where(RUNNERS.c.id == runner_id, RUNNERS.c.left_at.is_(None))
            return (await connection.execute(guarded.values(heartbeat_at=now))).rowcount == 1

    async def serves(self, runner_id: str, pools: Collection[str]) -> bool:
        """It takes tasks of these pools from now on. False: no such runner, or it has left."""
        async with self._database.writing() as connection:
            here = update(RUNNERS).where(RUNNERS.c.id == runner_id, RUNNERS.c.left_at.is_(None))
            return (await connection.execute(here.values(pools=list(pools)))).rowcount == 1

    async def drain(self, runner_id: str, *, now: datetime) -> bool:
        """It takes no more tasks. False: no such runner, or it drains or has left already."""
        async with self._database.writing() as connection:
            here = (RUNNERS.c.id == runner_id) & RUNNERS.c.left_at.is_(None) & RUNNERS.c.draining_at.is_(None)
            if (await connection.execute(update(RUNNERS).where(here).values(draining_at=now))).rowcount != 1:
                return False
            await write_event(connection, EventKind.RUNNER_DRAINING, now=now, runner_id=runner_id)
            return True

    async def serving(self, pool: str, *, now: datetime) -> bool:
        """Whether a runner that is alive takes tasks of this pool."""
        return bool(await self.of_pool(pool, now=now))

    async def of_pool(self, pool: str, *, now: datetime) -> tuple[str, ...]:
        """The ids of the runners that are alive and take tasks of this pool, sorted."""
        rows = await self.alive(now=now)
        return tuple(sorted(row.id for row in rows if pool in row.pools and row.draining_at is None))

    async def leave(self, runner_id: str, *, now: datetime) -> bool:
        """A runner ends. False: no such runner, or it has left before."""
        async with self._database.writing() as connection:
            guarded = update(RUNNERS).where(RUNNERS.c.id == runner_id, RUNNERS.c.left_at.is_(None))
            if (await connection.execute(guarded.values(left_at=now))).rowcount != 1:
                return False
            await write_event(connection, EventKind.RUNNER_LEFT, now=now, runner_id=runner_id)
            return True

    async def get(self, runner_id: str) -> RunnerRow | None:
        async with self._database.reading() as connection:
            row = (await connection.execute(select(RUNNERS).where(RUNNERS.c.id == runner_id))).mappings().first()
            return None if row is None else runner_view(row)

    async def alive(self, *, now: datetime, within_seconds: float = ALIVE_SECONDS) -> tuple[RunnerRow, ...]:
        """Those that have not left and whose last heartbeat is at most `within_seconds` old, oldest first."""
        query = select(RUNNERS).where(RUNNERS.c.left_at.is_(None), _beat_within(within_seconds, now))
        async with self._database.reading() as connection:
            rows = (await connection.execute(query.order_by(RUNNERS.c.id))).mappings()
            return tuple(runner_view(row) for row in rows)


def _beat_within(seconds: float, now: datetime) -> ColumnElement[bool]:
    """A heartbeat from further ahead than that was before the clock was put back, and says nothing."""
    about = timedelta(seconds=seconds)
    return RUNNERS.c.heartbeat_at.between(now - about, now + about)
