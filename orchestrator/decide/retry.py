"""What follows an attempt that the platform failed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from orchestrator.domain.outcome import Reason


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The task fails, for this reason."""

    reason: Reason


def after_failure(reason: Reason, attempt: int, now: datetime) -> GiveUp:
    """Nothing is tried twice: whoever submitted the task is told of the first failure."""
    return GiveUp(reason)
