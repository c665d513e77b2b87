"""Writes that belong together, for many rows at once: one statement on PostgreSQL, whose WITH may write; on SQLite,
where a round trip costs nothing, one after the other in a transaction.

The rows go in as one JSON document, so that the statement is the same however many there are: it is prepared once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.store.asking import ask, in_psycopg
from orchestrator.store.columns import as_utc, shown

Columns = Mapping[str, type]
"""Name → str, int, float, bool, datetime, or dict for what is kept as JSON (given as it is, or as JSON)."""

_POSTGRESQL = {str: "text", int: "bigint", float: "float8", bool: "boolean", datetime: "timestamptz", dict: "text"}

# What is spelled otherwise by each. Instants in `timings` are ISO 8601, as `encoding` has them.
_ENDED_ON_POSTGRESQL = """CASE WHEN attempts.stage IS NULL THEN CAST(attempts.timings AS jsonb)
  ELSE jsonb_set(CAST(attempts.timings AS jsonb), ARRAY[attempts.stage, '1'], to_jsonb(v.iso)) END"""
_ENDED_ON_SQLITE = """CASE WHEN attempts.stage IS NULL THEN attempts.timings
  ELSE json_set(attempts.timings, '$.' || attempts.stage || '[1]', v.iso) END"""
SPELLED: Mapping[str, tuple[str, str]] = {
    # The timings of an attempt, with the stage that it is in ended at v.iso; and with v.stage begun then.
    "{ENDED}": (f"CAST({_ENDED_ON_POSTGRESQL} AS json)", _ENDED_ON_SQLITE),
    "{BEGUN}": (
        f"CAST({_ENDED_ON_POSTGRESQL} || jsonb_build_object(v.stage, jsonb_build_array(v.iso, NULL)) AS json)",
        f"json_set({_ENDED_ON_SQLITE}, '$.' || v.stage, json_array(v.iso, NULL))",
    ),
    # What is said of a VM that changed.
    "{VM_DATA}": (
        "json_build_object('state', t.state, 'because', v.because)",
        "json_object('state', t.state, 'because', v.because)",
    ),
}


class Chain:
    """`given`: the columns of the rows that go in, as `v`; `v.place` counts them. `first`: the write that decides, with
    RETURNING for what it has changed: the columns `returned`, as `t`. `events`: an INSERT; `then`: other writes. These
    refer to `v` and `t`.

    locked: how `v` goes with the rows that `first` is about, a table and a condition. They are locked in the order of
    their keys, so that two chains, or a chain and a heartbeat, do not wait for each other.
    """

    def __init__(
        self,
        given: Columns,
        first: str,
        *,
        returned: Columns,
        events: str | None = None,
        then: Sequence[str] = (),
        locked: tuple[str, str, str] | None = None,
    ) -> None:
        self._given = {**given, "place": int}
        # PostgreSQL completes the writes of a WITH from the last to the first. An event is to be the last of all: its
        # writer may have to wait for a reader of events.
        steps = [step for step in (events, *then) if step is not None]
        self._on_postgresql = _on_postgresql(self._given, [first, *steps], locked)
        self._on_sqlite = _on_sqlite(self._given, returned, [first, *then, *([events] if events else ())])

    async def run(self, connection: AsyncConnection, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Write; what `first` returned, in no order."""
        on_postgresql = connection.dialect.name == "postgresql"
        v = _document(rows, self._given, on_postgresql=on_postgresql)
        if on_postgresql:
            result = await connection.exec_driver_sql(in_psycopg(self._on_postgresql), {"v": v})
            return [dict(row) for row in result.mappings()]
        first, *then = self._on_sqlite
        [changed] = await ask(connection, [(first, {"v": v})])
        if changed:
            both = {"v": v, "t": json.dumps(changed)}
            await ask(connection, [(statement, both) for statement in then])
        return changed

    async def run_last(self, connection: AsyncConnection, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """As `run`, as the last of a transaction: on PostgreSQL it is committed in the same round trip."""
        if connection.dialect.name != "postgresql":
            return await self.run(connection, rows)
        v = _document(rows, self._given, on_postgresql=True)
        changed, _ = await ask(connection, [(self._on_postgresql, {"v": v}), ("COMMIT", {})])
        return changed


def _document(rows: Sequence[Mapping[str, Any]], columns: Columns, *, on_postgresql: bool) -> str:
    def kept(value: Any) -> Any:
        match value:
            case str():
                return shown(value)
            case datetime():
                utc = as_utc(value)
                return utc.isoformat() if on_postgresql else utc.replace(tzinfo=None).isoformat(" ", "microseconds")
            case dict() | list():
                # JSON in JSON, as a string: PostgreSQL keeps its escapes as they are, and does not try to read them.
                return json.dumps(value, allow_nan=False)
            case _:
                return value

    names = [name for name in columns if name != "place"]
    return json.dumps([{"place": place, **{name: kept(row[name]) for name in names}} for place, row in enumerate(rows)])


def _on_postgresql(given: Columns, steps: Sequence[str], locked: tuple[str, str, str] | None) -> str:
    typed = ", ".join(f"{name} {_POSTGRESQL[kind]}" for name, kind in given.items())
    names = ", ".join(
        f"CAST(given.{name} AS json) AS {name}" if kind is dict else f"given.{name}" for name, kind in given.items()
    )
    v = f"SELECT {names} FROM json_to_recordset(CAST(:v AS json)) AS given({typed})"  # noqa: S608
    if locked is not None:
        table, condition, key = locked
        v += f" JOIN {table} ON {condition} ORDER BY {key} FOR NO KEY UPDATE OF {table}"
    named = zip(("t", *(f"then{number}" for number in range(1, len(steps)))), steps, strict=True)
    parts = [f"v AS ({v})", *(f"{name} AS ({_spelled(step, 0)})" for name, step in named)]
    return f"WITH {', '.join(parts)} SELECT * FROM t"  # noqa: S608


def _on_sqlite(given: Columns, returned: Columns, steps: Sequence[str]) -> list[str]:
    def rows(name: str, columns: Columns) -> str:
        fields = ", ".join(f"json_extract(value, '$.{column}') AS {column}" for column in columns)
        return f"{name} AS MATERIALIZED (SELECT {fields} FROM json_each(:{name}))"  # noqa: S608

    first, *then = (_spelled(step, 1) for step in steps)
    v, t = rows("v", given), rows("t", returned)
    return [f"WITH {v} {first}", *(f"WITH {v}, {t} {step}" for step in then)]


def _spelled(statement: str, which: int) -> str:
    for word, spellings in SPELLED.items():
        statement = statement.replace(word, spellings[which])
    return statement
