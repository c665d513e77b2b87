"""What systemd and the cgroup said → an outcome: one table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.outcome import Exited, Lost, Outcome, OutOfMemory, Signaled, TimedOut, Usage
from orchestrator.guest import Launch, LaunchFailed, StepFailed
from orchestrator.guest.exit_record import outcome_of, parse_record, usage_of

LAUNCH = Launch(argv=("x",), timeout_seconds=2.0, memory_bytes=1000, processes=1, trace=())
RAN = {"launched": "yes", "traced": "yes", "oom_kill": "0"}


def record(result: str, code: str, status: str, **more: str) -> dict[str, str]:
    return {**RAN, "result": result, "code": code, "status": status, **more}


def expired(seconds: float) -> dict[str, str]:
    """It was ended because its time was over; and it lived for so long."""
    return {
        "expired": "yes",
        "began_usec": "5000000",
        "ExecMainExitTimestampMonotonic": str(5_000_000 + int(seconds * 1e6)),
    }


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        (record("success", "exited", "0"), Exited(0)),
        (record("exit-code", "exited", "255"), Exited(255)),
        (record("signal", "killed", "KILL"), Signaled("KILL")),
        (record("success", "killed", "TERM"), Signaled("TERM")),
        (record("core-dump", "dumped", "SEGV"), Signaled("SEGV")),
        (record("signal", "killed", "RTMIN+3"), Signaled("RTMIN+3")),
        (record("oom-kill", "killed", "KILL"), OutOfMemory(1000)),
        # systemd heard of the end before it heard of the kill; or a child was killed, and the process went on
        (record("signal", "killed", "KILL", oom_kill="1"), OutOfMemory(1000)),
        (record("success", "exited", "0", oom_kill="2"), OutOfMemory(1000)),
        (record("success", "killed", "TERM", **expired(2.1)), TimedOut(2.0)),
        (record("timeout", "killed", "KILL", **expired(2.5)), TimedOut(2.0)),
        (record("success", "exited", "0", **expired(2.0)), TimedOut(2.0)),
        (record("success", "killed", "TERM", expired="yes"), TimedOut(2.0)),
        # its time was so short that it was over before strace saw it
        ({"result": "success", "code": "killed", "status": "TERM", "launched": "yes", **expired(2.0)}, TimedOut(2.0)),
        # it had ended by itself, just before
        (record("success", "exited", "0", **expired(1.9)), Exited(0)),
        # a child that it left behind had to be killed
        (record("timeout", "exited", "0"), Exited(0)),
        # it was stopped before its time, and resisted
        (record("timeout", "killed", "KILL"), Signaled("KILL")),
        (record("success", "exited", "256"), Lost("systemd says result success, exited 256")),
        (record("success", "killed", "kill -9"), Lost("systemd says result success, killed kill -9")),
        (record("protocol", "", ""), Lost("systemd says result protocol, no code")),
    ],
)
def test_an_outcome_is_made_of_what_was_said(said: dict[str, str], outcome: Outcome) -> None:
    assert outcome_of(said, LAUNCH) == outcome


@pytest.mark.parametrize("missing", ["launched", "traced"])
def test_a_status_of_systemd_or_strace_is_not_the_jobs(missing: str) -> None:
    said = record("exit-code", "exited", "0")
    del said[missing]
    with pytest.raises(LaunchFailed):
        outcome_of(said, LAUNCH)


@given(st.binary())
def test_no_record_breaks_the_reader_or_makes_success_of_nothing(text: bytes) -> None:
    said = parse_record(text)
    usage_of(said)
    with pytest.raises((StepFailed, LaunchFailed)):
        outcome_of(said, LAUNCH)


def test_usage_is_told_or_not_known() -> None:
    said = parse_record(b"cpu_usec=1500000\nmemory_peak=4096\n")
    assert usage_of(said) == Usage(1.5, 4096)
    assert usage_of({**said, "cpu_usec_before": "1000000"}) == Usage(0.5, 4096)
    assert usage_of({**said, "cpu_usec_before": "2000000"}) == Usage(0.0, 4096)
    assert usage_of({**said, "cpu_usec_before": "much"}) == Usage(None, 4096)
    assert usage_of(parse_record(b"cpu_usec=-1\nmemory_peak=lots\n")) == Usage(None, None)
