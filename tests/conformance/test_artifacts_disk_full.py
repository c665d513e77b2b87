"""A process that prints or leaves too much for this disk: told, and the database beside it can still write; and a disk
that has space again, for which a write waits."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from orchestrator.artifacts import Artifacts, AttemptLogs, WhenFull, disk, patience
from orchestrator.domain.errors import HostDiskFull

TASK = "01m7yqqza69eqn6t"


@pytest.fixture
def attempt(tmp_path, monkeypatch: pytest.MonkeyPatch) -> AttemptLogs:
    """On a disk of which all but a few megabytes are the reserve."""
    real, spare = os.fstatvfs, 4 * 2**20
    taken = shutil.disk_usage(tmp_path).free - spare

    def nearly_full(fd: int) -> os.statvfs_result:
        fields = list(real(fd))
        fields[4] = max(0, fields[4] - taken // fields[1])  # f_bavail, in units of f_frsize
        return os.statvfs_result(fields)

    monkeypatch.setattr(disk, "RESERVE_BYTES", 2 * 2**20)
    monkeypatch.setattr(os, "fstatvfs", nearly_full)
    return Artifacts(tmp_path / "store").attempt(TASK, 1)


async def test_prints_leave_the_reserve_free(attempt: AttemptLogs) -> None:
    await attempt.stdout.write(b"x" * 100)
    with pytest.raises(HostDiskFull, match="reserve"):
        await attempt.stdout.write(bytes(3 * 2**20))
    assert attempt.stdout.offset == 100
    assert attempt.stdout.read() == b"x" * 100


async def test_outputs_leave_the_reserve_free(attempt: AttemptLogs) -> None:
    with pytest.raises(HostDiskFull, match="reserve"):
        async with attempt.outputs() as sink:
            writer = await sink.open(_File())
            await writer.write(bytes(3 * 2**20))


@dataclass
class Disk:
    """Takes nothing more than `room` bytes at once while `full`; `asked` counts the writes that it was asked for."""

    full: bool = False
    room: int = 0
    asked: int = 0
    told: list[str] = field(default_factory=list)
    on_told: Callable[[], None] = lambda: None

    async def tell(self, message: str) -> None:
        self.told.append(message)
        self.on_told()

    def when_full(self, seconds: float = 60, hurry: asyncio.Event | None = None) -> WhenFull:
        return WhenFull(seconds, self.tell, hurry)

    def frees_up(self) -> None:
        self.full = False


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """The disk below the store: the kernel's "no space left", in the middle of a write."""
    it = Disk()
    real_pwrite, real_write = os.pwrite, os.write

    def pwrite(fd: int, data: bytes, at: int) -> int:
        it.asked += 1
        if it.full and not it.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        part = data[: it.room] if it.full else data
        it.room = 0
        return real_pwrite(fd, part, at)

    def write(fd: int, data: bytes) -> int:
        if it.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(fd, data)

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.01)
    return it


async def test_a_log_waits_for_space_and_has_every_byte_once(tmp_path: Path, small: Disk) -> None:
    logs = Artifacts(tmp_path / "store").attempt(TASK, 1, when_full=small.when_full())
    await logs.stdout.write(b"one ")
    small.full, small.room = True, 2
    writing = asyncio.create_task(logs.stdout.write(b"two "))
    while small.asked < 5:
        await asyncio.sleep(0)
    assert logs.stdout.offset == 4 and not writing.done()
    small.full = False
    await writing
    await logs.stdout.write(b"three")
    assert logs.stdout.read() == b"one two three"
    full, again = small.told
    assert full == "no space left on this machine: waiting up to 60 s for space"
    assert again == "there is space on this machine again"


async def test_a_disk_that_is_full_now_and_then_is_told_of_once(tmp_path: Path, small: Disk) -> None:
    small.on_told = small.frees_up
    logs = Artifacts(tmp_path / "store").attempt(TASK, 1, when_full=small.when_full())
    small.full = True
    await logs.stdout.write(b"1")
    for _ in range(3):
        small.full = True
        writing = asyncio.create_task(logs.stderr.write(b"2"))
        asked = small.asked
        while small.asked == asked:
            await asyncio.sleep(0)
        small.full = False
        await writing
    assert logs.stderr.read() == b"222"
    assert len(small.told) == 2


async def test_the_waiting_has_an_end(tmp_path: Path, small: Disk) -> None:
    logs = Artifacts(tmp_path / "store").attempt(TASK, 1, when_full=small.when_full(0.05))
    small.full = True
    with pytest.raises(HostDiskFull, match="no space left"):
        await logs.stdout.write(b"x")
    assert small.asked > 1
    small.full = False
    await logs.stdout.write(b"y")
    assert logs.stdout.read() == b"y"


async def test_a_hurry_ends_the_waiting(tmp_path: Path, small: Disk) -> None:
    hurry = asyncio.Event()
    small.on_told = hurry.set
    logs = Artifacts(tmp_path / "store").attempt(TASK, 1, when_full=small.when_full(3600, hurry))
    small.full = True
    for _ in range(2):
        with pytest.raises(HostDiskFull):
            await logs.stdout.write(b"x")


async def test_a_cancel_ends_the_waiting(tmp_path: Path, small: Disk) -> None:
    logs = Artifacts(tmp_path / "store").attempt(TASK, 1, when_full=small.when_full(3600))
    small.full = True
    writing = asyncio.create_task(logs.stdout.write(b"x"))
    while small.asked < 3:
        await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert logs.stdout.offset == 0


async def test_marks_outputs_and_manifest_wait_as_well(
    tmp_path: Path, small: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "QUIET_SECONDS", -1.0)  # each is to be told of
    artifacts = Artifacts(tmp_path / "store")
    logs = artifacts.attempt(TASK, 1, limit_bytes=2, when_full=small.when_full())

    async def while_full(work: Callable[[], object]) -> None:
        small.full = True
        small.told.clear()
        doing = asyncio.ensure_future(work())  # type: ignore[arg-type]
        while not small.told:
            await asyncio.sleep(0)
            assert not doing.done()
        small.full, small.room = False, 0
        await doing

    await while_full(lambda: logs.stdout.write(b"12345"))
    assert (logs.stdout.read(), logs.stdout.state().seen_bytes) == (b"12", 5)
    await while_full(logs.stderr.mark_cut)
    assert logs.stderr.state().cut
    collecting = logs.outputs()
    sink = await collecting.__aenter__()
    writer = await sink.open(_File())
    small.room = 3
    await while_full(lambda: writer.write(b"abcdef"))
    await writer.commit(hashlib.sha256(b"abcdef").hexdigest())
    await while_full(lambda: collecting.__aexit__(None, None, None))
    artifacts.export(TASK, 1, tmp_path / "results")
    assert (tmp_path / "results" / "big").read_bytes() == b"abcdef"


async def test_what_fails_does_not_wait_once_more_to_say_so(tmp_path: Path, small: Disk) -> None:
    logs = Artifacts(tmp_path / "store").attempt(TASK, 1, when_full=small.when_full(3600))
    with pytest.raises(HostDiskFull):
        async with logs.outputs():
            small.full = True
            raise KeyError
    assert small.told == []


class _File:
    path, mode = "big", 0o644
