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

_FURTHER = 100
"""How many more of each frontend are looked at when the first ones cannot be placed."""
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
  (SELECT {AGGREGATE} FROM (
    SELECT tasks.id, {SQL_IMAGE} AS image FROM tasks
    WHERE {SQL_READY} AND pool = :pool AND priority = (SELECT priority FROM top)
      AND tasks.frontend >= first.frontend AND tasks.frontend <= first.frontend
    ORDER BY tasks.frontend, tasks.id LIMIT :most) AS oldest) AS ids,
  (SELECT sum(holds.count) FROM holds) AS all_held,
  CASE WHEN :limited = 1 THEN (
    SELECT count(*) FROM vms WHERE {SQL_LEFT_OVER} AND vms.pool = :pool
  ) END AS left_over
FROM first
"""
SQL_IMAGE = "(SELECT layers.image_version FROM layers WHERE layers.key = tasks.layer)"
"""Of a task: the image version whose VMs its layer is for; NULL: any will do."""
_WORDS = {"SQL_READY": SQL_READY, "SQL_HELD": SQL_HELD, "SQL_LEFT_OVER": SQL_LEFT_OVER, "SQL_IMAGE": SQL_IMAGE}
_READ = {
    name: _WAITS.format(**_WORDS, AGGREGATE=aggregate)
    for name, aggregate in {
        "postgresql": "json_agg(json_build_array(oldest.id, oldest.image))",
        "sqlite": "json_group_array(json_array(oldest.id, oldest.image))",
    }.items()
}


@dataclass(frozen=True, slots=True)
class Served:
    """A task's turn: the number that its queue had then. `vm_id`: the ready VM that it takes. `image`: the version of
    which that must be; None: any will do."""

    pool: str
    frontend: str
    task_id: str
    turn: int
    vm_id: str | None
    image: str | None


@dataclass(slots=True)
class Offer:
    """What a caller has for tasks of one queue. `ready`: VMs, with their image versions in `images`, in the order in
    which they are to be used; `room`: for how many new ones there is some."""

    ready: list[str]
    room: int
    images: Mapping[str, str]

    @property
    def most(self) -> int:
        return self.room + len(self.ready)

    def fits(self, image: str | None) -> bool:
        """Whether a task that needs this image version can be placed."""
        return self.room > 0 or self._first(image) is not None

    def take(self, image: str | None) -> str | None:
        """The first VM of that version, which is ready no more; None: a new one is to be made."""
        vm_id = self._first(image)
        if vm_id is None:
            self.room -= 1
        else:
            self.ready.remove(vm_id)
        return vm_id

    def _first(self, image: str | None) -> str | None:
        return next((each for each in self.ready if image in (None, self.images[each])), None)


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
        self._images: dict[str, str | None] = {}
        """By task: the image version of the VMs that it may take."""
        self._turns: dict[str, int] = {}
        self._held: dict[str, int] = {}
        self._served: Counter[str] = Counter()
        self._ids: set[str] = set()
        self._more = 0
        """By how much `taken` has grown here."""
        self._last: dict[str, int] = {}
        self._below: int | None = MAX_PRIORITY + 1
        self._searched: set[int] = set()
        """Priorities of which more was read than is needed at once."""

    def question(self, dialect: str) -> tuple[str, Mapping[str, Any]]:
        """Who waits with the next priority; to be followed by `hear`, with the answer."""
        # As many more as were served: these may be behind the others by now.
        further = self._below is not None and self._below - 1 in self._searched
        most = self._most + len(self._ids) + (_FURTHER if further else 0)
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
            found = dict(json.loads(row["ids"]) if isinstance(row["ids"], str) else row["ids"])
            self._images |= found
            self._waiting[row["frontend"]] = [each for each in found if each not in self._ids]

    async def serve(self, connection: AsyncConnection, count: int, offer: Offer) -> list[Served]:
        """The next `count`; fewer, when no more wait. The first ones take the VMs that are ready, as far as these are
        for them; one for which there is none is passed over while there is no room for another, with up to _FURTHER."""
        served: list[Served] = []
        while len(served) < count and self._below is not None:
            waiting = {
                frontend: [each for each in ids if offer.fits(self._images[each])]
                for frontend, ids in self._waiting.items()
            }
            shares = share_out(waiting, self._held, self._turns, count - len(served))
            got = [each for one in shares for each in self.take(*one, self._images[one[1]], offer)]
            served += got
            # Less than there seemed to be: what one has taken was not there for another; a third may still fit.
            if len(served) < count and len(got) == len(shares):
                if any(self._waiting.values()):
                    self._look_further()
                [rows] = await ask(connection, [self.question(connection.dialect.name)])
                self.hear(rows)
        return served

    def _look_further(self) -> None:
        """Some were read and passed over: see, once, who else waits with this priority."""
        if self._below is None or self._below in self._searched:
            return
        self._searched.add(self._below)
        self._below += 1

    def take(self, frontend: str, task_id: str, image: str | None, offer: Offer) -> list[Served]:
        """This one, unless it was served already, or there is neither a VM for it nor room."""
        if task_id in self._ids or not offer.fits(image):
            return []
        if task_id in (waiting := self._waiting.get(frontend, [])):
            waiting.remove(task_id)
        vm_id = offer.take(image)
        self.turn = max(self.turn, self._now) + 1
        if vm_id is None:
            self.taken += 1
            self._more += 1
        self._ids.add(task_id)
        self._served[frontend] += 1
        self._turns[frontend] = self._last[frontend] = self.turn
        self._held[frontend] = self._held.get(frontend, 0) + 1
        return [Served(self.pool, frontend, task_id, self.turn, vm_id, image)]
