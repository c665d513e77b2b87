"""PgQueuer, by its asyncpg pool driver, which its documentation names for throughput under high concurrency.

It claims and finishes in batches; a finished job moves from its queue table to its log.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import uuid4

import asyncpg  # type: ignore[import-untyped]
from pgqueuer import PgQueuer
from pgqueuer.models import Job
from pgqueuer.ports.repository import EntrypointExecutionParameter
from pgqueuer.queries import Queries
from pgqueuer.types import QueueEntrypoint, QueueManagerId

from bench.queue.system import BATCH, CONNECTIONS, DEEP, PAYLOAD_BYTES

PAYLOAD = b"x" * PAYLOAD_BYTES
HEARTBEAT = timedelta(seconds=30)
FILL = """
WITH filled AS (
    INSERT INTO pgqueuer (priority, status, entrypoint, payload, execute_after)
    SELECT 0, 'queued', $1, $2, now() FROM generate_series(1, $3::int)
    RETURNING id
)
INSERT INTO pgqueuer_log (job_id, status, entrypoint, priority) SELECT id, 'queued', $1, 0 FROM filled
"""


class PgQueuerSystem:
    """`async with PgQueuerSystem.open(dsn) as system: …`"""

    name = "PgQueuer"
    claims_many = True
    finishes_many = True

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._queries = Queries.from_asyncpg_pool(pool)
        self._manager = QueueManagerId(uuid4())

    @classmethod
    @asynccontextmanager
    async def open(cls, dsn: str) -> AsyncIterator[PgQueuerSystem]:
        """In an empty database."""
        async with asyncpg.create_pool(dsn, min_size=CONNECTIONS, max_size=CONNECTIONS) as pool:
            system = cls(pool)
            await system._queries.install()
            yield system

    async def fill(self, waiting: int) -> None:
        query = "SELECT count(*) FROM pgqueuer WHERE status = 'queued' AND entrypoint = $1"
        count = waiting - await self._pool.fetchval(query, DEEP)
        if count > 0:
            await self._pool.execute(FILL, DEEP, PAYLOAD, count, timeout=600)

    async def enqueue(self, queue: str) -> None:
        await self._queries.enqueue(queue, PAYLOAD)

    async def enqueue_many(self, queue: str, count: int) -> None:
        await self._queries.enqueue([queue] * count, [PAYLOAD] * count, [0] * count)

    async def claim(self, queue: str, count: int) -> Sequence[Job]:
        return await self._queries.dequeue(
            batch_size=count,
            entrypoints={QueueEntrypoint(queue): EntrypointExecutionParameter(concurrency_limit=0)},
            queue_manager_id=self._manager,
            global_concurrency_limit=None,
            heartbeat_timeout=HEARTBEAT,
        )

    async def finish(self, held: Sequence[Job]) -> None:
        await self._queries.log_jobs([(job, "successful", None) for job in held])

    @asynccontextmanager
    async def working(self, queue: str, taken: Callable[[], None]) -> AsyncIterator[None]:
        worker = PgQueuer.from_asyncpg_pool(self._pool)

        @worker.entrypoint(queue)
        async def work(job: Job) -> None:
            taken()

        async with asyncio.TaskGroup() as group:
            group.create_task(worker.run(batch_size=BATCH, max_concurrent_tasks=CONNECTIONS))
            yield
            worker.shutdown.set()
