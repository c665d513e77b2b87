"""Runners keep what they hold, let go of it, or take over what another let go of."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.task import Stage
from orchestrator.domain.vm import VmState
from orchestrator.store.attempts import NOTE_STAGE
from orchestrator.store.bell import Bell
from orchestrator.store.chain import Chain
from orchestrator.store.conditions import IS_HELD
from orchestrator.store.engine import Database
from orchestrator.store.events import LEASE_EVENT, EventKind, write_lease_event
from orchestrator.store.grouped import guarded
from orchestrator.store.guards import HELD_BY_V, IN_ORDER, LEASE, Room, applied, given_by, held_by
from orchestrator.store.schema import ATTEMPTS, TASKS, VMS
from orchestrator.store.transitions import StageEntered
from orchestrator.store.views import Beat, Claim, Lease, task_view

_ADOPTABLE = (Stage.EXECUTING.value, Stage.STAGING_OUT.value)


_STAGES = tuple(Stage)
_PLACE = " ".join(f"WHEN '{stage}' THEN {place}" for place, stage in enumerate(_STAGES))
_ENTER_STAGE = Chain(
    {**LEASE, "at": datetime, "iso": str, "stage": str, "place_of_stage": int, "kind": str, "data": dict},
    f"""
    UPDATE tasks SET stage = v.stage FROM v
    WHERE {HELD_BY_V} AND (tasks.stage IS NULL OR CASE tasks.stage {_PLACE} END < v.place_of_stage)
    RETURNING tasks.id AS task_id
    """,  # noqa: S608  made of our own words alone
    returned={"task_id": str},
    events=LEASE_EVENT,
    then=(NOTE_STAGE,),
    locked=IN_ORDER,
)

_LET_GO = Chain(
    {**LEASE, "at": datetime, "kind": str, "data": dict},
    f"""
    UPDATE tasks SET lease_expires_at = v.at FROM v WHERE {HELD_BY_V} AND tasks.lease_expires_at > v.at
    RETURNING tasks.id AS task_id
    """,  # noqa: S608  made of our own words alone
    returned={"task_id": str},
    events=LEASE_EVENT,
    locked=IN_ORDER,
)


class Holding(Room):
    def __init__(self, database: Database, bell: Bell) -> None:
        super().__init__(database, bell)
        self._enter_stage = guarded(database, _ENTER_STAGE, "task_id")
        self._let_go = guarded(database, _LET_GO, "task_id")

    async def enter_stage(self, entered: StageEntered, *, now: datetime) -> bool:
        """Say where the attempt is. False: stale, or not forward."""
        return await self._enter_stage(
            {
                **given_by(entered.lease),
                "at": now,
                "iso": now.isoformat(),
                "stage": entered.stage.value,
                "place_of_stage": _STAGES.index(entered.stage),
                "kind": EventKind.TASK_STAGE.value,
                "data": {"stage": entered.stage},
            }
        )

    async def heartbeat(self, lease: Lease, *, lease_seconds: float, now: datetime) -> Beat | None:
        """Extend the lease. None: stale, somebody else has the task or it is over; stop and clean up."""
        return (await self.beat(lease.runner_id, (lease,), lease_seconds=lease_seconds, now=now)).get(lease)

    async def beat(
        self, runner_id: str, leases: Collection[Lease], *, lease_seconds: float, now: datetime
    ) -> Mapping[Lease, Beat]:
        """Extend all of these leases of a runner. One that is not in the answer is lost: somebody else has the task,
        or it is over."""
        by_number: dict[int, list[str]] = {}
        for lease in sorted(leases, key=lambda lease: lease.task_id):
            if lease.runner_id == runner_id:
                by_number.setdefault(lease.attempt, []).append(lease.task_id)
        until = now + timedelta(seconds=lease_seconds)
        beats: dict[Lease, Beat] = {}
        async with self._database.writing() as connection:
            if self._database.is_postgresql and len(leases) > 1:
                # In the order of `IN_ORDER`.
                every = [task_id for ids in by_number.values() for task_id in ids]
                rows = select(TASKS.c.id).where(TASKS.c.id.in_(every)).order_by(TASKS.c.id)
                await connection.execute(rows.with_for_update(key_share=True))
            # Few attempts are not a first or a second one, so these are few statements.
            for number, ids in sorted(by_number.items()):
                extended = (
                    update(TASKS)
                    .where(TASKS.c.id.in_(ids), TASKS.c.attempt == number, IS_HELD, TASKS.c.runner_id == runner_id)
                    .values(lease_expires_at=until)
                    .returning(TASKS.c.id, TASKS.c.attempt, TASKS.c.lease_expires_at, TASKS.c.cancel_requested_at)
                )
                for row in await connection.execute(extended):
                    beat = Beat(row.lease_expires_at, row.cancel_requested_at is not None)
                    beats[Lease(row.id, row.attempt, runner_id)] = beat
        return {lease: beats[lease] for lease in leases if lease in beats}

    async def canceling(self, runner_id: str) -> frozenset[Lease]:
        """What this runner holds and somebody wants canceled."""
        query = select(TASKS.c.id, TASKS.c.attempt).where(
            IS_HELD, TASKS.c.runner_id == runner_id, TASKS.c.cancel_requested_at.is_not(None)
        )
        async with self._database.reading() as connection:
            return frozenset(Lease(row.id, row.attempt, runner_id) for row in await connection.execute(query))

    async def let_go(self, lease: Lease, *, now: datetime) -> bool:
        """End the lease, so that another may adopt the attempt or upkeep end it. False: stale."""
        kind = EventKind.TASK_LET_GO.value
        if not await self._let_go({**given_by(lease), "at": now, "kind": kind, "data": {}}):
            return False
        self._bell.ring()
        return True

    async def adopt(
        self, runner_id: str, pools: Collection[str], *, lease_seconds: float, now: datetime, up_to: int = 1
    ) -> tuple[Claim, ...]:
        """Take over attempts of these pools whose runner let its lease run out while their process was in a machine:
        task, attempt and VM are then ours, under the same number.

        Left alone is what upkeep will end: a verdict is recorded, or the deadline has passed. So is what this runner
        itself still holds: it may extend its own lease.
        """
        adoptable = (
            select(TASKS.c.id, TASKS.c.attempt, TASKS.c.runner_id, VMS.c.id.label("vm_id"))
            .select_from(TASKS)
            .join(VMS, (VMS.c.task_id == TASKS.c.id) & (VMS.c.attempt == TASKS.c.attempt))
            .join(ATTEMPTS, (ATTEMPTS.c.task_id == TASKS.c.id) & (ATTEMPTS.c.number == TASKS.c.attempt))
            .where(
                IS_HELD,
                TASKS.c.pool.in_(tuple(pools)),
                TASKS.c.lease_expires_at < now,
                TASKS.c.runner_id != runner_id,
                TASKS.c.stage.in_(_ADOPTABLE),
                TASKS.c.deadline_at > now,
                VMS.c.state == VmState.IN_USE,
                VMS.c.runner_id == TASKS.c.runner_id,
                ATTEMPTS.c.verdict.is_(None),
                ATTEMPTS.c.finished_at.is_(None),
            )
            .order_by(TASKS.c.lease_expires_at, TASKS.c.id)
            .limit(up_to)
        )
        # There is hardly ever one, and this is asked often: a writer would have to wait for its turn.
        async with self._database.reading_at_once() as connection:
            if (await connection.execute(adoptable)).first() is None:
                return ()
        # Who moves its machine, for which we wait, refers to the task (KEY SHARE), and must not wait for us.
        locked = adoptable.with_for_update(of=TASKS, skip_locked=True, key_share=True)
        claims: list[Claim] = []
        async with self._database.writing() as connection:
            for found in (await connection.execute(locked)).all():
                claim = await self._take_over(connection, found, runner_id, now, now + timedelta(seconds=lease_seconds))
                claims += [] if claim is None else [claim]
            for claim in claims:
                await write_lease_event(connection, EventKind.TASK_ADOPTED, claim.lease, now=now)
        return tuple(claims)

    async def _take_over(
        self, connection: AsyncConnection, found: Any, runner_id: str, now: datetime, until: datetime
    ) -> Claim | None:
        """None: its machine is being ended this moment."""
        ours = (
            update(VMS)
            .where(VMS.c.id == found.vm_id, VMS.c.state == VmState.IN_USE, VMS.c.runner_id == found.runner_id)
            .values(runner_id=runner_id)
        )
        if not await applied(connection, ours):
            return None
        old = Lease(found.id, found.attempt, found.runner_id)
        taken = (
            update(TASKS)
            .where(held_by(old), TASKS.c.lease_expires_at < now)
            .values(runner_id=runner_id, lease_expires_at=until)
            .returning(TASKS)
        )
        row = (await connection.execute(taken)).mappings().one()
        attempt = update(ATTEMPTS).where(ATTEMPTS.c.task_id == found.id, ATTEMPTS.c.number == found.attempt)
        await connection.execute(attempt.values(runner_id=runner_id))
        return Claim(task_view(row), Lease(found.id, found.attempt, runner_id), found.vm_id)

    async def shorten_leases(self, *, now: datetime, longest_seconds: float) -> int:
        """Cut leases that lie further ahead than any runner asks for, since a clock jumped back: how many."""
        most = now + timedelta(seconds=longest_seconds)
        async with self._database.writing() as connection:
            cut = update(TASKS).where(IS_HELD, TASKS.c.lease_expires_at > most).values(lease_expires_at=most)
            return (await connection.execute(cut)).rowcount
