"""Runners take tasks: one priority after the other, the frontends in turn, the oldest task of each first.

Claimers of one queue take turns at its row, which makes `max_vms` and the turns hold across all runners; those of one
process that come while another has its turn get theirs together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.task import TaskSpec, TaskState
from orchestrator.domain.vm import VmState
from orchestrator.store.asking import ask
from orchestrator.store.bell import Bell
from orchestrator.store.chain import Chain
from orchestrator.store.columns import as_utc
from orchestrator.store.conditions import READY, SQL_READY, SQL_SPARE
from orchestrator.store.encoding import spec_from_json
from orchestrator.store.engine import Database
from orchestrator.store.events import EventKind
from orchestrator.store.grouped import Grouped
from orchestrator.store.guards import IN_ORDER, LEASE, Room, given_by
from orchestrator.store.lines import Line, Offer, Served
from orchestrator.store.schema import LAYERS, TASKS
from orchestrator.store.views import Claim, Lease, Row, task_view

_IMAGE = select(LAYERS.c.image_version).where(LAYERS.c.key == TASKS.c.layer).scalar_subquery()
_ONLY = select(TASKS.c.pool, TASKS.c.frontend, TASKS.c.id, _IMAGE.label("image")).where(
    READY, TASKS.c.id == bindparam("only")
)
_ROWS = select(TASKS).where(TASKS.c.id.in_(bindparam("ids", expanding=True)))
# Of these queues, those that have a ready task and are not paused. They are locked, in one order, so that no two
# claimers wait for each other.
_QUEUES = f"""
SELECT queues.pool, queues.turn FROM queues
WHERE queues.pool IN ({{POOLS}}) AND queues.paused_at IS NULL
  AND (SELECT 1 FROM tasks WHERE {SQL_READY} AND tasks.pool = queues.pool
    ORDER BY tasks.pool, tasks.priority, tasks.frontend, tasks.id LIMIT 1) = 1
ORDER BY queues.pool {{LOCKED}}
"""  # noqa: S608  made of our own words alone
_LOCK = {
    "postgresql": _QUEUES.format(POOLS="SELECT json_array_elements_text(CAST(:pools AS json))", LOCKED="FOR UPDATE"),
    "sqlite": _QUEUES.format(POOLS="SELECT value FROM json_each(:pools)", LOCKED=""),
}
# What most claims come to, where one frontend waits: the rows of the first ones, read with the same round trip.
_FIRST = f"""
SELECT tasks.* FROM tasks WHERE {SQL_READY} AND pool = :pool AND priority = (
  SELECT priority FROM tasks WHERE {SQL_READY} AND pool = :pool ORDER BY pool DESC, priority DESC LIMIT 1)
