"""Layers: what the packages of tasks make. Built once, by a task of its own, for all tasks with the same key."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Select, and_, delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.outcome import Reason
from orchestrator.domain.task import TaskSpec, TaskState
from orchestrator.store.bell import Bell
from orchestrator.store.conditions import PENDING, UNLAID
from orchestrator.store.engine import Database
from orchestrator.store.events import EventKind, write_event, write_events
from orchestrator.store.guards import BUILDERS, Room, give_up, is_due
from orchestrator.store.schema import DEPENDENCIES, LAYERS, TASKS
from orchestrator.store.tasks import Tasks
from orchestrator.store.views import Row, TaskRow

_TRIES = 5
_AT_ONCE = 1000
"""Of tasks in one statement. SQLite takes 32,766: https://www.sqlite.org/limits.html#max_variable_number"""


@dataclass(frozen=True, slots=True)
class LayerRow:
    """What the packages of some tasks make, for VMs of one image version. `task_id`: the task that builds it. Once it
    is ready: `blob`, its tree in the artifact store, and `resolved`, the packages in it, as "name==version"."""

    key: str
    image_version: str
    task_id: str
    blob: str | None
    resolved: tuple[str, ...] | None
    made_at: datetime
    ready_at: datetime | None


class Layers(Room):
    def __init__(self, database: Database, bell: Bell, tasks: Tasks) -> None:
        super().__init__(database, bell)
        self._tasks = tasks

    async def get(self, key: str) -> LayerRow | None:
        found = await self._rows(select(LAYERS).where(LAYERS.c.key == key))
        return found[0] if found else None

    async def of_task(self, task_id: str) -> LayerRow | None:
        """What a task's packages make. None: it brings none, or nobody has found out yet."""
        mine = select(LAYERS).join(TASKS, TASKS.c.layer == LAYERS.c.key).where(TASKS.c.id == task_id)
        found = await self._rows(mine)
        return found[0] if found else None

    async def list(self) -> tuple[LayerRow, ...]:
        """All, newest first."""
        return await self._rows(select(LAYERS).order_by(LAYERS.c.made_at.desc(), LAYERS.c.key))

    async def wanted(self, limit: int = 500) -> tuple[TaskRow, ...]:
        """Tasks that wait and bring packages, of which nobody has found out yet which layer they make, oldest first."""
        return await self._read(select(TASKS).where(UNLAID).order_by(TASKS.c.id).limit(limit))

    async def built(self) -> tuple[LayerRow, ...]:
        """Those whose builder FINISHED, and which are neither ready nor refused."""
        # Not as a join, for which SQLite would begin with all that FINISHED.
        state = select(TASKS.c.state).where(TASKS.c.id == LAYERS.c.task_id).scalar_subquery()
        found = select(LAYERS).where(LAYERS.c.ready_at.is_(None), state == TaskState.FINISHED)
        return await self._rows(found.order_by(LAYERS.c.made_at, LAYERS.c.key))

    async def order(
        self,
        key: str,
        image_version: str,
        spec: TaskSpec,
        *,
        for_tasks: Collection[str],
        now: datetime,
        deadline_at: datetime,
        max_waiting: int | None = None,
    ) -> LayerRow:
        """Have these tasks run with the layer `key`: those of them that wait, bring packages and have none yet. Where
        there is no such layer, or its builder is over without success, a task of `spec` is submitted that builds it;
        until it is ready the others depend on that one. All in one transaction; it may be done again.

        spec: of a builder. deadline_at, max_waiting, and what is raised: as of `tasks.submit`.
        """
        for last in range(_TRIES)[::-1]:
            try:
                async with self._database.writing() as connection:
                    layer = await _locked(connection, key)
                    in_vain = layer is not None and await _is_in_vain(connection, layer)
                    if layer is None or in_vain:
                        builder = await self._tasks.submit_in(
                            connection,
                            spec,
                            now=now,
                            deadline_at=deadline_at,
                            frontend=BUILDERS,
                            submitted_by=BUILDERS,
                            max_waiting=max_waiting,
                        )
                        row = {"key": key, "image_version": image_version, "task_id": builder.id, "made_at": now}
                        layer = await (_renew if in_vain else _make)(connection, row)
                    await _lay(connection, layer, for_tasks, now=now)
            except IntegrityError:
                # Another ordered it at the same time, or its builder was forgotten this moment.
                if not last:
                    raise
            else:
                self._bell.ring()
                return layer
        raise AssertionError("unreachable")

    async def ready(self, key: str, blob: str, resolved: Sequence[str], *, now: datetime) -> bool:
        """The layer is in the artifact store. Those that wait for nothing else are admitted. False: it was before, or
        there is no such layer."""
        async with self._database.writing() as connection:
            guarded = update(LAYERS).where(LAYERS.c.key == key, LAYERS.c.ready_at.is_(None))
            values = {"blob": blob, "resolved": list(resolved), "ready_at": now}
            builder = await connection.scalar(guarded.values(values).returning(LAYERS.c.task_id))
            if builder is None:
                return False
            data = {"key": key, "blob": blob}
            await write_event(connection, EventKind.LAYER_READY, now=now, task_id=builder, data=data)
            for ids in await _waiting(connection, key):
                await _admit(connection, ids, now=now)
        self._bell.ring()
        return True

    async def refuse(self, key: str, message: str, *, now: datetime) -> tuple[str, ...]:
        """What a builder that FINISHED has made cannot be used: it is forgotten, so that the next order has another
        built. The tasks that waited for it, which FAILED. Nothing happens to a layer that is ready, or not built."""
        async with self._database.writing() as connection:
            layer = await _locked(connection, key)
            if layer is None or layer.ready_at is not None:
                return ()
            if await _state(connection, layer.task_id) is not TaskState.FINISHED:
                return ()
            waiting = await _waiting(connection, key)
            for ids in waiting:
                await give_up(connection, ids, Reason.LAYER_FAILED, message, now=now)
            await connection.execute(delete(LAYERS).where(LAYERS.c.key == key))
            data = {"key": key, "message": message}
            await write_event(connection, EventKind.LAYER_REFUSED, now=now, task_id=layer.task_id, data=data)
            return tuple(each for ids in waiting for each in ids)

    async def _rows(self, query: Select[*tuple[object, ...]]) -> tuple[LayerRow, ...]:
        async with self._database.reading() as connection:
            return tuple(_view(row) for row in (await connection.execute(query)).mappings())


