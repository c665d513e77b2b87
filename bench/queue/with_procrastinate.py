"""procrastinate, by its psycopg connector: `defer_async`, `batch_defer_async`, `run_worker_async`.

It claims and finishes one job at a time. Finished jobs stay in their table, which is its default (and ours).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import psycopg
from procrastinate import App, PsycopgConnector
from procrastinate.jobs import Job, Status
from procrastinate.types import JSONValue
from procrastinate.worker import Worker

from bench.queue.system import CONNECTIONS, DEEP, PAYLOAD_BYTES, QUICK

PAYLOAD = "x" * PAYLOAD_BYTES
FILL = """
WITH filled AS (
    INSERT INTO procrastinate_jobs (queue_name, task_name, args)
    SELECT %(queue)s, %(queue)s, jsonb_build_object('payload', %(payload)s::text) FROM generate_series(1, %(count)s)
    RETURNING id
)
INSERT INTO procrastinate_events (job_id, type) SELECT id, 'deferred' FROM filled
"""
"""Without its per-row triggers, one of which writes the event that is written here for all, the other a NOTIFY."""


class Procrastinate:
    """`async with Procrastinate.open(dsn) as system: …`"""

    name = "procrastinate"
    claims_many = False
    finishes_many = False

    def __init__(self, app: App, dsn: str, worker_id: int) -> None:
        self._app = app
        self._dsn = dsn
        self._worker_id = worker_id
        self._arguments: dict[str, JSONValue] = {"payload": PAYLOAD}
        self._taken: Callable[[], None] = lambda: None
        self._tasks = {queue: app.task(name=queue, queue=queue)(self._job) for queue in (DEEP, QUICK)}

    @classmethod
    @asynccontextmanager
    async def open(cls, dsn: str) -> AsyncIterator[Procrastinate]:
        """In an empty database."""
        app = App(connector=PsycopgConnector(conninfo=dsn, min_size=CONNECTIONS, max_size=CONNECTIONS))
        async with app.open_async():
            await app.schema_manager.apply_schema_async()
            yield cls(app, dsn, await app.job_manager.register_worker())

    async def _job(self, payload: str) -> None:
        self._taken()

    async def fill(self, waiting: int) -> None:
        # Its workers take one that has not beaten for 30 s for dead, and we are one that does not beat.
        self._worker_id = await self._app.job_manager.register_worker()
        async with await psycopg.AsyncConnection.connect(self._dsn, autocommit=True) as connection:
            query = "SELECT count(*) FROM procrastinate_jobs WHERE status = 'todo' AND queue_name = %s"
            found = await (await connection.execute(query, [DEEP])).fetchone()
            count = waiting - (found[0] if found else 0)
            if count > 0:
                async with connection.transaction():
                    await connection.execute("SET LOCAL session_replication_role = replica")
                    await connection.execute(FILL, {"queue": DEEP, "payload": PAYLOAD, "count": count})

    async def enqueue(self, queue: str) -> None:
        await self._tasks[queue].defer_async(payload=PAYLOAD)

    async def enqueue_many(self, queue: str, count: int) -> None:
        await self._tasks[queue].batch_defer_async(*[self._arguments] * count)

    async def claim(self, queue: str, count: int) -> Sequence[Job]:
        job = await self._app.job_manager.fetch_job(queues=[queue], worker_id=self._worker_id)
        return [] if job is None else [job]

    async def finish(self, held: Sequence[Job]) -> None:
        for job in held:
            await self._app.job_manager.finish_job(job, status=Status.SUCCEEDED, delete_job=False)

    @asynccontextmanager
    async def working(self, queue: str, taken: Callable[[], None]) -> AsyncIterator[None]:
        self._taken = taken
        worker = Worker(self._app, queues=[queue], concurrency=CONNECTIONS, install_signal_handlers=False)
        async with asyncio.TaskGroup() as group:
            group.create_task(worker.run())  # type: ignore[no-untyped-call]
            yield
            worker.stop()  # type: ignore[no-untyped-call]
