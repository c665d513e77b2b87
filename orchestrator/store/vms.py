"""VMs: a row before OpenNebula is asked, and until OpenNebula says that the machine is gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Executable, and_, delete, func, or_, select

from orchestrator.domain.vm import LEGAL_MOVES, VmState
from orchestrator.store.chain import Chain, Columns
from orchestrator.store.columns import as_utc, shown
from orchestrator.store.conditions import IS_SPARE, SQL_SPARE, SQL_VM_OPEN, VM_OPEN
from orchestrator.store.engine import Database
from orchestrator.store.events import EventKind, vm_event
from orchestrator.store.grouped import Grouped, guarded
from orchestrator.store.guards import legal
from orchestrator.store.ids import new_id
from orchestrator.store.schema import EVENTS, LAUNCHES, VMS
from orchestrator.store.taken import taken
from orchestrator.store.transitions import VmMoved, VmRequest
from orchestrator.store.views import Launch, VmCount, VmRow, launch_view, vm_view

_CHANGED = "RETURNING vms.id AS vm_id, vms.task_id, vms.attempt, vms.runner_id, vms.state"
_RETURNED: Columns = {"vm_id": str, "task_id": str, "attempt": int, "runner_id": str, "state": str}
_IN_ORDER = ("vms", "vms.id = given.vm_id", "vms.id")
_REQUESTED: Columns = {
    "vm_id": str,
    "pool": str,
    "image_version": str,
    "host_key": str,
    "host_public_key": str,
    "task_id": str,
    "attempt": int,
    "holder": str,
    "runner_id": str,
    "at": datetime,
    "deadline_at": datetime,
    "because": str,
}
_INSERT = f"""
INSERT INTO vms (id, pool, image_version, state, host_key, host_public_key, task_id, attempt, runner_id, created_at,
  moved_at, deadline_at)
SELECT v.vm_id, v.pool, v.image_version, '{VmState.REQUESTED}', v.host_key, v.host_public_key, v.task_id, v.attempt,
  v.runner_id, v.at, v.at, v.deadline_at FROM v