async def _locked(connection: AsyncConnection, key: str) -> LayerRow | None:
    """What waits for a layer is changed only by who holds its row."""
    row = (await connection.execute(select(LAYERS).where(LAYERS.c.key == key).with_for_update())).mappings().first()
    return None if row is None else _view(row)


async def _state(connection: AsyncConnection, task_id: str) -> TaskState:
    return TaskState((await connection.execute(select(TASKS.c.state).where(TASKS.c.id == task_id))).scalar_one())


async def _is_in_vain(connection: AsyncConnection, layer: LayerRow) -> bool:
    """Its builder is over without success."""
    if layer.ready_at is not None:
        return False
    return await _state(connection, layer.task_id) in (TaskState.FAILED, TaskState.CANCELED)


async def _make(connection: AsyncConnection, row: Mapping[str, object]) -> LayerRow:
    """Raises IntegrityError when another does so at the same time."""
    return _view((await connection.execute(insert(LAYERS).values(row).returning(LAYERS))).mappings().one())


async def _renew(connection: AsyncConnection, row: Mapping[str, object]) -> LayerRow:
    """With another builder, in place of what one has built in vain. The row is locked."""
    again = update(LAYERS).where(LAYERS.c.key == row["key"]).values(row).returning(LAYERS)
    return _view((await connection.execute(again)).mappings().one())


async def _lay(connection: AsyncConnection, layer: LayerRow, for_tasks: Collection[str], *, now: datetime) -> None:
    """Let these run with the layer, and wait for it until it is ready."""
    found = select(TASKS.c.id).where(TASKS.c.id.in_(tuple(for_tasks)), UNLAID).order_by(TASKS.c.id)
    ids = tuple((await connection.execute(found.with_for_update(key_share=True))).scalars())
    if not ids:
        return
    await connection.execute(update(TASKS).where(TASKS.c.id.in_(ids)).values(layer=layer.key))
    data = {"key": layer.key, "builder": layer.task_id}
    await write_events(connection, EventKind.TASK_LAYER, [{"task_id": each, "data": data} for each in ids], now=now)
    if layer.ready_at is None:
        rows = [{"task_id": each, "on_task_id": layer.task_id} for each in ids]
        await connection.execute(insert(DEPENDENCIES), rows)
    else:
        await _admit(connection, ids, now=now)


async def _waiting(connection: AsyncConnection, key: str) -> list[Sequence[str]]:
    """The tasks that wait with this layer, locked in their order, as many together as a statement takes."""
    found = select(TASKS.c.id).where(PENDING, TASKS.c.layer == key).order_by(TASKS.c.id)
    ids = (await connection.execute(found.with_for_update(key_share=True))).scalars().all()
    return [ids[first : first + _AT_ONCE] for first in range(0, len(ids), _AT_ONCE)]


async def _admit(connection: AsyncConnection, ids: Collection[str], *, now: datetime) -> None:
    due = and_(TASKS.c.id.in_(tuple(ids)), PENDING, is_due(now))
    went = await connection.execute(update(TASKS).where(due).values(admitted_at=now).returning(TASKS.c.id))
    rows = [{"task_id": each} for each in sorted(went.scalars())]
    await write_events(connection, EventKind.TASK_ADMITTED, rows, now=now)


def _view(row: Row) -> LayerRow:
    fields = {name: row[name] for name in LayerRow.__dataclass_fields__}
    return LayerRow(**{**fields, "resolved": None if row["resolved"] is None else tuple(row["resolved"])})