ORDER BY pool, priority, frontend, id LIMIT :most
"""  # noqa: S608  made of our own words alone
# VMs that may be taken stay as they are until this transaction is over.
_TAKE = f"""
SELECT vms.id, vms.pool, vms.runner_id, vms.host, vms.image_version FROM vms
WHERE vms.id IN ({{IDS}}) AND vms.state = '{VmState.READY}' AND {SQL_SPARE} ORDER BY vms.id {{LOCKED}}
"""  # noqa: S608  made of our own words alone
_READY = {
    "postgresql": _TAKE.format(
        IDS="SELECT json_array_elements_text(CAST(:ids AS json))", LOCKED="FOR NO KEY UPDATE OF vms"
    ),
    "sqlite": _TAKE.format(IDS="SELECT value FROM json_each(:ids)", LOCKED=""),
}
_CLAIM = Chain(
    {
        **LEASE,
        "at": datetime,
        "lease_expires_at": datetime,
        "deadline_at": datetime,
        "pool": str,
        "frontend": str,
        "turn": int,
        "vm_id": str,
        "kind": str,
        "data": dict,
        "vm_data": dict,
    },
    # One that was canceled a moment ago is left out.
    f"""
    UPDATE tasks SET state = '{TaskState.RUNNING}', attempt = v.attempt, runner_id = v.runner_id, reason = NULL,
      message = '', lease_expires_at = v.lease_expires_at, deadline_at = v.deadline_at,
      started_at = coalesce(tasks.started_at, v.at)
    FROM v WHERE tasks.id = v.task_id AND {SQL_READY} AND tasks.attempt = v.attempt - 1
    RETURNING tasks.id AS task_id
    """,  # noqa: S608  made of our own words alone
    returned={"task_id": str},
    events=f"""
    INSERT INTO events (at, kind, task_id, attempt, vm_id, runner_id, data)
    SELECT told.at, told.kind, told.task_id, told.attempt, told.vm_id, told.runner_id, told.data FROM (
      SELECT v.at, v.kind, v.task_id, v.attempt, NULL AS vm_id, v.runner_id, v.data, v.place, 0 AS step FROM v
      UNION ALL
      SELECT v.at, '{EventKind.VM_MOVED}', v.task_id, v.attempt, v.vm_id, v.runner_id, v.vm_data, v.place, 1 FROM v
      WHERE v.vm_id IS NOT NULL
    ) AS told JOIN t ON t.task_id = told.task_id ORDER BY told.place, told.step
    """,  # noqa: S608  made of our own words alone
    then=(
        """
        INSERT INTO attempts (task_id, number, runner_id, vm_id, started_at, timings, artifacts, environment)
        SELECT v.task_id, v.attempt, v.runner_id, v.vm_id, v.at, '{}', '{}', '{}' FROM v JOIN t ON t.task_id = v.task_id
        """,
        f"""
        UPDATE vms SET state = '{VmState.IN_USE}', task_id = v.task_id, attempt = v.attempt, moved_at = v.at,
          deadline_at = v.deadline_at
        FROM v JOIN t ON t.task_id = v.task_id WHERE vms.id = v.vm_id
        """,  # noqa: S608  made of our own words alone
        """
        INSERT INTO shares (pool, frontend, turn)
        SELECT v.pool, v.frontend, max(v.turn) FROM v WHERE true GROUP BY v.pool, v.frontend
        ON CONFLICT (pool, frontend) DO UPDATE SET turn = excluded.turn
        """,
        """
        UPDATE queues SET turn = last.turn FROM (SELECT v.pool, max(v.turn) AS turn FROM v GROUP BY v.pool) AS last
        WHERE queues.pool = last.pool
        """,
    ),
    locked=IN_ORDER,
)


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """One call of `claim`. `ready`: of which those that may be taken are left once the queues are locked."""

    runner_id: str
    room: Mapping[str, int]
    ready: dict[str, list[str]]
    max_vms: Mapping[str, int]
    lease_expires_at: datetime
    now: datetime
    deadline: Callable[[TaskSpec], datetime]
    up_to: int
    only: str | None

    @property
    def pools(self) -> set[str]:
        return {*self.room, *self.ready}

    def most(self, pool: str) -> int:
        """How many of the queue it may get at most."""
        return min(self.up_to, self.room.get(pool, 0) + len(self.ready.get(pool, ())))

    def leave(self, used: Collection[str | None]) -> None:
        """These VMs to those who had them before."""
        for ids in self.ready.values():
            ids[:] = [vm_id for vm_id in ids if vm_id not in used]

    def offer(self, line: Line, vms: Mapping[str, Row]) -> Offer:
        """What there is for the queue's tasks: VMs that are ready, and room for new ones."""
        free = self.room.get(line.pool, 0)
        if line.pool in self.max_vms:
            free = min(free, self.max_vms[line.pool] - line.taken)
        ready = self.ready.get(line.pool, [])
        return Offer(ready, max(free, 0), {each: vms[each]["image_version"] for each in ready})


