"""Where a cloud publishes its events: a file in its home, that others read without all that a cloud needs."""

from __future__ import annotations

from pathlib import Path

_FILE = "events"


def address_of(home: Path) -> str:
    """Where the cloud of this home publishes; empty when that is not known."""
    try:
        return (home / _FILE).read_text().strip()
    except OSError:
        return ""


def keep_address(home: Path, address: str) -> None:
    """Say so to whoever asks."""
    (home / _FILE).write_text(f"{address}\n")
