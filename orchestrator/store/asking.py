"""Several questions at once: on PostgreSQL they go out together, and cost one round trip."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import psycopg
from psycopg.rows import dict_row
from sqlalchemy.ext.asyncio import AsyncConnection


async def ask(
    connection: AsyncConnection, questions: Sequence[tuple[str, Mapping[str, Any]]]
) -> list[list[dict[str, Any]]]:
    """The rows that answer each of these statements, whose parameters are written `:name`. They are executed one after
    the other: each sees what was committed before it began."""
    if connection.dialect.name != "postgresql":
        results = [await connection.exec_driver_sql(words, dict(values)) for words, values in questions]
        return [[dict(row) for row in result.mappings()] if result.returns_rows else [] for result in results]
    driver: Any = (await connection.get_raw_connection()).driver_connection
    cursors = [driver.cursor(row_factory=dict_row) for _ in questions]
    try:
        # https://www.psycopg.org/psycopg3/docs/advanced/pipeline.html
        async with driver.pipeline():
            for cursor, (words, values) in zip(cursors, questions, strict=True):
                await cursor.execute(in_psycopg(words), values)
        return [await cursor.fetchall() if cursor.description else [] for cursor in cursors]
    except psycopg.OperationalError:
        await connection.invalidate()
        raise


@cache
def in_psycopg(words: str) -> str:
    """A statement as its driver wants it."""
    return re.sub(r":(\w+)", r"%(\1)s", words.replace("%", "%%"))
