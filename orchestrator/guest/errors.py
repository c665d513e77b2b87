"""What else can go wrong with a guest, under `domain.errors.GuestError`.

GuestError
 ├─ ConnectionLost
 │   └─ VmLost            and that is so because the VM is gone
 ├─ StepFailed            a step of ours failed inside the guest
 ├─ AlreadyStarted        this VM has had its process: it gets no second one
 ├─ LaunchFailed          the guest's systemd or strace would not start the process
 └─ StagingFailed
     └─ OutputRefused     an output that is not a regular file, or not readable by its owner
"""

from __future__ import annotations

from orchestrator.domain.errors import ConnectionLost, GuestError, StagingFailed


class VmLost(ConnectionLost):
    """The connection dropped because the VM is gone."""


class StepFailed(GuestError):
    """A step of ours failed inside the guest."""


class AlreadyStarted(GuestError):
    """This VM has had its process: it gets no second one."""


class LaunchFailed(GuestError):
    """The guest would not start the process."""


class OutputRefused(StagingFailed):
    """This output is not taken. `path` is relative to /task/out."""

    def __init__(self, path: str, why: str) -> None:
        self.path = path
        super().__init__(f"output {printable(path)}: {why}")


class Dropped(Exception):
    """The connection dropped. Never leaves the room: it becomes a reconnection, or ConnectionLost."""


def printable(text: str, limit: int = 200) -> str:
    """Text from a guest, fit for a message: one line, no control characters, bounded."""
    cut = text if len(text) <= limit else text[:limit] + "…"
    return "".join(char if char.isprintable() else char.encode("unicode_escape", "replace").decode() for char in cut)
