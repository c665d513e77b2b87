"""Mayfly's own processes, to be killed, frozen and started again; each has a clock of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.clocks import Clock
from tests.driver import ROOT


@dataclass
class Service:
    """One process of a kind, and those that follow it when it dies. `born`: how many there have been."""

    name: str
    words: tuple[str, ...]
    environment: dict[str, str]
    clock: Clock
    log: Path
    born: int = 0
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        self.born += 1
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator", *self.words],
                cwd=ROOT,
                env={**os.environ, **self.environment, **self.clock.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int | None:
        """None when it does not run."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def send(self, number: signal.Signals) -> bool:
        """False: it does not run."""
        if self._process is None or self._process.poll() is not None:
            return False
        self._process.send_signal(number)
        return True

    def kill(self) -> None:
        """SIGKILL, and see it dead."""
        self.send(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def wait(self, seconds: float) -> int | None:
        """Its exit status; None when it still runs after so many seconds."""
        if self._process is None:
            return None
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
