"""Whose turn it is to write the inputs, without a guest: the lock in a folder of the test's."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
from pathlib import Path

import pytest

from orchestrator.guest.scripts import stage_in


@pytest.fixture
def turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(stage_in, "TURN", str(tmp_path / "turn"))
    return tmp_path / "turn"


async def test_a_former_receiver_that_ends_by_itself_this_moment_is_followed(turn: Path) -> None:
    """It still held the lock when that was asked for, and was gone when it was to be ended."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    with turn.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(f"{gone.pid} 1\n")
        file.flush()
        taking = asyncio.create_task(asyncio.to_thread(stage_in.take_turn, 2))
        await asyncio.wait([taking], timeout=0.2)
    await taking
    assert turn.read_text() == f"{os.getpid()} 2\n"


def test_one_that_comes_late_gives_way(turn: Path) -> None:
    with turn.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(f"{os.getpid()} 3\n")
        file.flush()
        with pytest.raises(SystemExit):
            stage_in.take_turn(2)
