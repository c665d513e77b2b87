"""What systemd and the cgroup said → an outcome: one table."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.outcome import DiskFull, Exited, Lost, Outcome, OutOfMemory, Signaled, TimedOut, Usage
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


def test_out_of_memory_is_told_with_the_peak_where_it_is_known() -> None:
    told = outcome_of(record("oom-kill", "killed", "KILL", memory_peak="996"), LAUNCH)
    assert isinstance(told, OutOfMemory)
    assert (told.limit_bytes, told.peak_bytes) == (1000, 996)
    told = outcome_of(record("oom-kill", "killed", "KILL", memory_peak="lots"), LAUNCH)
    assert isinstance(told, OutOfMemory)
    assert told.peak_bytes is None


MIB_OF_BLOCKS = 256
"""Blocks of 4096 bytes in a MiB."""


def rooms(out: str, scratch: str, disk: str) -> dict[str, str]:
    """What may still be written, and of how much, in MiB: "FREE/TOTAL"."""
    told = {}
    for name, text in (("out", out), ("scratch", scratch), ("disk", disk)):
        free, total = text.split("/")
        told[f"{name}_room"] = f"{int(float(free) * MIB_OF_BLOCKS)} {int(total) * MIB_OF_BLOCKS} 4096"
    return told


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        (rooms("0/10", "5/5", "900/1000"), DiskFull("/task/out", 10 << 20, 1)),
        (rooms("0.05/10", "5/5", "900/1000"), DiskFull("/task/out", 10 << 20, 1)),
        (rooms("9/10", "0/5", "900/1000"), DiskFull("/task/tmp", 5 << 20, 1)),
        (rooms("1/10", "1/5", "0.9/1000"), DiskFull("the disk", 1000 << 20, 1)),
        (rooms("0.1/10", "0.1/5", "1.1/1000"), Exited(1)),
        # the machine has no quotas: each folder tells of the disk
        (rooms("0/1000", "0/1000", "0/1000"), DiskFull("the disk", 1000 << 20, 1)),
        (rooms("9/1000", "9/1000", "9/1000"), Exited(1)),
        ({"out_room": "0 2560", "scratch_room": "none", "disk_room": "-1 -1 4096"}, Exited(1)),
        ({"out_room": "0 0 0", "scratch_room": "", "disk_room": "9 9"}, Exited(1)),
    ],
)
def test_a_failure_without_room_is_a_full_disk(said: dict[str, str], outcome: Outcome) -> None:
    launch = replace(LAUNCH, output_bytes=10 << 20, scratch_bytes=5 << 20)
    assert outcome_of(record("exit-code", "exited", "1", **said), launch) == outcome


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        (record("success", "exited", "0"), Exited(0)),
        (record("signal", "killed", "BUS"), Signaled("BUS")),
        (record("oom-kill", "killed", "KILL"), OutOfMemory(1000)),
    ],
)
def test_no_room_is_not_what_else_is_told(said: dict[str, str], outcome: Outcome) -> None:
    launch = replace(LAUNCH, output_bytes=10 << 20)
    assert outcome_of(said | rooms("0/10", "0/10", "0/1000"), launch) == outcome


def test_a_room_without_a_limit_of_its_own_is_the_disks() -> None:
    said = record("exit-code", "exited", "1", **rooms("0/1000", "0/1000", "0/1000"))
    assert outcome_of(said, LAUNCH) == DiskFull("the disk", 1000 << 20, 1)


def test_usage_is_told_or_not_known() -> None:
    moved = parse_record(b"io_read=900\nio_read_before=100\nio_written=4096\n")
    assert usage_of(moved) == Usage(read_bytes=800, written_bytes=4096)
    said = parse_record(b"cpu_usec=1500000\nmemory_peak=4096\n")
    assert usage_of(said) == Usage(1.5, 4096)
    assert usage_of({**said, "cpu_usec_before": "1000000"}) == Usage(0.5, 4096)
    assert usage_of({**said, "cpu_usec_before": "2000000"}) == Usage(0.0, 4096)
    assert usage_of({**said, "cpu_usec_before": "much"}) == Usage(None, 4096)
    assert usage_of(parse_record(b"cpu_usec=-1\nmemory_peak=lots\n")) == Usage(None, None)
