"""Until when a task may stay as it is, and what is said of one that did not move on: no wait is without an end."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import assert_never

from orchestrator.decide.retry import Retry
from orchestrator.domain.outcome import PLATFORM_EXIT, Reason, Verdict, failed
from orchestrator.domain.pool import Pool
from orchestrator.domain.task import Stage, TaskSpec, TaskState, Terms


def of_queued(terms: Terms, pool: Pool, submitted_at: datetime) -> datetime:
    """Until when a task may wait for its first attempt: the pool's longest, from when it might start."""
    return max(submitted_at, terms.not_before or submitted_at) + timedelta(seconds=pool.max_queue_seconds)


def of_attempt(spec: TaskSpec, pool: Pool, now: datetime) -> datetime:
    """Until when an attempt that begins now must be over."""
    return now + timedelta(seconds=pool.attempt_seconds(spec.limits.timeout_seconds))


def of_requeued(retry: Retry, terms: Terms, pool: Pool, *, submitted_at: datetime, now: datetime) -> datetime:
    """Until when a task may wait for another attempt. After one that counted, as long as any other; else, as it was
    never tried, no longer than from the start on."""
    if not retry.counted:
        return of_queued(terms, pool, submitted_at)
    return now + timedelta(seconds=retry.after_seconds + pool.max_queue_seconds)


def overdue(state: TaskState, stage: Stage | None, recorded: Verdict | None, waiting: str = "") -> Verdict:
    """What to say of a task whose deadline has passed. recorded: what its runner wrote down to say once the machine is
    gone, which stands. waiting: what a task that was not started waits for, in words. Raises ValueError for a task that
    is over.

    >>> overdue(TaskState.QUEUED, None, None, "pool small is paused").message
    'it waited until its deadline: pool small is paused'
    """
    if recorded is not None:
        return recorded
    match state:
        case TaskState.NEW:
            # what was never let in cannot fail
            message = "it was not released before its deadline"
            return Verdict(TaskState.CANCELED, Reason.DEADLINE_PASSED, message, PLATFORM_EXIT)
        case TaskState.QUEUED:
            message = "it waited until its deadline" + (f": {waiting}" if waiting else "")
        case TaskState.RUNNING | TaskState.WAITING:
            message = f"the attempt was still at {stage or 'its very beginning'} when its deadline passed"
        case TaskState.FINISHED | TaskState.FAILED | TaskState.CANCELED:
            raise ValueError(f"{state} has no deadline")
        case _:
            assert_never(state)
    return failed(Reason.DEADLINE_PASSED, message)


def keep_since(pools: Iterable[Pool], now: datetime) -> dict[str, datetime]:
    """By pool: tasks that were over before then are kept no longer."""
    return {pool.name: now - timedelta(seconds=pool.retention_seconds) for pool in pools}
