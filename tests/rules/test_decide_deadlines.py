"""Until when a task may stay as it is, and what is said of one that stayed longer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.decide import deadlines
from orchestrator.decide.retry import Retry
from orchestrator.domain.outcome import PLATFORM_EXIT, Reason, Verdict
from orchestrator.domain.pool import Pool
from orchestrator.domain.task import Limits, Stage, TaskSpec, TaskState, Terms

NOW = datetime(2026, 3, 1, tzinfo=UTC)
POOL = Pool(name="small", image="debian-12", max_queue_seconds=1000, retention_seconds=86400)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "not_before, expected", [(None, at(1000)), (at(-500), at(1000)), (NOW, at(1000)), (at(50), at(1050))]
)
def test_a_task_waits_as_long_as_its_pool_allows_from_when_it_might_start(
    not_before: datetime | None, expected: datetime
) -> None:
    assert deadlines.of_queued(Terms(not_before=not_before), POOL, NOW) == expected


def test_an_attempt_may_take_what_its_stages_may() -> None:
    spec = TaskSpec("small", ("true",), limits=Limits(timeout_seconds=10))
    assert deadlines.of_attempt(spec, POOL, NOW) == at(POOL.attempt_seconds(10))
    assert deadlines.of_attempt(TaskSpec("small", ("true",)), POOL, NOW) == at(POOL.attempt_seconds(None))


def test_only_a_try_that_counted_makes_a_fresh_wait() -> None:
    submitted = at(-900)
    again = Retry(7, Reason.UNREACHABLE, "", avoid_host=True, counted=True)
    free = Retry(7, Reason.QUOTA, "", avoid_host=False, counted=False)
    assert deadlines.of_requeued(again, Terms(), POOL, submitted_at=submitted, now=NOW) == at(1007)
    assert deadlines.of_requeued(free, Terms(), POOL, submitted_at=submitted, now=NOW) == at(100)


@pytest.mark.parametrize(
    "state, stage, message",
    [
        (TaskState.QUEUED, None, "it waited until its deadline: no room"),
        (TaskState.RUNNING, None, "the attempt was still at its very beginning when its deadline passed"),
        (TaskState.RUNNING, Stage.SEALING, "the attempt was still at SEALING when its deadline passed"),
        (TaskState.WAITING, Stage.EXECUTING, "the attempt was still at EXECUTING when its deadline passed"),
    ],
)
def test_what_is_overdue_ends_with_a_reason(state: TaskState, stage: Stage | None, message: str) -> None:
    verdict = deadlines.overdue(state, stage, None, "no room")
    assert verdict == Verdict(TaskState.FAILED, Reason.DEADLINE_PASSED, message, PLATFORM_EXIT)


def test_what_was_never_released_is_canceled_by_its_deadline() -> None:
    verdict = deadlines.overdue(TaskState.NEW, None, None)
    message = "it was not released before its deadline"
    assert verdict == Verdict(TaskState.CANCELED, Reason.DEADLINE_PASSED, message, PLATFORM_EXIT)


def test_what_a_runner_wrote_down_stands_also_when_the_machine_took_too_long_to_go() -> None:
    good = Verdict(TaskState.FINISHED, None, "exited with 0", 0)
    assert deadlines.overdue(TaskState.RUNNING, Stage.DESTROYING, good) == good


@pytest.mark.parametrize("state", [state for state in TaskState if state.over])
def test_what_is_over_has_no_deadline(state: TaskState) -> None:
    with pytest.raises(ValueError, match="has no deadline"):
        deadlines.overdue(state, None, None)


def test_each_pool_keeps_what_is_over_for_its_own_time() -> None:
    assert deadlines.keep_since([POOL], NOW) == {"small": at(-86400)}
