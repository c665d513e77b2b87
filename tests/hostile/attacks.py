"""What an attack is, and what became of one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.domain.outcome import Reason
from orchestrator.domain.task import TaskState

MIB = 2**20
SUCCEEDED = "SUCCEEDED"
MAX_GROWTH = 96 * MIB
"""What our side may grow by while it is under attack."""

_OURS = re.compile(
    r"mayfly\.db(-\w+)?|(cloud|machines|keys|ssh)(/.*)?|artifacts/(lock|tmp|attempts|blobs|blobs/..(/[0-9a-f]{64})?)|artifacts"
)


def ours(path: str) -> bool:
    """Whether Mayfly writes this name in its home (`path` is relative to it) whatever a machine says: its database, its
    keys, the local cloud's far side, blobs named by their hash."""
    return _OURS.fullmatch(path) is not None


@dataclass(frozen=True)
class Attack:
    """name: unique, in the order of a sentence. does: what the machine does. state, reason, says: how the task must
    end; `says` is a pattern found in its message. pool: how its pool differs. kept: outputs that must have come out.
    """

    name: str
    does: str
    state: TaskState = TaskState.FAILED
    reason: Reason | None = None
    says: str = ""
    pool: Mapping[str, Any] = field(default_factory=dict)
    timeout: float | None = None
    kept: tuple[str, ...] = ()
    input_bytes: int = 8000
    notes: str = ""
    """A pattern found in one of the task's notes."""
    also: tuple[tuple[TaskState, Reason | None], ...] = ()
    """Other ends that are as true: a race decides which it is."""

    def that_ended(self, state: TaskState, reason: Reason | None) -> Attack:
        """The same, which must end so if that is one of its ends."""
        if (state, reason) not in self.also:
            return self
        return dataclasses.replace(self, state=state, reason=reason, says="", kept=())


@dataclass(frozen=True)
class Told:
    """What became of it. seconds: from the claim to the end. grown: bytes that our side grew by at its peak; None: not
    measured. written: names in the attempt's folder with their bytes. beside: what was written anywhere else."""

    attack: Attack
    state: TaskState
    reason: Reason | None
    message: str
    seconds: float
    grown: int | None
    written: Mapping[str, int]
    beside: tuple[str, ...]
    kept: tuple[str, ...]
    notes: tuple[str, ...]
    neighbour: TaskState
    tried: Mapping[str, str] = field(default_factory=dict)
    """What its process tried, and the error that it got; SUCCEEDED: none."""

    def wrong(self) -> list[str]:
        """In what it did not end as it must."""
        attack = self.attack
        found = []
        if (self.state, self.reason) != (attack.state, attack.reason):
            found.append(f"ended {self.state} {self.reason}, not {attack.state} {attack.reason}: {self.message}")
        if not re.search(attack.says, self.message):
            found.append(f"{self.message!r} does not say {attack.says!r}")
        if attack.notes and not any(re.search(attack.notes, note) for note in self.notes):
            found.append(f"none of {self.notes} says {attack.notes!r}")
        if self.kept != attack.kept and (attack.state, attack.reason) not in attack.also:
            found.append(f"the outputs that came out are {self.kept}, not {attack.kept}")
        found += [f"{what}: {how}" for what, how in self.tried.items() if how == SUCCEEDED]
        if self.beside:
            found.append(f"written outside the attempt's folder: {self.beside}")
        if self.grown is not None and self.grown > MAX_GROWTH:
            found.append(f"our side grew by {self.grown // MIB} MiB")
        if self.neighbour is not TaskState.FINISHED:
            found.append(f"the task beside it is {self.neighbour}")
        return found
