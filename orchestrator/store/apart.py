"""Tables to which no other refers."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, CheckConstraint
from sqlmodel import Field

from orchestrator.store.columns import UtcDateTime
from orchestrator.store.metadata import Rows


class Installation(Rows, table=True):
    """One row: which installation this database belongs to."""

    __tablename__ = "installation"
    __table_args__ = (CheckConstraint("single = 1", name="single"),)

    single: int = Field(default=1, primary_key=True, sa_column_kwargs={"autoincrement": False})
    id: str
    made_at: datetime = Field(sa_type=UtcDateTime)


class Share(Rows, table=True):
    """When a frontend was last served by a queue: the queue's turn of that time."""

    __tablename__ = "shares"

    pool: str = Field(primary_key=True)
    frontend: str = Field(primary_key=True)
    turn: int = Field(sa_type=BigInteger)


class Leader(Rows, table=True):
    """Who of several acts. `term` grows whenever that changes."""

    __tablename__ = "leaders"

    name: str = Field(primary_key=True)
    holder: str
    term: int = Field(sa_type=BigInteger)
    expires_at: datetime = Field(sa_type=UtcDateTime)


class Schedule(Rows, table=True):
    """A recurring task: by a cron line or by an interval."""

    __tablename__ = "schedules"
    __table_args__ = (CheckConstraint("(cron IS NULL) <> (interval_seconds IS NULL)", name="rule"),)

    name: str = Field(primary_key=True)
    spec: Any = Field(sa_type=JSON, nullable=False)
    frontend: str
    cron: str | None
    interval_seconds: float | None
    time_zone: str
    catch_up: bool
    next_at: datetime = Field(sa_type=UtcDateTime)
    paused_at: datetime | None = Field(sa_type=UtcDateTime)
    last_task_id: str | None
    made_at: datetime = Field(sa_type=UtcDateTime)
