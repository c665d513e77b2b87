"""Mayfly's own store, with all of its bookkeeping: attempt rows, events, leases, shares, fences."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

from sqlalchemy import create_engine, make_url, text

from bench.queue.system import CONNECTIONS, DEEP, QUICK
from orchestrator.domain.task import TaskSpec, TaskState
from orchestrator.store import Claim, Finished, Store
from orchestrator.store.schema import EVENTS, TASKS

LEASE_SECONDS = 60.0
WAIT_SECONDS = 5.0
ATTEMPT_SECONDS = QUEUE_SECONDS = 86_400.0
MAX_VMS = 1_000_000
"""Every pool has such a limit, and a claim holds to it; this one is never reached."""
COMMAND = ("sh", "-c", "echo begun; echo ending")
WAITING = "WHERE pool = :pool AND state = 'QUEUED'"
COPIES = """
WITH RECURSIVE series(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM series WHERE n + 1 < :count)
INSERT INTO {table} ({key}, {others}) SELECT :made_in || {suffix}, {others} FROM series CROSS JOIN {table}
WHERE {key} = :last
"""


class Mayfly:
    """`async with Mayfly.open(url, name) as system: …`"""

    claims_many = True
    finishes_many = False

    def __init__(self, store: Store, url: str, name: str, runner_id: str) -> None:
        self.name = name
        self._store = store
        self._url = url
        self._runner_id = runner_id
        self._specs = {queue: TaskSpec(pool=queue, command=COMMAND) for queue in (DEEP, QUICK)}

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, name: str) -> AsyncIterator[Mayfly]:
        """In an empty database, or in none yet."""
        async with await Store.open(url) as store:
            await store.clock.sync()
            runner = await store.runners.register(
                name="bench", host=socket.gethostname(), pid=os.getpid(), pools=(DEEP, QUICK), now=store.clock.now()
            )
            yield cls(store, url, name, runner.id)

    async def fill(self, waiting: int) -> None:
        await self.enqueue(DEEP)
        await asyncio.to_thread(self._copy_last, waiting)

    def _copy_last(self, waiting: int) -> None:
        """Copies of the task that was submitted last, each with its event, under ids of the same millisecond."""
        url = make_url(self._url)
        postgres = url.get_backend_name() == "postgresql"
        engine = create_engine(url.set(drivername="postgresql+psycopg" if postgres else "sqlite"))
        suffix = "lpad(n::text, 6, '0')" if postgres else "printf('%06d', n)"
        try:
            with engine.begin() as connection:
                there = connection.execute(text(f"SELECT count(*), max(id) FROM tasks {WAITING}"), {"pool": DEEP}).one()
                count, last = waiting - there[0], there[1]
                if count <= 0:
                    return
                for table, key, left_out in ((TASKS, "id", {"id"}), (EVENTS, "task_id", {"task_id", "number"})):
                    others = ", ".join(column.name for column in table.columns if column.name not in left_out)
                    copies = COPIES.format(table=table.name, key=key, others=others, suffix=suffix)
                    connection.execute(text(copies), {"last": last, "made_in": last[:10], "count": count})
        finally:
            engine.dispose()

    async def enqueue(self, queue: str) -> None:
        now = self._store.clock.now()
        await self._store.tasks.submit(self._specs[queue], now=now, deadline_at=self._queue_deadline(now))

    async def enqueue_many(self, queue: str, count: int) -> None:
        now = self._store.clock.now()
        specs = [self._specs[queue]] * count
        await self._store.tasks.submit_many(specs, now=now, deadline_at=self._queue_deadline(now))

    async def claim(self, queue: str, count: int) -> Sequence[Claim]:
        now = self._store.clock.now()
        return await self._store.tasks.claim(
            self._runner_id,
            {queue: count},
            max_vms={queue: MAX_VMS},
            lease_seconds=LEASE_SECONDS,
            now=now,
            up_to=count,
            deadline=lambda spec: now + timedelta(seconds=ATTEMPT_SECONDS),
        )

    async def finish(self, held: Sequence[Claim]) -> None:
        for claim in held:
            finished = Finished(claim.lease, TaskState.FINISHED, exit_code=0)
            if not await self._store.tasks.finish(finished, now=self._store.clock.now()):
                raise RuntimeError("a lease was lost")

    @asynccontextmanager
    async def working(self, queue: str, taken: Callable[[], None]) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            running = group.create_task(self._work(queue, taken))
            yield
            running.cancel()

    async def _work(self, queue: str, taken: Callable[[], None]) -> None:
        """As a runner does it: claim what there is room for, each task then in a coroutine of its own; wait when there
        is nothing."""
        under_way: set[asyncio.Task[None]] = set()
        async with self._store.wakeups() as wakeups:
            try:
                while True:
                    claims = await self.claim(queue, CONNECTIONS - len(under_way))
                    for claim in claims:
                        taken()
                        task = asyncio.create_task(self.finish([claim]))
                        under_way.add(task)
                        task.add_done_callback(under_way.discard)
                    if len(under_way) >= CONNECTIONS or (under_way and not claims):
                        await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                    elif not claims:
                        await wakeups.wait(WAIT_SECONDS)
            finally:
                if under_way:
                    await asyncio.wait(under_way)

    @staticmethod
    def _queue_deadline(now: datetime) -> datetime:
        return now + timedelta(seconds=QUEUE_SECONDS)
