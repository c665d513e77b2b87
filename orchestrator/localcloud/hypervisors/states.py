"""The saved states of a cloud's home: found, counted, and removed when they take too much room."""

from __future__ import annotations

import logging
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchestrator.localcloud.hypervisors.saved_state import SavedState, StateBroken, read_state

log = logging.getLogger(__name__)

MAKING = ".making"
_GONE = ".gone-"
_FAILED = ".failed"
_RETRY_SECONDS = 3600.0


class States:
    """`home/states`. `limit_mb`: what they may take on the disk together. Any thread, any process: a state appears and
    goes by a rename."""

    def __init__(self, home: Path, limit_mb: int) -> None:
        self.folder = home.absolute() / "states"
        self.limit_bytes = limit_mb << 20

    def find(self, key: str) -> SavedState | None:
        """The state of this key, if there is one; one that cannot be read is removed."""
        folder = self.folder / key
        if not folder.is_dir():
            return None
        try:
            return read_state(folder)
        except StateBroken as broken:
            self.drop(folder, str(broken))
            return None

    def all(self) -> list[SavedState]:
        """Those that can be read."""
        found = []
        for folder in self.folder.iterdir() if self.folder.is_dir() else ():
            if folder.is_dir() and not folder.name.startswith("."):
                with suppress(StateBroken):
                    found.append(read_state(folder))
        return found

    def told(self) -> list[dict[str, Any]]:
        """All of them, for people, the last used first."""
        found = []
        for state in self.all():
            with suppress(FileNotFoundError):  # it may go meanwhile
                found.append(state.told())
        return sorted(found, key=lambda each: str(each["last_used"]), reverse=True)

    def drop(self, folder: Path, why: str) -> None:
        """Remove a state. Machines that go on from it have its files by names of their own."""
        log.warning("saved state %s is removed: %s", folder.name, why)
        gone = self.folder / f"{_GONE}{secrets.token_hex(4)}"
        with suppress(FileNotFoundError):
            folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def take_in(self, made: SavedState, key: str) -> None:
        """From the folder in which it was made to its own, and remove others, those unused for longest first, until all
        take no more than they may. Raises OSError."""
        folder = self.folder / key
        if folder.exists():
            self.drop(folder, "it is made anew")
        made.folder.rename(folder)
        others = self.told()
        taken = sum(int(state["bytes"]) for state in others)
        while taken > self.limit_bytes and others:
            oldest = others.pop()
            if oldest["key"] != key:
                self.drop(self.folder / oldest["key"], f"saved states may take {self.limit_bytes >> 20} MB")
                taken -= int(oldest["bytes"])

    def drop_foreign(self, qemu: str) -> None:
        """Remove what is of another version of QEMU, what cannot be read, and what an earlier process left."""
        for folder in self.folder.iterdir() if self.folder.is_dir() else ():
            if folder.name.startswith(_GONE):
                shutil.rmtree(folder, ignore_errors=True)
            elif folder.is_dir() and not folder.name.startswith("."):
                state = self.find(folder.name)
                if state is not None and state.qemu != qemu:
                    self.drop(folder, f"it is of QEMU {state.qemu}, and this is {qemu}")

    def note_failure(self, key: str, why: str) -> None:
        """It could not be made: not to be tried again at once."""
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self.folder / f"{key}{_FAILED}").write_text(why)

    def failed_lately(self, key: str) -> bool:
        """Whether the making of this state failed less than an hour ago."""
        note = self.folder / f"{key}{_FAILED}"
        try:
            if time.time() - note.stat().st_mtime < _RETRY_SECONDS:
                return True
            note.unlink()
        except FileNotFoundError:
            pass
        return False
