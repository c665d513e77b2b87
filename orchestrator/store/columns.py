"""Column types that mean the same in every database: instants in UTC, and text that any database can keep."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from sqlalchemy import DateTime, String, Text
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator


def as_utc(value: datetime) -> datetime:
    """The same instant, in UTC. Raises ValueError for one without a time zone."""
    if value.tzinfo is None:
        raise ValueError(f"a datetime without a time zone: {value!r}")
    return value.astimezone(UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime, in and out. A naive one is refused: nobody could say which instant it means."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        value = as_utc(value)
        # SQLite has no time zones: what it keeps is UTC by this very rule, and of one width, so that it sorts.
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class SafeText(TypeDecorator[str]):
    r"""Text for people. What no database keeps (a NUL, a byte of a file name that is not UTF-8) is shown as `\xNN`."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else shown(value)


class SafeWord(TypeDecorator[str]):
    """The same for names, which are looked for."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else shown(value)


def kept(text: str) -> bool:
    """Whether any database keeps it as it is."""
    return _UNKEPT.search(text) is None


_UNKEPT = re.compile("[\0\ud800-\udfff]")


def shown(text: str) -> str:
    r"""The text, with what no database keeps as `\xNN`."""
    if text.isascii() and "\0" not in text:
        return text
    return _UNKEPT.sub(_shown, text)


def _shown(match: re.Match[str]) -> str:
    code = ord(match[0])
    # surrogateescape maps byte 0xNN to U+DCNN: PEP 383
    return f"\\x{code & 0xFF:02x}" if code == 0 or 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"
