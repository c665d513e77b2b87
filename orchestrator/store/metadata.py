"""What all tables have in common: their metadata, how constraints are named, and indexes on some of the rows."""

from __future__ import annotations

from sqlalchemy import Index, MetaData, text
from sqlalchemy.orm import registry
from sqlmodel import SQLModel

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


def partial(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    """An index on the rows of which `where` is true: words of `conditions`."""
    words = text(where.replace("tasks.", "").replace("vms.", "").replace("attempts.", ""))
    return Index(name, *columns, unique=unique, postgresql_where=words, sqlite_where=words)


class Rows(SQLModel, registry=registry(metadata=MetaData(naming_convention=NAMING))):
    """Tables of this database alone: other parts of the program may use SQLModel for theirs."""
