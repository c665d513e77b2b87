"""Callers of one process that write the same kind of thing at the same time are served by one write.

A commit waits for the disk, whatever it commits; a statement costs a round trip, whatever it changes. Each caller still
gets its own answer, and only after the commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from sqlalchemy.exc import DataError, IntegrityError

from orchestrator.store.chain import Chain
from orchestrator.store.engine import Database

MOST = 100
"""How many callers are served by one write."""

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Grouped(Generic[Item, Answer]):
    """`await grouped(item)`: the answer to it.

    write: applies some items in one transaction, and gives the answer to each; one that is an exception is raised to
    that caller. key: of two items with the same key the later one waits for the next write. A write that the data of
    one item made fail is done again for each item alone; any other failure is every caller's. A caller that is canceled
    leaves the others alone; what it asked for is written, unless that has not begun.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Item]], Awaitable[Sequence[Answer | Exception]]],
        *,
        key: Callable[[Item], Hashable],
    ) -> None:
        self._write = write
        self._key = key
        self._waiting: list[tuple[Item, asyncio.Future[Answer]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Answer:
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, answer))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all(), name="grouped writes")
        return await answer

    async def _write_all(self) -> None:
        while self._waiting:
            group = self._next()
            try:
                await self._serve(group)
            finally:  # none is left without an answer, whatever becomes of this task
                for _, answer in group:
                    answer.cancel()

    def _next(self) -> list[tuple[Item, asyncio.Future[Answer]]]:
        group: dict[Hashable, tuple[Item, asyncio.Future[Answer]]] = {}
        later = []
        for item, answer in self._waiting:
            key = self._key(item)
            if answer.done():
                continue
            if key in group or len(group) >= MOST:
                later.append((item, answer))
            else:
                group[key] = item, answer
        self._waiting = later
        return list(group.values())

    async def _serve(self, group: Sequence[tuple[Item, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await self._write([item for item, _ in group]) if group else ()
        except (IntegrityError, DataError) as error:
            if len(group) > 1:
                for each in group:
                    await self._serve([each])
                return
            answers = (error,)
        except Exception as error:
            answers = (error,) * len(group)
        for (_, future), answer in zip(group, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)


def guarded(database: Database, chain: Chain, key: str, *, of: str | None = None) -> Grouped[Mapping[str, Any], bool]:
    """Rows for `chain`, each told whether it was applied. `key`: the column that is given and returned, and that tells
    rows apart. `of`: the column of what they change, when that is another."""

    async def write(rows: Sequence[Mapping[str, Any]]) -> Sequence[bool]:
        async with database.writing_at_once() as connection:
            changed = {row[key] for row in await chain.run(connection, rows)}
        return [row[key] in changed for row in rows]

    return Grouped(write, key=lambda row: row[of or key])
