"""What else can go wrong with a guest, under `domain.errors.GuestError`.

GuestError
 ├─ ConnectionLost
 │   └─ VmLost            and that is so because the VM is gone
 ├─ StepFailed            a step of ours failed inside the guest
 ├─ AlreadyStarted        this VM has had its process: it gets no second one
 │   └─ VmRestarted       it had, and has restarted since
 ├─ LaunchFailed          the guest's systemd or strace would not start the process
 └─ StagingFailed
     └─ OutputRefused     some outputs are no regular files, not readable by their owner, or changed meanwhile
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.domain.errors import ConnectionLost, GuestError, StagingFailed
from orchestrator.domain.outcome import Reason

_SHOWN = 5


class VmLost(ConnectionLost):
    """The connection dropped because the VM is gone."""


class StepFailed(GuestError):
    """A step of ours failed inside the guest."""


class AlreadyStarted(GuestError):
    """This VM has had its process: it gets no second one."""


class VmRestarted(AlreadyStarted):
    """This VM has had its process, and has restarted since: what became of it, nobody knows."""

    reason = Reason.CONNECTION_LOST


class LaunchFailed(GuestError):
    """The guest would not start the process."""


@dataclass(frozen=True, slots=True)
class Refused:
    """One output that is not taken, and why. `path` is relative to /task/out."""

    path: str
    why: str

    def __str__(self) -> str:
        return f"output {printable(self.path)}: {self.why}"


class OutputRefused(StagingFailed):
    """Some outputs are not taken; all others were."""

    final = True

    def __init__(self, refused: Sequence[Refused]) -> None:
        self.refused = tuple(refused)
        more = f"; and {len(self.refused) - _SHOWN} more" if len(self.refused) > _SHOWN else ""
        super().__init__("; ".join(map(str, self.refused[:_SHOWN])) + more)


class Dropped(Exception):
    """The connection dropped. Never leaves the room: it becomes a reconnection, or ConnectionLost."""


def printable(text: str, limit: int = 200) -> str:
    """Text from a guest, fit for a message: one line, no control characters, bounded."""
    cut = text if len(text) <= limit else text[:limit] + "…"
    return "".join(char if char.isprintable() else char.encode("unicode_escape", "replace").decode() for char in cut)