class Claiming(Room):
    def __init__(self, database: Database, bell: Bell) -> None:
        super().__init__(database, bell)
        self._claim = Grouped(self._claim_all, key=lambda asked: asked)

    async def claim(
        self,
        runner_id: str,
        room: Mapping[str, int],
        *,
        max_vms: Mapping[str, int],
        lease_seconds: float,
        now: datetime,
        deadline: Callable[[TaskSpec], datetime],
        up_to: int = 1,
        only: str | None = None,
        ready: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> tuple[Claim, ...]:
        """Take up to so many ready tasks (or just the task `only`) and begin an attempt of each.

        room: how many of each pool can be placed now; none of others are taken. max_vms: how many VMs a pool may have
        over all runners, where it has a limit; a task that is held counts as one, whether its VM is there yet or not.
        ready: this runner's READY VMs of each pool that are for no attempt, in the order in which they are to be used:
        a task takes one of them first, which is IN_USE with the same write; that needs no room, and the VM was counted
        before. One on a host that the task had better avoid is taken only for want of another. Those that are not ready
        any more are passed over. One that runs with a layer takes only one of the image version that the layer is for.
        deadline: when the attempt must be over. Queues that are paused give nothing. Of several pools, each gets
        an even part first, the one that was served longest ago first. The runner must be registered. A caller that is
        canceled may have got tasks, as after any write; what it holds then runs out with its lease.
        """
        wanted = {pool: count for pool, count in room.items() if count > 0}
        offered = {pool: list(dict.fromkeys(ids)) for pool, ids in ready.items() if ids}
        if not (wanted or offered) or up_to < 1:
            return ()
        until = as_utc(now) + timedelta(seconds=lease_seconds)
        return await self._claim(_Asked(runner_id, wanted, offered, max_vms, until, as_utc(now), deadline, up_to, only))

    async def _claim_all(self, group: Sequence[_Asked]) -> Sequence[tuple[Claim, ...]]:
        async with self._database.writing() as connection:
            lines, known, vms = await _lines(connection, group)
            if not lines:
                return [()] * len(group)
            served: list[list[Served]] = []
            for asked in group:
                asked.leave({each.vm_id for every in served for each in every})
                served.append(await _serve(connection, asked, lines, vms))
            return await _hold(connection, group, served, known, vms)


async def _lines(
    connection: AsyncConnection, group: Sequence[_Asked]
) -> tuple[dict[str, Line], dict[str, Row], dict[str, Row]]:
    """Lock the queues, then read who waits in them; also, by their ids, rows of tasks that may be next and of VMs that
    are ready."""
    lines = []
    first = []
    for pool in sorted({pool for asked in group for pool in asked.pools}):
        here = [asked for asked in group if pool in asked.pools]
        most = sum(asked.most(pool) for asked in here)
        limited = any(pool in asked.max_vms for asked in here)
        first.append((_FIRST, {"pool": pool, "most": most}))
        lines.append(Line(pool, most, limited=limited, now=max(asked.now for asked in here)))
    dialect = connection.dialect.name
    lock = _LOCK[dialect], {"pools": json.dumps([line.pool for line in lines])}
    # Of SQLite, nothing but a round trip would be saved.
    first = first if dialect == "postgresql" else []
    offered = sorted({vm_id for asked in group for ids in asked.ready.values() for vm_id in ids})
    take = [(_READY[dialect], {"ids": json.dumps(offered)})] if offered else []
    locked, *answers = await ask(connection, [lock, *take, *(line.question(dialect) for line in lines), *first])
    found = answers.pop(0) if take else []
    _pass_over(group, found)
    turns = {row["pool"]: row["turn"] for row in locked}
    for line, rows in zip(lines, answers[: len(lines)], strict=True):
        line.turn = turns.get(line.pool, 0)
        line.hear(rows)
    known: dict[str, Row] = {row["id"]: _in_utc(row) for rows in answers[len(lines) :] for row in rows}
    return {line.pool: line for line in lines if line.pool in turns}, known, {row["id"]: row for row in found}


def _pass_over(group: Sequence[_Asked], found: Sequence[Mapping[str, Any]]) -> None:
    """Leave of the VMs that were offered those that may be taken."""
    free = {(row["id"], row["pool"], row["runner_id"]) for row in found}
    for asked in group:
        for pool, ids in asked.ready.items():
            ids[:] = [vm_id for vm_id in ids if (vm_id, pool, asked.runner_id) in free]


def _in_utc(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: as_utc(value) if isinstance(value, datetime) else value for name, value in row.items()}


async def _serve(
    connection: AsyncConnection, asked: _Asked, lines: Mapping[str, Line], vms: Mapping[str, Row]
) -> list[Served]:
    """What one caller gets, of what those before it in the group have left."""
    if asked.only is not None:
        row = (await connection.execute(_ONLY, {"only": asked.only})).first()
        if row is None or (line := lines.get(row.pool)) is None:
            return []
        return line.take(row.frontend, row.id, row.image, asked.offer(line, vms))
    mine = sorted(
        (line for line in lines.values() if line.pool in asked.pools), key=lambda each: (each.turn, each.pool)
    )
    offers = {line.pool: asked.offer(line, vms) for line in mine}
    mine = [line for line in mine if offers[line.pool].most]
    served: list[Served] = []
    for even in (True, False):
        for left, line in zip(range(len(mine), 0, -1), mine, strict=True):
            count = asked.up_to - len(served)
            most = min(offers[line.pool].most, -(-count // left) if even else count)
            served += await line.serve(connection, most, offers[line.pool])
    return served


async def _hold(
    connection: AsyncConnection,
    group: Sequence[_Asked],
    served: Sequence[Sequence[Served]],
    rows: dict[str, Row],
    vms: Mapping[str, Row],
) -> list[tuple[Claim, ...]]:
    ids = [each.task_id for every in served for each in every]
    if not ids:
        return [()] * len(group)
    if unknown := [each for each in ids if each not in rows]:
        rows |= {row["id"]: row for row in (await connection.execute(_ROWS, {"ids": unknown})).mappings()}
    given, claims = [], []
    taken = {each.vm_id for every in served for each in every if each.vm_id is not None}
    for asked, every in zip(group, served, strict=True):
        for first in every:
            row = rows[first.task_id]
            each = _elsewhere(first, row["avoid"], asked.ready, taken, vms)
            spec = spec_from_json(row["spec"])
            lease = Lease(each.task_id, row["attempt"] + 1, asked.runner_id)
            changed = {
                "state": TaskState.RUNNING,
                "attempt": lease.attempt,
                "runner_id": lease.runner_id,
                "reason": None,
                "message": "",
                "lease_expires_at": asked.lease_expires_at,
                "deadline_at": as_utc(asked.deadline(spec)),
                "started_at": row["started_at"] or asked.now,
            }
            claims.append((asked, Claim(task_view({**row, **changed}, spec), lease, each.vm_id)))
            given.append(
                {
                    **given_by(lease),
                    "at": asked.now,
                    "lease_expires_at": asked.lease_expires_at,
                    "deadline_at": changed["deadline_at"],
                    "pool": each.pool,
                    "frontend": each.frontend,
                    "turn": each.turn,
                    "vm_id": each.vm_id,
                    "kind": EventKind.TASK_CLAIMED.value,
                    "data": {},
                    "vm_data": None if each.vm_id is None else _taken_for(each.task_id),
                }
            )
    held = {row["task_id"] for row in await _CLAIM.run_last(connection, given)}
    return [tuple(claim for by, claim in claims if by is asked and claim.task.id in held) for asked in group]


def _elsewhere(
    served: Served,
    avoid: Collection[str],
    ready: Mapping[str, Sequence[str]],
    taken: set[str],
    vms: Mapping[str, Row],
) -> Served:
    """With another ready VM, if there is one and the task had better not be on the host of its own."""
    if served.vm_id is None or vms[served.vm_id]["host"] not in avoid:
        return served
    for vm_id in ready[served.pool]:
        fits = served.image in (None, vms[vm_id]["image_version"])
        if fits and vm_id not in taken and vms[vm_id]["host"] not in avoid:
            taken.add(vm_id)  # the other is for nobody else of this claim
            return replace(served, vm_id=vm_id)
    return served


def _taken_for(task_id: str) -> dict[str, str]:
    return {"state": VmState.IN_USE, "because": f"it was ready for task {task_id}"}
