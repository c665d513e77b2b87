"""The start of an armed unit's process, without a unit: its pipes in a folder of the test's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.guest.scripts import start as program


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What arming leaves. The launcher waits; whoever keeps the time does not, yet."""
    monkeypatch.setattr(program, "RUN", str(tmp_path))
    monkeypatch.setattr(program, "GROUP", str(tmp_path))
    for name in ("go", "timer"):
        os.mkfifo(tmp_path / name)
    launcher = os.open(tmp_path / "go", os.O_RDWR | os.O_NONBLOCK)
    yield tmp_path
    os.close(launcher)


def start(token: bytes = b"task.1") -> str:
    return program.start(token, 60.0, 5.0, b"1000", b"10", 1000, b"exec true\n")


def waiting(pipe: Path) -> bytes:
    """What was written to a pipe that somebody holds open, and nobody has read."""
    descriptor = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(descriptor, 1000)
    except BlockingIOError:
        return b""
    finally:
        os.close(descriptor)


def test_a_start_that_failed_is_never_said_to_have_been_made(run: Path) -> None:
    """The answer to the first may be lost with the connection; the second one counts then."""
    assert start().startswith("failed")
    assert start().startswith("failed")
    assert waiting(run / "go") == b""


def test_a_start_is_made_once_however_often_it_is_asked_for(run: Path) -> None:
    assert start().startswith("failed")
    keeper = os.open(run / "timer", os.O_RDWR | os.O_NONBLOCK)
    try:
        assert [start(), start(), start(b"other.1")] == ["started", "started", "refused"]
        assert waiting(run / "go") == b"\n"
        assert waiting(run / "timer").count(b"\n") == 1
    finally:
        os.close(keeper)
    assert (run / "launch").read_bytes() == b"exec true\n"
    assert (run / "memory.max").read_bytes() == b"1000"
