"""A process that prints or leaves too much for this disk: told, and the database beside it can still write."""

from __future__ import annotations

import os
import shutil

import pytest

from orchestrator.artifacts import Artifacts, AttemptLogs, disk
from orchestrator.domain.errors import HostDiskFull


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
    return Artifacts(tmp_path / "store").attempt("01m7yqqza69eqn6t", 1)


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


class _File:
    path, mode = "big", 0o644
