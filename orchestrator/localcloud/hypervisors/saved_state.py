"""A saved state: the memory, devices and disks of a machine that has booted and waits for its context.

A folder, whose name says what the state is of (`state_key`). It appears complete (it is renamed into place) or not at
all. Its files are never written again: a clone maps the memory privately, and puts an overlay over each disk.

    memory          the machine's memory, sparse
    devices         all else that QEMU knows of it
    base.N          disk N at that moment, over the image's file
    overlay.N       an empty overlay over base.N, to be copied
    used            a byte for each use; its time is that of the last one
    state.json      what is known of the files, by which a damaged one is told
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.localcloud.hypervisors import HypervisorError

MEMORY, DEVICES = "memory", "devices"
_RECORD, _USED = "state.json", "used"
_FORM = 1
_END_BYTES = 1 << 16


class StateBroken(HypervisorError):
    """Not what was saved: it must not be used."""


@dataclass(frozen=True, slots=True)
class SavedState:
    """`made_at`: ISO 8601, UTC. `seconds`: how long it took. `disks`: the numbers of its disks."""

    folder: Path
    cpus: int
    memory_mb: int
    accelerator: str
    qemu: str
    made_at: str
    seconds: float
    disks: tuple[int, ...]

    def require_whole(self) -> None:
        """Every file has the length that it had, and begins and ends as it did. A few milliseconds. Raises
        StateBroken."""
        for name, was in _record(self.folder)["files"].items():
            try:
                now = _told_apart(self.folder / name)
            except OSError as error:
                raise StateBroken(f"{name}: {error.strerror}") from error
            if now != was:
                raise StateBroken(f"{name} is not as it was saved ({now[0]} bytes, {was[0]} then)")

    def bytes_on_disk(self) -> int:
        """What removing it would give back, if no machine used it."""
        return sum(path.stat().st_blocks * 512 for path in self.folder.iterdir())

    def note_use(self) -> None:
        """It was used just now. Losing count is no harm."""
        with (self.folder / _USED).open("ab") as used:
            used.write(b".")

    def uses(self) -> int:
        """How often it was used."""
        return (self.folder / _USED).stat().st_size

    def last_used(self) -> datetime:
        """When it was used last, or made."""
        return datetime.fromtimestamp((self.folder / _USED).stat().st_mtime, UTC)

    def told(self) -> dict[str, Any]:
        """All of it, for people: key, cpus, memory_mb, accelerator, qemu, made_at, seconds, bytes, uses, last_used."""
        facts = {key: value for key, value in asdict(self).items() if key not in ("folder", "disks")}
        used = self.last_used().isoformat(timespec="seconds")
        return {"key": self.folder.name, **facts, "bytes": self.bytes_on_disk(), "uses": self.uses(), "last_used": used}


def base_name(disk_id: int) -> str:
    """The file of a disk as it was saved: beside the overlay, by that name, wherever the overlay is."""
    return f"base.{disk_id}"


def overlay_name(disk_id: int) -> str:
    return f"overlay.{disk_id}"


def seal_state(state: SavedState) -> None:
    """Write down what is in the folder, and have all of it on the disk. Raises OSError."""
    names = (MEMORY, DEVICES, *map(base_name, state.disks), *map(overlay_name, state.disks))
    (state.folder / _USED).touch()
    found = asdict(state) | {"form": _FORM, "files": {name: _told_apart(state.folder / name) for name in names}}
    del found["folder"]
    (state.folder / _RECORD).write_text(json.dumps(found, indent=1))
    for path in (*state.folder.iterdir(), state.folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_state(folder: Path) -> SavedState:
    """Raises StateBroken."""
    found = _record(folder)
    try:
        return SavedState(
            folder=folder,
            cpus=int(found["cpus"]),
            memory_mb=int(found["memory_mb"]),
            accelerator=str(found["accelerator"]),
            qemu=str(found["qemu"]),
            made_at=str(found["made_at"]),
            seconds=float(found["seconds"]),
            disks=tuple(int(number) for number in found["disks"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StateBroken(f"{_RECORD}: {error!r}") from error


def _record(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / _RECORD).read_text())
        if not isinstance(found, dict) or found["form"] != _FORM or not isinstance(found["files"], dict):
            raise StateBroken(f"{_RECORD} is of another form")
    except (OSError, ValueError, KeyError) as error:
        raise StateBroken(f"{_RECORD}: {error}") from error
    return found


def _told_apart(path: Path) -> list[object]:
    """Length, and a digest of the beginning and the end: [int, str], as JSON has it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        for start in (0, max(0, length - _END_BYTES)):
            file.seek(start)
            digest.update(file.read(_END_BYTES))
    return [length, digest.hexdigest()]
