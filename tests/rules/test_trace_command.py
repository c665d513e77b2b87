"""The words of strace, tried with the strace of this machine."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from orchestrator.domain.task import TraceProfile
from orchestrator.trace.command import traced
from orchestrator.trace.findings import Finder


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.skipif(os.geteuid() != 0, reason="strace -u needs root")
@pytest.mark.parametrize("profile", [TraceProfile.AUDIT, TraceProfile.FULL])
def test_a_process_is_traced_as_another_user_and_its_status_is_its_own(profile: TraceProfile, tmp_path: Path) -> None:
    words = traced(profile, output=str(tmp_path / "trace"), user="nobody")
    done = subprocess.run(
        [*words, "sh", "-c", "id -u; kill -9 $$"], capture_output=True, text=True, cwd="/", check=False
    )
    assert done.stdout.strip() == str(pwd.getpwnam("nobody").pw_uid)
    assert done.returncode == -9
    until = time.monotonic() + 30  # strace outlives it a little
    while "+++ killed by SIGKILL +++\n" not in (
        trace := (tmp_path / "trace").read_text()
    ):  # strace outlives it a little
        assert time.monotonic() < until, trace
        time.sleep(0.01)
    finder = Finder()
    finder.feed(trace.encode())
    found = finder.findings()
    assert [program["argv"][0] for program in found["programs"]["listed"]] == ["sh", "id"]
    assert found["trace"]["lines_unread"] == 0


def test_full_records_every_call_and_audit_does_not() -> None:
    assert "-y" in traced(TraceProfile.FULL, output="/t")
    assert not any(word.startswith("trace=") for word in traced(TraceProfile.FULL, output="/t"))
    assert any(word.startswith("trace=") for word in traced(TraceProfile.AUDIT, output="/t"))