"""  # noqa: S608  made of our own words alone
_HAS_NONE = """{v}.task_id = attempts.task_id AND {v}.attempt = attempts.number AND {v}.holder = attempts.runner_id
  AND attempts.finished_at IS NULL AND attempts.vm_id IS NULL"""
_REQUEST = Chain(
    _REQUESTED,
    f"{_INSERT} JOIN attempts ON {_HAS_NONE.format(v='v')} {_CHANGED}",
    returned=_RETURNED,
    events=vm_event(EventKind.VM_REQUESTED),
    then=(
        """
        UPDATE attempts SET vm_id = v.vm_id FROM v JOIN t ON t.vm_id = v.vm_id
        WHERE attempts.task_id = v.task_id AND attempts.number = v.attempt
        """,
    ),
    locked=("attempts", _HAS_NONE.format(v="given"), "attempts.task_id"),
)
_REQUEST_SPARE = Chain(
    _REQUESTED, f"{_INSERT} WHERE true {_CHANGED}", returned=_RETURNED, events=vm_event(EventKind.VM_REQUESTED)
)
"""One that is for no attempt yet."""
_KNOW = Chain(
    {"vm_id": str, "cloud_id": int, "at": datetime, "because": str},
    f"""
    UPDATE vms SET cloud_id = v.cloud_id FROM v
    WHERE vms.id = v.vm_id AND {SQL_VM_OPEN} AND (vms.cloud_id IS NULL OR vms.cloud_id = v.cloud_id) {_CHANGED}
    """,  # noqa: S608  made of our own words alone
    returned=_RETURNED,
    events=vm_event(EventKind.VM_KNOWN),
    locked=_IN_ORDER,
)
_MOVE = Chain(
    {
        "vm_id": str,
        "state": str,
        "runner_id": str,
        "deadline_at": datetime,
        "address": str,
        "close_proof": str,
        "at": datetime,
        "because": str,
        "if_spare": bool,
    },
    f"""
    UPDATE vms SET state = v.state, moved_at = v.at, address = coalesce(v.address, vms.address),
      deadline_at = CASE WHEN v.state <> '{VmState.DESTROYED}' THEN v.deadline_at END,
      destroyed_at = CASE WHEN v.state = '{VmState.DESTROYED}' THEN v.at END,
      close_proof = CASE WHEN v.state = '{VmState.DESTROYED}' THEN v.close_proof END
    FROM v WHERE vms.id = v.vm_id AND (vms.state, v.state) IN {legal(LEGAL_MOVES)}
      AND (v.runner_id IS NULL OR vms.runner_id = v.runner_id)
      AND (v.state <> '{VmState.IN_USE}' OR vms.task_id IS NOT NULL)
      AND (NOT v.if_spare OR {SQL_SPARE}) {_CHANGED}
    """,  # noqa: S608  made of our own words alone
    returned=_RETURNED,
    events=vm_event(EventKind.VM_MOVED),
    locked=_IN_ORDER,
)
_RECORD_LAUNCH = Chain(
    {"vm_id": str, "launch": str, "message": str, "seconds": float, "host": str, "at": datetime},
    f"""
    UPDATE vms SET launch = v.launch, launch_message = v.message, launch_seconds = v.seconds, launch_at = v.at,
      host = coalesce(v.host, vms.host)
    FROM v WHERE vms.id = v.vm_id AND vms.launch IS NULL {_CHANGED}
    """,  # noqa: S608  made of our own words alone
    returned=_RETURNED,
    locked=_IN_ORDER,
)


class Vms:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._request = guarded(database, _REQUEST, "vm_id", of="task_id")
        self._request_spare = Grouped(self._request_spares, key=lambda asked: asked[0]["vm_id"])
        self._know = guarded(database, _KNOW, "vm_id")
        self._move = guarded(database, _MOVE, "vm_id")
        self._record_launch = guarded(database, _RECORD_LAUNCH, "vm_id")

    async def request(self, request: VmRequest, *, now: datetime, max_vms: int | None = None) -> VmRow | None:
        """Write down the intent, before OpenNebula is asked: a VM that is REQUESTED. Its id goes into the VM's tags.

        max_vms: of a spare, how many VMs its pool may have over all runners; a task that is held counts as one, whether
        its VM is there yet or not. None: the attempt that it is for is over, or has a VM already, or the pool has as
        many as it may; do not ask for one.
        """
        lease = request.lease
        row = {
            "vm_id": new_id(now),
            "pool": request.pool,
            "image_version": request.image_version,
            "host_key": request.host_key,
            "host_public_key": request.host_public_key,
            "task_id": None if lease is None else lease.task_id,
            "attempt": None if lease is None else lease.attempt,
            "holder": None if lease is None else lease.runner_id,
            "runner_id": request.runner_id,
            "at": now,
            "deadline_at": request.deadline_at,
            "because": "",
        }
        if not await (self._request_spare((row, max_vms)) if lease is None else self._request(row)):
            return None
        unknown: dict[str, Any] = dict.fromkeys(VmRow.__dataclass_fields__)
        row |= {name: shown(value) for name, value in row.items() if isinstance(value, str)}  # as it is kept
        at = {"created_at": as_utc(now), "moved_at": as_utc(now), "deadline_at": as_utc(request.deadline_at)}
        return vm_view({**unknown, **row, **at, "id": row["vm_id"], "state": VmState.REQUESTED})

    async def _request_spares(self, group: Sequence[tuple[Mapping[str, Any], int | None]]) -> Sequence[bool]:
        """In turn with those who claim of the same queues."""
        limited = sorted({row["pool"] for row, max_vms in group if max_vms is not None})
        async with self._database.writing() as connection:
            has = await taken(connection, limited)
            fits = []
            for row, max_vms in group:
                fits.append(max_vms is None or has[row["pool"]] < max_vms)
                if fits[-1] and row["pool"] in has:
                    has[row["pool"]] += 1
            rows = [row for (row, _), fit in zip(group, fits, strict=True) if fit]
            if rows:
                await _REQUEST_SPARE.run_last(connection, rows)
        return fits

    async def set_cloud_id(self, vm_id: str, cloud_id: int, *, now: datetime) -> bool:
        """OpenNebula has answered. False: it has one already, or is gone. Writing the same id again is fine."""
        because = f"OpenNebula calls it {cloud_id}"
        return await self._know({"vm_id": vm_id, "cloud_id": cloud_id, "at": now, "because": because})

    async def move(self, moved: VmMoved, *, now: datetime) -> bool:
        """Apply a move. False: stale, not legal from where the VM is (`LEGAL_MOVES`), or not this runner's VM."""
        return await self._move(
            {
                "vm_id": moved.vm_id,
                "state": moved.state.value,
                "runner_id": moved.runner_id,
                "deadline_at": moved.deadline_at,
                "address": moved.address,
                "close_proof": moved.close_proof,
                "at": now,
                "because": moved.because or moved.close_proof or "",
                "if_spare": moved.if_spare,
            }
        )

    async def record_launch(
        self,
        vm_id: str,
        *,
        ok: bool,
        now: datetime,
        message: str = "",
        seconds: float | None = None,
        host: str = "",
    ) -> bool:
        """How its launch went, what it took, and on which host. False: that was recorded before."""
        launch = LAUNCHES[0] if ok else LAUNCHES[1]
        row = {"vm_id": vm_id, "launch": launch, "message": message, "seconds": seconds, "host": host or None}
        return await self._record_launch({**row, "at": now})

    async def launches(self, *, since: datetime, limit: int = 1000) -> tuple[Launch, ...]:
        """Those that were recorded since then, newest first."""
        query = select(VMS).where(VMS.c.launch_at.is_not(None), VMS.c.launch_at >= since)
        async with self._database.reading() as connection:
            found = await connection.execute(query.order_by(VMS.c.launch_at.desc(), VMS.c.id.desc()).limit(limit))
            return tuple(launch_view(row) for row in found.mappings())

    async def forget(
        self, before_by_pool: Mapping[str, datetime], default_before: datetime, *, limit: int = 500
    ) -> int:
        """Delete VMs that were for no attempt and are gone since before this instant of their pool, or before
        `default_before` in others, with their events: how many. The others go with their tasks."""
        each = [and_(VMS.c.pool == pool, VMS.c.destroyed_at < instant) for pool, instant in before_by_pool.items()]
        rest = and_(VMS.c.pool.not_in(tuple(before_by_pool)), VMS.c.destroyed_at < default_before)
        old = select(VMS.c.id).where(IS_SPARE, VMS.c.destroyed_at.is_not(None), or_(*each, rest)).limit(limit)
        async with self._database.writing() as connection:
            gone = tuple((await connection.execute(old)).scalars())
            if gone:
                await connection.execute(delete(EVENTS).where(EVENTS.c.vm_id.in_(gone)))
                await connection.execute(delete(VMS).where(VMS.c.id.in_(gone)))
        return len(gone)

    async def get(self, vm_id: str) -> VmRow | None:
        found = await self._read(select(VMS).where(VMS.c.id == vm_id))
        return found[0] if found else None

    async def open(self) -> tuple[VmRow, ...]:
        """All that are not DESTROYED, oldest first."""
        return await self._read(select(VMS).where(VM_OPEN).order_by(VMS.c.id))

    async def open_by_pool(self) -> dict[str, int]:
        """How many of each pool are not DESTROYED; pools without one are left out."""
        query = select(VMS.c.pool, func.count()).where(VM_OPEN).group_by(VMS.c.pool)
        async with self._database.reading() as connection:
            return {row[0]: row[1] for row in await connection.execute(query)}

    async def counts(self) -> tuple[VmCount, ...]:
        """How many open ones there are, by pool, runner, state, and whether they are spare."""
        columns = (VMS.c.pool, VMS.c.runner_id, VMS.c.state, IS_SPARE.label("spare"))
        query = select(*columns, func.count()).where(VM_OPEN).group_by(*columns[:3], IS_SPARE)
        async with self._database.reading() as connection:
            found = await connection.execute(query.order_by(*columns[:3]))
            return tuple(VmCount(row[0], row[1], VmState(row[2]), bool(row[3]), row[4]) for row in found)

    async def spares(self, runner_id: str | None = None) -> tuple[VmRow, ...]:
        """Open ones that are for no attempt (of this runner), oldest first."""
        query = select(VMS).where(VM_OPEN, IS_SPARE).order_by(VMS.c.id)
        return await self._read(query if runner_id is None else query.where(VMS.c.runner_id == runner_id))

    async def of_task(self, task_id: str) -> tuple[VmRow, ...]:
        """All that a task was ever given, oldest first."""
        return await self._read(select(VMS).where(VMS.c.task_id == task_id).order_by(VMS.c.id))

    async def list(self, *, limit: int = 100) -> tuple[VmRow, ...]:
        """The newest `limit`, newest first, destroyed ones too."""
        return await self._read(select(VMS).order_by(VMS.c.id.desc()).limit(limit))

    async def _read(self, query: Executable) -> tuple[VmRow, ...]:
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).mappings()
            return tuple(vm_view(row) for row in rows)
