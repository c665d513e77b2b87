"""What an outcome means for a task."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.outcome import (
    Exited,
    Lost,
    Outcome,
    OutOfMemory,
    Reason,
    Signaled,
    TimedOut,
    Verdict,
    failed,
    judge,
    stopped,
)
from orchestrator.domain.task import TaskState

outcomes = (
    st.builds(Exited, st.integers(0, 255))
    | st.builds(Signaled, st.sampled_from(["KILL", "SEGV", "TERM", "RTMIN+3"]))
    | st.builds(OutOfMemory, st.integers(1, 2**40))
    | st.builds(TimedOut, st.floats(0.1, 1e6))
    | st.builds(Lost, st.text())
)


@pytest.mark.parametrize(
    "outcome, verdict",
    [
        (Exited(0), Verdict(TaskState.FINISHED, None, "exited with 0", 0)),
        (Exited(7), Verdict(TaskState.FAILED, Reason.EXIT_NONZERO, "exited with 7", 7)),
        (
            Exited(127),
            Verdict(TaskState.FAILED, Reason.EXIT_NONZERO, "exited with 127: the command was not found", 127),
        ),
        (Signaled("KILL"), Verdict(TaskState.FAILED, Reason.SIGNALED, "ended by SIGKILL", 137)),
        (
            OutOfMemory(256 * 2**20),
            Verdict(TaskState.FAILED, Reason.OUT_OF_MEMORY, "out of memory: killed at its limit of 256 MiB", 137),
        ),
        (TimedOut(2.0), Verdict(TaskState.FAILED, Reason.TIMED_OUT, "timed out after 2 s", 124)),
        (Lost("powered off"), Verdict(TaskState.FAILED, Reason.CONNECTION_LOST, "lost: powered off", 125)),
    ],
)
def test_each_end_has_its_verdict(outcome: Outcome, verdict: Verdict) -> None:
    assert judge(outcome) == verdict


def test_a_missing_output_fails_what_exited_well_and_nothing_else() -> None:
    missing = ("output 'a' matched nothing", "output 'b' matched nothing")
    assert judge(Exited(0), missing_outputs=missing) == Verdict(
        TaskState.FAILED, Reason.OUTPUT_MISSING, "; ".join(missing), 125
    )
    assert judge(Exited(3), missing_outputs=missing) == judge(Exited(3))


@given(outcomes, st.lists(st.text(), max_size=2))
def test_a_verdict_is_an_end_and_only_a_clean_exit_finishes(outcome: Outcome, missing: list[str]) -> None:
    verdict = judge(outcome, missing_outputs=tuple(missing))
    assert verdict.state.over
    assert (verdict.state is TaskState.FINISHED) == (outcome == Exited(0) and not missing)
    assert (verdict.exit_code == 0) == (verdict.state is TaskState.FINISHED)
    assert (verdict.reason is None) == (verdict.state is TaskState.FINISHED)
    assert 0 <= verdict.exit_code <= 255


@pytest.mark.parametrize("number", [s for s in signal.Signals if s.name not in ("SIGRTMIN", "SIGRTMAX")])
def test_the_exit_code_of_a_signal_is_a_shells(number: signal.Signals) -> None:
    ends = {"CHLD", "CLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "WINCH"}  # these end no process: signal(7)
    name = number.name.removeprefix("SIG")
    if name not in ends:
        assert judge(Signaled(name)).exit_code == 128 + number


def test_the_platforms_failure_and_a_cancel_are_told_apart_from_the_jobs() -> None:
    assert failed(None, "bug") == Verdict(TaskState.FAILED, Reason.INTERNAL, "bug", 125)
    assert failed(Reason.UNREACHABLE, "no SSH").reason is Reason.UNREACHABLE
    assert stopped(None) == Verdict(TaskState.CANCELED, Reason.CANCELED, "canceled", 130)
    assert stopped(Signaled("TERM")).message == "canceled, and its process ended by SIGTERM"
