"""What a machine says that cannot be armed, without a machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.guest.scripts import arm as program


def test_a_disk_that_takes_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(program, "RUN", str(tmp_path / "run"))
    monkeypatch.setattr(program, "LOGS", str(tmp_path / "file" / "logs"))
    monkeypatch.setenv("LAUNCHER", "true")
    monkeypatch.setenv("RECORD", "true")
    monkeypatch.setenv("PROPERTIES", "NoNewPrivileges=yes")
    monkeypatch.setenv("ROOM", "0 0 up")
    answer = program.make_ready(program.Arming("5.0", "1000", "10"), tell=False)
    assert answer == f"failed {tmp_path}/file/logs: Not a directory"
