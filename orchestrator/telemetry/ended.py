"""An attempt that is over, as the database has it: what phase seconds and traces are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from orchestrator.domain.outcome import Reason
from orchestrator.domain.task import Stage

REQUEUED = "requeued"


@dataclass(frozen=True, slots=True)
class Ended:
    """queued_at: since when the task had waited for this attempt: its submission, or the end of the attempt before.
    stages: each that it went through, from when to when. result: "finished", "failed" or "canceled" if the task was
    over with it, else REQUEUED. reason: why, None when it FINISHED. outcome: how the process ended, as a word; "" when
    it never began. host, image_version: of its machine, "" where not known.
    """

    task_id: str
    attempt: int
    pool: str
    runner_id: str
    queued_at: datetime
    started_at: datetime
    finished_at: datetime
    stages: Mapping[Stage, tuple[datetime, datetime]]
    result: str
    reason: Reason | None = None
    message: str = ""
    outcome: str = ""
    host: str = ""
    image_version: str = ""

    @property
    def warm(self) -> bool:
        """Its machine was ready before it began."""
        return Stage.PROVISIONING not in self.stages

    @property
    def start_seconds(self) -> float | None:
        """From the claim to the stage EXECUTING; None: it did not come so far."""
        found = self.stages.get(Stage.EXECUTING)
        return None if found is None else (found[0] - self.started_at).total_seconds()
