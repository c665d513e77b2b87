"""An attempt that is over, read again for the measurements."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from orchestrator.domain.outcome import Reason
from orchestrator.store import AttemptRow, EventKind, EventRow, Store
from orchestrator.telemetry import Ended
from orchestrator.telemetry.ended import REQUEUED

ENDS = {
    EventKind.TASK_REQUEUED: REQUEUED,
    EventKind.TASK_FINISHED: "finished",
    EventKind.TASK_FAILED: "failed",
    EventKind.TASK_CANCELED: "canceled",
}
"""What ends an attempt, and what it is called."""

_ALL = 1_000_000


async def ended(store: Store, task_id: str, number: int) -> Ended | None:
    """None: it is not over. Raises NotFound when there is no such task any more."""
    task = await store.tasks.get(task_id)
    attempts = {attempt.number: attempt for attempt in await store.attempts.of_task(task.id)}
    attempt = attempts.get(number)
    end = end_of(await store.events.list(task_id=task.id, limit=_ALL), number)
    if attempt is None or attempt.finished_at is None or end is None:
        return None
    reason = end.data.get("reason")
    vms = await store.vms.of_task(task.id)
    return Ended(
        task_id=task.id,
        attempt=number,
        pool=task.spec.pool,
        runner_id=attempt.runner_id,
        queued_at=queued_at(task.submitted_at, attempts.get(number - 1)),
        started_at=attempt.started_at,
        finished_at=attempt.finished_at,
        stages={stage: (begun, over or attempt.finished_at) for stage, (begun, over) in attempt.timings.items()},
        result=ENDS[EventKind(end.kind)],
        reason=None if reason is None else Reason(reason),
        message=end.data.get("message", ""),
        outcome="" if attempt.outcome is None else type(attempt.outcome).__name__,
        host=attempt.host or "",
        image_version=next((vm.image_version for vm in vms if vm.id == attempt.vm_id), ""),
    )


def end_of(events: Iterable[EventRow], number: int) -> EventRow | None:
    """The event that ended the attempt; None: it is not over."""
    return next((event for event in events if event.attempt == number and event.kind in ENDS), None)


def queued_at(submitted_at: datetime, before: AttemptRow | None) -> datetime:
    """Since when the task waited for an attempt: its submission, or the end of the attempt `before`."""
    return submitted_at if before is None or before.finished_at is None else before.finished_at
