"""Who waits in one queue, as a claimer reads it: what that costs does not grow with the number of tasks that wait."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.task import MAX_PRIORITY
from orchestrator.store.asking import ask
from orchestrator.store.conditions import SQL_HELD, SQL_READY
from orchestrator.store.shares import share_out
from orchestrator.store.taken import SQL_LEFT_OVER

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# The frontends that wait with the highest priority below :below, those that are next first, each with its oldest tasks.
# Each step of the recursion is one look into the index on (pool, priority, frontend, id); DISTINCT would read every
# task that waits. ORDER BY with LIMIT in the index's own order, with a range of one value where an equation would let
# the planner take another index, is looked up whatever the planner believes of the number of rows.
_WAITS = """
WITH RECURSIVE top(priority) AS (
  SELECT (SELECT priority FROM tasks WHERE {SQL_READY} AND pool = :pool AND priority < :below
          ORDER BY pool DESC, priority DESC LIMIT 1)
), waits(frontend) AS (
  SELECT (SELECT frontend FROM tasks
          WHERE {SQL_READY} AND pool = :pool AND priority = (SELECT priority FROM top)
          ORDER BY pool, priority, frontend LIMIT 1)
  UNION ALL
  SELECT (SELECT tasks.frontend FROM tasks
          WHERE {SQL_READY} AND pool = :pool AND priority = (SELECT priority FROM top)
          AND tasks.frontend > waits.frontend ORDER BY pool, priority, tasks.frontend LIMIT 1)
  FROM waits WHERE waits.frontend IS NOT NULL
), holds AS (
  SELECT tasks.frontend AS frontend, count(*) AS count FROM tasks WHERE {SQL_HELD} AND pool = :pool
  GROUP BY tasks.frontend
), first AS (
  SELECT waits.frontend AS frontend, coalesce(shares.turn, 0) AS turn, coalesce(holds.count, 0) AS held
  FROM waits LEFT JOIN shares ON shares.pool = :pool AND shares.frontend = waits.frontend
  LEFT JOIN holds ON holds.frontend = waits.frontend
  WHERE waits.frontend IS NOT NULL ORDER BY coalesce(holds.count, 0), coalesce(shares.turn, 0), waits.frontend
  LIMIT :most
)
SELECT (SELECT priority FROM top) AS priority, first.frontend AS frontend, first.turn AS turn, first.held AS held,
  (SELECT {AGGREGATE}(oldest.id) FROM (
    SELECT tasks.id FROM tasks
    WHERE {SQL_READY} AND pool = :pool AND priority = (SELECT priority FROM top)
      AND tasks.frontend >= first.frontend AND tasks.frontend <= first.frontend
    ORDER BY tasks.frontend, tasks.id LIMIT :most) AS oldest) AS ids,
  (SELECT sum(holds.count) FROM holds) AS all_held,
  CASE WHEN :limited = 1 THEN (
    SELECT count(*) FROM vms WHERE {SQL_LEFT_OVER} AND vms.pool = :pool
  ) END AS left_over
FROM first
"""
_WORDS = {"SQL_READY": SQL_READY, "SQL_HELD": SQL_HELD, "SQL_LEFT_OVER": SQL_LEFT_OVER}
_READ = {
    name: _WAITS.format(**_WORDS, AGGREGATE=aggregate)
    for name, aggregate in {"postgresql": "json_agg", "sqlite": "json_group_array"}.items()
}


@dataclass(frozen=True, slots=True)
class Served:
    """A task's turn: the number that its queue had then. `vm_id`: the ready VM that it takes."""

    pool: str
    frontend: str
    task_id: str
    turn: int
    vm_id: str | None


class Line:
    """One queue. `turn`: when it was last served. `taken`: how many count against `max_vms`: tasks of it that runners
    hold, with those that were served here, and VMs that are for no task or left over from others. A task that takes
    a ready one makes it no more."""

    def __init__(self, pool: str, most: int, *, limited: bool, now: datetime) -> None:
        self.pool = pool
        self.turn = 0
        self.taken = 0
        self._now = (now - _EPOCH) // timedelta(microseconds=1)
        self._most = most
        self._limited = limited
        self._waiting: dict[str, list[str]] = {}
        self._turns: dict[str, int] = {}
        self._held: dict[str, int] = {}
        self._served: Counter[str] = Counter()
        self._ids: set[str] = set()
        self._more = 0
        """By how much `taken` has grown here."""
        self._last: dict[str, int] = {}
        self._below: int | None = MAX_PRIORITY + 1

    def question(self, dialect: str) -> tuple[str, Mapping[str, Any]]:
        """Who waits with the next priority; to be followed by `hear`, with the answer."""
        # As many more as were served: these may be behind the others by now.
        most = self._most + len(self._ids)
        values = {"pool": self.pool, "below": self._below, "most": most, "limited": int(self._limited)}
        return _READ[dialect], values

    def hear(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Those that wait, in place of those that were read before."""
        self._below = rows[0]["priority"] if rows else None
        if rows:
            self.taken = int(rows[0]["all_held"] or 0) + (rows[0]["left_over"] or 0) + self._more
        self._turns = {row["frontend"]: self._last.get(row["frontend"], row["turn"]) for row in rows}
        self._held = {row["frontend"]: row["held"] + self._served[row["frontend"]] for row in rows}
        self._waiting = {}
        for row in rows:
            ids = json.loads(row["ids"]) if isinstance(row["ids"], str) else row["ids"]
            self._waiting[row["frontend"]] = [each for each in ids if each not in self._ids]

    async def serve(self, connection: AsyncConnection, count: int, ready: list[str]) -> list[Served]:
        """The next `count`; fewer, when no more wait. The first ones take the VMs in `ready`, out of which they go."""
        served: list[Served] = []
        while len(served) < count and self._below is not None:
            for frontend, task_id in share_out(self._waiting, self._held, self._turns, count - len(served)):
                served += self.take(frontend, task_id, ready)
            if len(served) < count:
                [rows] = await ask(connection, [self.question(connection.dialect.name)])
                self.hear(rows)
        return served

    def take(self, frontend: str, task_id: str, ready: list[str]) -> list[Served]:
        """This one, unless it was served already."""
        if task_id in self._ids:
            return []
        if task_id in (waiting := self._waiting.get(frontend, [])):
            waiting.remove(task_id)
        vm_id = ready.pop(0) if ready else None
        self.turn = max(self.turn, self._now) + 1
        if vm_id is None:
            self.taken += 1
            self._more += 1
        self._ids.add(task_id)
        self._served[frontend] += 1
        self._turns[frontend] = self._last[frontend] = self.turn
        self._held[frontend] = self._held.get(frontend, 0) + 1
        return [Served(self.pool, frontend, task_id, self.turn, vm_id)]
