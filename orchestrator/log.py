"""Log lines whose context accumulates: `task= attempt= vm= stage=` on every line below where it was bound."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_context: ContextVar[tuple[tuple[str, str], ...]] = ContextVar("mayfly_log_context", default=())


@contextmanager
def bound(**fields: object) -> Iterator[None]:
    """Add `fields` to every line logged inside the block, in this task of asyncio (or thread) only."""
    token = _context.set((*_context.get(), *((key, str(value)) for key, value in fields.items())))
    try:
        yield
    finally:
        _context.reset(token)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{key}={value}" for key, value in dict(_context.get()).items())
        line = super().format(record)
        return f"{line} {fields}" if fields else line


def configure(level: int = logging.INFO) -> None:
    """Send our lines to stderr. Called by `bootstrap` and the local cloud's process, never at import."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for chatty in ("asyncssh", "alembic", "aiosqlite"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("apscheduler").setLevel(
        logging.ERROR
    )  # it warns of each chore that takes longer than its interval


def at_least(level: int) -> None:
    """Log at this level too, whatever was configured: a service says what is wrong unasked."""
    root = logging.getLogger()
    root.setLevel(min(root.level, level))
