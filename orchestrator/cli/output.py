"""How the command line speaks: rich tables on a terminal, plain lines when piped, JSON when asked, errors on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


class _Notes(Console):
    """A console for what is going on. That nobody listens any more (`2>&1 | head`) is no reason to give a task up."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        with Path(os.devnull).open("w") as nowhere:  # for what is still in the buffer
            os.dup2(nowhere.fileno(), self.file.fileno())


out = Console(highlight=False, soft_wrap=True)
err = _Notes(stderr=True, highlight=False, soft_wrap=True)


def fail(message: str, *, code: int = 1) -> SystemExit:
    """Say `message` on stderr; raise what is returned."""
    message = printable_lines(message)
    err.print(f"[bold red]error[/] {_escape(message)}" if err.is_terminal else _escape(f"error: {message}"))
    return SystemExit(code)


def say(line: str) -> None:
    """One plain line on stdout."""
    out.print(_escape(printable_lines(line)))


def note(line: str) -> None:
    """One line on stderr: what is going on, never a result."""
    err.print(_escape(printable_lines(line)))


def as_json(value: Any) -> None:
    """`value` as JSON on stdout, datetimes in ISO 8601.

    In ASCII: names that come from a guest may be no UTF-8, or steer a terminal.
    """
    json.dump(value, sys.stdout, indent=2, default=_plain)
    sys.stdout.write("\n")
    sys.stdout.flush()


def json_line(value: Any) -> None:
    """As `as_json`, on one line, and out at once."""
    sys.stdout.write(json.dumps(value, default=_plain) + "\n")
    sys.stdout.flush()


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Rows under their headings; on a pipe, tab-separated and without the headings' decoration."""
    cells = [[_cell(value) for value in row] for row in rows]
    if not cells:
        note(empty)
        return
    if not out.is_terminal:
        for line in ([column.upper() for column in columns], *cells):
            sys.stdout.write("\t".join(line) + "\n")
        return
    drawn = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for line in cells:
        drawn.add_row(*(_escape(cell) for cell in line))
    out.print(drawn)


def ago(moment: datetime | None, now: datetime | None = None) -> str:
    """How long ago, in the largest unit that fits: "12 s", "3 min", "5 h", "2 d"."""
    if moment is None:
        return ""
    seconds = max(0.0, ((now or datetime.now(UTC)) - moment).total_seconds())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def size(count: int) -> str:
    """Bytes as people read them: "512 B", "1.2 MiB"."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    raise AssertionError("unreachable")


def printable(text: str) -> str:
    """`text` with control characters shown instead of obeyed: names and messages may come from a hostile guest."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """As `printable`, line breaks and tabs kept."""
    return "\n".join(printable(line.expandtabs()) for line in text.replace("\r\n", "\n").split("\n"))


def _cell(value: object) -> str:
    if value is None:
        return ""
    return printable(value.isoformat(timespec="seconds") if isinstance(value, datetime) else str(value))


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value)
