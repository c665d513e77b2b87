"""Leaders: of several processes that could act, the one that does, for as long as it says so in time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import bindparam, select, text, update

from orchestrator.store.columns import SafeWord, UtcDateTime
from orchestrator.store.engine import Database
from orchestrator.store.schema import LEADERS
from orchestrator.store.views import Row


@dataclass(frozen=True, slots=True)
class LeaderRow:
    name: str
    holder: str
    term: int
    expires_at: datetime


# Who leads extends its lease; who does not takes one that has run out, in a new term; all in one statement.
_LEAD = text("""
INSERT INTO leaders (name, holder, term, expires_at) VALUES (:name, :holder, 1, :until)
ON CONFLICT (name) DO UPDATE SET
  term = CASE WHEN leaders.holder = excluded.holder AND leaders.expires_at > :now
    THEN leaders.term ELSE leaders.term + 1 END,
  holder = excluded.holder, expires_at = excluded.expires_at
WHERE leaders.holder = excluded.holder OR leaders.expires_at <= :now OR leaders.expires_at > :longest
RETURNING term
""")
LONGEST_SECONDS = 60.0
"""No leader's lease is longer. One that ends later than so long from now was taken before the clock was put back, and
keeps nobody from leading."""


class Leaders:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def lead(self, name: str, holder: str, *, seconds: float, now: datetime) -> int | None:
        """Lead, or go on leading, for so long, at most LONGEST_SECONDS: the term, which is a new one whenever the lease
        had run out. None: another leads."""
        instants = {
            "now": now,
            "until": now + timedelta(seconds=min(seconds, LONGEST_SECONDS)),
            "longest": now + timedelta(seconds=LONGEST_SECONDS),
        }
        asked = _LEAD.bindparams(
            *(bindparam(key, type_=UtcDateTime) for key in instants),
            *(bindparam(key, type_=SafeWord) for key in ("name", "holder")),
        )
        async with self._database.writing() as connection:
            row = (await connection.execute(asked, {"name": name, "holder": holder, **instants})).first()
            return None if row is None else int(row[0])

    async def resign(self, name: str, holder: str) -> bool:
        """Let another lead at once. False: this one does not lead."""
        over = datetime(1970, 1, 1, tzinfo=UTC)
        async with self._database.writing() as connection:
            mine = update(LEADERS).where(LEADERS.c.name == name, LEADERS.c.holder == holder)
            return (await connection.execute(mine.values(expires_at=over))).rowcount == 1

    async def get(self, name: str) -> LeaderRow | None:
        """Who led last; its lease may have run out. None: nobody ever did."""
        async with self._database.reading() as connection:
            row = (await connection.execute(select(LEADERS).where(LEADERS.c.name == name))).mappings().first()
            return None if row is None else _view(row)


def _view(row: Row) -> LeaderRow:
    return LeaderRow(**{name: row[name] for name in LeaderRow.__dataclass_fields__})
