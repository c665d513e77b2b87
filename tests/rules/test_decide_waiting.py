"""The one reason why a task waits, its place in the line, and how long that may take."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.decide.admission import Room
from orchestrator.decide.waiting import LayerWait, Situation, Waiting, estimate_seconds, layer_failed, position, why
from orchestrator.domain.outcome import Reason
from orchestrator.domain.pool import Pool
from orchestrator.domain.task import TaskState

NOW = datetime(2026, 3, 1, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)
POOL = Pool(name="small", image="debian-12", max_vms=2)
READY = Situation(TaskState.QUEUED, POOL, "small", NOW, admitted=True)
QUOTA = Room(0, Reason.QUOTA, "the quota of user mayfly leaves 0 VMs")

# Each is one more thing that keeps the task from starting, told before those that are above it in this list.
OBSTACLES = [
    ({"ahead": 2}, Waiting(Reason.IN_LINE, "2 tasks are before it")),
    ({"admitted": False}, Waiting(Reason.IN_LINE, "it is ready, and about to be let in")),
    ({"blocked": QUOTA}, Waiting(Reason.QUOTA, QUOTA.message)),
    ({"open_vms": 2}, Waiting(Reason.MAX_VMS, "pool small may have 2 machines, and has 2")),
    (
        {"served": False},
        Waiting(Reason.NO_RUNNER, "no runner is alive for pool small: start one with mayfly up or mayfly runner"),
    ),
    ({"paused": True}, Waiting(Reason.POOL_PAUSED, "pool small is paused")),
    ({"not_before": LATER}, Waiting(Reason.NOT_BEFORE, "it is to wait until 2026-03-01T00:05:00+00:00")),
    ({"layer": LayerWait("01kb")}, Waiting(Reason.LAYER, "its packages are installed by task 01kb")),
    ({"unfinished": ("b", "a")}, Waiting(Reason.DEPENDS_ON, "it waits for the end of a, b")),
    ({"pool": None}, Waiting(Reason.NO_SUCH_POOL, "the inventory has no pool 'small' any more")),
    ({"state": TaskState.NEW}, Waiting(Reason.NOT_RELEASED, "it is held until it is released")),
]


@pytest.mark.parametrize("count", range(1, len(OBSTACLES) + 1))
def test_of_all_that_keeps_a_task_from_starting_one_reason_is_told(count: int) -> None:
    alone, waiting = OBSTACLES[count - 1]
    assert why(replace(READY, **alone)) == waiting
    together = {name: value for change, _ in OBSTACLES[:count] for name, value in change.items()}
    assert why(replace(READY, **together)) == waiting


@pytest.mark.parametrize("state", [state for state in TaskState if state not in (TaskState.NEW, TaskState.QUEUED)])
def test_a_task_that_is_held_or_over_waits_for_nothing(state: TaskState) -> None:
    assert why(replace(READY, state=state, paused=True)) is None


@pytest.mark.parametrize(
    "change, message",
    [
        ({}, "it waits for its turn"),
        ({"ahead": 0}, "it is the next one"),
        ({"ahead": 1}, "1 task is before it"),
        ({"not_before": NOW, "ahead": 0}, "it is the next one"),
        ({"blocked": Room(3), "ahead": 0}, "it is the next one"),
        ({"open_vms": 1, "ahead": 0}, "it is the next one"),
        ({"paused": True, "paused_because": "new image"}, "pool small is paused: new image"),
        ({"unfinished": "fedcba"}, "it waits for the end of a, b, c and 3 more"),
        ({"layer": LayerWait()}, "it is about to be found out whether its packages are installed already"),
    ],
)
def test_how_it_is_said(change: dict[str, object], message: str) -> None:
    waiting = why(replace(READY, **change))
    assert waiting is not None and waiting.message == message


@pytest.mark.parametrize(
    "last, reason, message",
    [
        (
            Reason.UNREACHABLE,
            Reason.RETRY,
            "it is tried again, and waits until 2026-03-01T00:05:00+00:00; attempt 2 did not do it: no SSH",
        ),
        (Reason.QUOTA, Reason.QUOTA, "it waits until 2026-03-01T00:05:00+00:00: no SSH"),
        (Reason.NO_CAPACITY, Reason.NO_CAPACITY, "it waits until 2026-03-01T00:05:00+00:00: no SSH"),
    ],
)
def test_a_task_that_is_to_be_tried_again_says_what_failed(last: Reason, reason: Reason, message: str) -> None:
    again = replace(READY, not_before=LATER, attempt=2, last_reason=last, last_message="no SSH")
    assert why(again) == Waiting(reason, message)


@pytest.mark.parametrize("message, end", [("exited with 1", "exited with 1"), ("", "did not do it")])
def test_of_packages_that_could_not_be_installed_it_is_said_by_which_task(message: str, end: str) -> None:
    assert layer_failed("01kb", message) == f"its packages could not be installed: task 01kb {end}"


@dataclass(frozen=True)
class At:
    higher: int = 0
    own_before: int = 0
    others: tuple[int, ...] = ()


@pytest.mark.parametrize(
    "place, expected",
    [
        (At(), 1),
        (At(higher=4), 5),
        (At(own_before=3), 4),
        (At(own_before=1, others=(1000,)), 4),
        (At(own_before=100, others=(2, 3)), 106),
        (At(higher=2, own_before=1, others=(5, 1, 0)), 7),
    ],
)
def test_frontends_take_turns_so_a_long_queue_of_another_counts_for_little(place: At, expected: int) -> None:
    assert position(place) == expected


@given(st.integers(0, 9), st.lists(st.integers(0, 9), max_size=3), st.randoms())
def test_no_order_in_which_frontends_take_turns_is_worse_than_the_position(
    own_before: int, others: list[int], random: object
) -> None:
    waiting = [own_before + 1, *others]
    served = [0] * len(waiting)
    turn = 0
    while served[0] <= own_before:
        turn += 1
        able = [n for n, count in enumerate(waiting) if served[n] < count]
        fewest = min(served[n] for n in able)
        served[random.choice([n for n in able if served[n] == fewest])] += 1  # type: ignore[attr-defined]
    assert turn <= position(At(0, own_before, tuple(others)))


@dataclass(frozen=True)
class Ended:
    ended: int = 0
    mean_seconds: float | None = None
    window_seconds: float = 3600.0


@pytest.mark.parametrize(
    "pace, running, expected",
    [
        (Ended(), 0, None),
        (Ended(), 3, None),
        (Ended(36, 100.0), 4, 75.0),
        (Ended(36, 100.0), 0, 300.0),
        (Ended(36, 0.0), 4, 300.0),
        (Ended(36), 4, 300.0),
    ],
)
def test_an_estimate_comes_from_what_was_measured(pace: Ended, running: int, expected: float | None) -> None:
    assert estimate_seconds(3, pace, running=running) == expected
