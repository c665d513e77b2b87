"""VMs: a row before OpenNebula is asked, and until OpenNebula says that the machine is gone."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Executable, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.vm import LEGAL_MOVES, VmState
from orchestrator.store.engine import Database
from orchestrator.store.events import EventKind, write_event
from orchestrator.store.ids import new_id
from orchestrator.store.schema import ATTEMPTS, VM_OPEN, VMS
from orchestrator.store.transitions import VmMoved, VmRequest
from orchestrator.store.views import Row, VmRow, vm_view


def _before(state: VmState) -> tuple[VmState, ...]:
    """The states from which `state` may be entered."""
    return tuple(source for source in VmState if state in LEGAL_MOVES[source])


class Vms:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def request(self, request: VmRequest, *, now: datetime) -> VmRow | None:
        """Write down the intent, before OpenNebula is asked: a VM that is REQUESTED. Its id goes into the VM's tags.

        None: the attempt that it is for is over, or has a VM already; do not ask for one.
        """
        vm_id, lease = new_id(now), request.lease
        row = {
            "id": vm_id,
            "pool": request.pool,
            "image_version": request.image_version,
            "state": VmState.REQUESTED,
            "host_key": request.host_key,
            "host_public_key": request.host_public_key,
            "task_id": None if lease is None else lease.task_id,
            "attempt": None if lease is None else lease.attempt,
            "runner_id": request.runner_id,
            "created_at": now,
            "moved_at": now,
            "deadline_at": request.deadline_at,
        }
        async with self._database.writing() as connection:
            made = (await connection.execute(insert(VMS).values(row).returning(VMS))).mappings().one()
            if lease is not None:
                guarded = update(ATTEMPTS).where(
                    ATTEMPTS.c.task_id == lease.task_id,
                    ATTEMPTS.c.number == lease.attempt,
                    ATTEMPTS.c.runner_id == lease.runner_id,
                    ATTEMPTS.c.finished_at.is_(None),
                    ATTEMPTS.c.vm_id.is_(None),
                )
                if (await connection.execute(guarded.values(vm_id=vm_id))).rowcount != 1:
                    await connection.rollback()
                    return None
            await self._tell(connection, EventKind.VM_REQUESTED, made, now=now, because="")
            return vm_view(made)

    async def set_cloud_id(self, vm_id: str, cloud_id: int, *, now: datetime) -> bool:
        """OpenNebula has answered. False: it has one already, or is gone. Writing the same id again is fine."""
        known = (
            update(VMS)
            .where(
                VMS.c.id == vm_id,
                VMS.c.state != VmState.DESTROYED,
                VMS.c.cloud_id.is_(None) | (VMS.c.cloud_id == cloud_id),
            )
            .values(cloud_id=cloud_id)
            .returning(VMS)
        )
        async with self._database.writing() as connection:
            row = (await connection.execute(known)).mappings().first()
            if row is None:
                return False
            await self._tell(connection, EventKind.VM_KNOWN, row, now=now, because=f"OpenNebula calls it {cloud_id}")
            return True

    async def move(self, moved: VmMoved, *, now: datetime) -> bool:
        """Apply a move. False: stale, not legal from where the VM is (`LEGAL_MOVES`), or not this runner's VM."""
        guarded = update(VMS).where(VMS.c.id == moved.vm_id, VMS.c.state.in_(_before(moved.state)))
        if moved.runner_id is not None:
            guarded = guarded.where(VMS.c.runner_id == moved.runner_id)
        values: dict[str, object] = {"state": moved.state, "moved_at": now, "deadline_at": moved.deadline_at}
        if moved.address is not None:
            values["address"] = moved.address
        if moved.state is VmState.IN_USE:
            guarded = guarded.where(VMS.c.task_id.is_not(None))
        if moved.state is VmState.DESTROYED:
            values |= {"destroyed_at": now, "close_proof": moved.close_proof, "deadline_at": None}
        async with self._database.writing() as connection:
            row = (await connection.execute(guarded.values(values).returning(VMS))).mappings().first()
            if row is None:
                return False
            await self._tell(
                connection, EventKind.VM_MOVED, row, now=now, because=moved.because or moved.close_proof or ""
            )
            return True

    async def get(self, vm_id: str) -> VmRow | None:
        found = await self._read(select(VMS).where(VMS.c.id == vm_id))
        return found[0] if found else None

    async def open(self) -> tuple[VmRow, ...]:
        """All that are not DESTROYED, oldest first."""
        return await self._read(select(VMS).where(VM_OPEN).order_by(VMS.c.id))

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

    async def _tell(
        self, connection: AsyncConnection, kind: EventKind, row: Row, *, now: datetime, because: str
    ) -> None:
        await write_event(
            connection,
            kind,
            now=now,
            task_id=row["task_id"],
            attempt=row["attempt"],
            vm_id=row["id"],
            runner_id=row["runner_id"],
            data={"state": row["state"], "because": because},
        )
