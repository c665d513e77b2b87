"""A process that outlives us, told apart from a later one with the same pid."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """`started` is in clock ticks since the machine's boot, and `boot` names that boot: together with the pid they are
    one process, for ever."""

    pid: int
    started: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process that has this pid now; None when none has, or only a zombie is left of it."""
        fields = _stat(pid)
        if fields is None or fields[0] in "ZX":
            return None
        return cls(pid, int(fields[19]), _boot())

    def alive(self) -> bool:
        """It runs (a zombie does not)."""
        return Process.of(self.pid) == self

    def cpu_seconds(self) -> float:
        """What it has used so far; 0 when it is gone."""
        fields = _stat(self.pid) if self.alive() else None
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0

    def age_seconds(self) -> float:
        """How long ago it started."""
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return max(0.0, uptime - self.started / os.sysconf("SC_CLK_TCK"))

    def resident_kb(self) -> int:
        """Its memory; 0 when it is gone."""
        fields = _stat(self.pid) if self.alive() else None
        return int(fields[21]) * (os.sysconf("SC_PAGE_SIZE") // 1024) if fields else 0

    def wait(self, seconds: float) -> bool:
        """True when it is gone, at the latest after `seconds`."""
        with self._pidfd() as pidfd:
            return pidfd is None or _ended(pidfd, seconds)

    def kill(self, seconds: float = 10.0) -> bool:
        """SIGKILL, and wait. False when it is still there after `seconds` (stuck in the kernel)."""
        with self._pidfd() as pidfd:
            if pidfd is None:
                return True
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            return _ended(pidfd, seconds)

    @contextlib.contextmanager
    def _pidfd(self) -> Iterator[int | None]:
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            yield None
            return
        try:
            # Asked only now: the descriptor holds the process that has the pid, whichever that is.
            yield pidfd if self.alive() else None
        finally:
            os.close(pidfd)


def _ended(pidfd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1000))


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the command's name, `state` first (proc(5) counts it as the third)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()
