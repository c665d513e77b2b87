"""Driving Mayfly as its users do: the command line in a process of its own, and any OpenNebula client."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyone

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Done:
    """A `mayfly` command that has ended."""

    exit_code: int
    stdout: str
    stderr: str

    def json(self) -> Any:
        return json.loads(self.stdout)


@dataclass(frozen=True)
class Mayfly:
    """The command line with an environment of its own, as a person has it. program: what Python is to run for it."""

    environment: dict[str, str]
    program: tuple[str, ...] = ("-m", "orchestrator")

    @property
    def home(self) -> Path:
        return Path(self.environment["MAYFLY_HOME"])

    def start(self, *words: str | Path, cwd: Path = ROOT, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
        # As a shell starts what a person types: in the background SIGINT is ignored, and that is inherited.
        command = ["env", "--default-signal=INT", sys.executable, *self.program]
        return subprocess.Popen(
            [*command, *map(str, words)],
            cwd=cwd,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            errors="surrogateescape",
        )

    def __call__(self, *words: str | Path, seconds: float = 300, cwd: Path = ROOT) -> Done:
        process = self.start(*words, cwd=cwd)
        try:
            stdout, stderr = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, stderr = process.communicate()
            raise AssertionError(f"mayfly {' '.join(map(str, words))} still ran after {seconds} s:\n{stderr}") from None
        return Done(process.returncode, stdout, stderr)

    @contextlib.contextmanager
    def running(self, *words: str | Path, seconds: float = 120) -> Iterator[subprocess.Popen[str]]:
        """A command that prints "ready" once it is; interrupted at the end of the block unless it has ended by then."""
        process = self.start(*words)
        try:
            if process.stdout is None:
                raise AssertionError("no stdout to read")
            line = process.stdout.readline()
            if line != "ready\n":
                raise AssertionError(f"{line!r} instead of ready: {process.communicate(timeout=seconds)}")
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.communicate(timeout=seconds)

    def with_environment(self, **more: str) -> Mayfly:
        return Mayfly({**self.environment, **more}, self.program)


@dataclass(frozen=True)
class TestCloud:
    """The local cloud of the run: an OpenNebula endpoint like any other."""

    __test__ = False

    url: str
    auth: Path
    home: Path

    def client(self) -> pyone.OneServer:
        return pyone.OneServer(self.url, session=self.auth.read_text().strip())

    def machines(self) -> list[int]:
        """Ids of the VMs that are not DONE."""
        return [vm.ID for vm in self.client().vmpool.info(-2, -1, -1, -1).VM]

    def processes(self) -> list[int]:
        """The QEMU processes of this cloud's VMs, from the process table. A machine that a saved state is made of is no
        VM."""
        return qemu_processes(self.home / "cloud" / "vms")


def qemu_processes(home: Path) -> list[int]:
    """QEMU processes whose command line names `home`."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            if b"qemu-system" in line and os.fsencode(home) in line:
                found.append(int(entry.name))
    return found
