"""How a process ended, told truthfully: reason, exit code, and what it left by then."""

from __future__ import annotations

import pytest

from orchestrator.domain.outcome import Reason
from orchestrator.domain.task import Stage, TaskState
from tests.journeys.house import House


@pytest.mark.parametrize(
    ("end", "reason", "exit_code", "message", "outcome"),
    [
        ("exit 7", Reason.EXIT_NONZERO, 7, "exited with 7", {"kind": "Exited", "code": 7}),
        (
            "nosuch",
            *(Reason.EXIT_NONZERO, 127, "exited with 127: the command was not found"),
            {"kind": "Exited", "code": 127},
        ),
        ("kill -9 $$", Reason.SIGNALED, 137, "ended by SIGKILL", {"kind": "Signaled", "name": "KILL"}),
        ("crash", Reason.SIGNALED, 139, "ended by SIGSEGV", {"kind": "Signaled", "name": "SEGV"}),
        (
            "oom",
            *(Reason.OUT_OF_MEMORY, 137, "out of memory: killed at its limit of 160 MiB; it had 160 MiB"),
            {"kind": "OutOfMemory", "limit_bytes": 160 * 2**20, "peak_bytes": 160 * 2**20},
        ),
        ("sleep 600", Reason.TIMED_OUT, 124, "timed out after 0.3 s", {"kind": "TimedOut", "seconds": 0.3}),
        ("hang", Reason.TIMED_OUT, 124, "timed out after 0.3 s", {"kind": "TimedOut", "seconds": 0.3}),
    ],
)
async def test_an_end_and_the_partial_outputs(
    house: House, end: str, reason: Reason, exit_code: int, message: str, outcome: dict[str, object]
) -> None:
    timeout = 0.3 if reason is Reason.TIMED_OUT else None
    task = await house.submit(f"echo out; echo part > part.txt; {end}", outputs=("*.txt", "*.csv"), timeout=timeout)
    done = await house.run(task)
    assert (done.state, done.reason, done.exit_code) == (TaskState.FAILED, reason, exit_code)
    assert done.message == message
    assert house.log(task, "stdout") == b"out\n"
    assert b"execve" in house.log(task, "trace")
    assert house.outputs(task) == ["part.txt"]
    assert (await house.report(task))["attempts"][0]["outcome"] == outcome
    assert await house.stages(task) == list(Stage)


async def test_an_output_that_is_missing_is_an_error_with_near_misses(house: House) -> None:
    task = await house.submit("echo 1 > results.csv; echo 2 > kept.txt", outputs=("result.csv", "kept.txt"))
    done = await house.run(task)
    assert (done.state, done.reason, done.exit_code) == (TaskState.FAILED, Reason.OUTPUT_MISSING, 125)
    assert done.message == "output 'result.csv' matched nothing: did you mean 'results.csv'?"
    assert house.outputs(task) == ["kept.txt"]


async def test_an_output_that_is_a_symbolic_link_is_refused(house: House) -> None:
    task = await house.submit("link stolen.txt; echo 1 > kept.txt", outputs=("*.txt",))
    done = await house.run(task)
    assert (done.state, done.reason, done.exit_code) == (TaskState.FAILED, Reason.STAGING_FAILED, 125)
    assert "stolen.txt" in done.message and "symbolic link" in done.message
    assert house.outputs(task) == ["kept.txt"]
    assert (await house.report(task))["attempts"][0]["outcome"] == {"kind": "Exited", "code": 0}


async def test_what_cannot_be_taken_of_a_failed_process_does_not_hide_how_it_ended(house: House) -> None:
    task = await house.submit("link stolen.txt; echo 1 > part.txt; exit 7", outputs=("*.txt",))
    done = await house.run(task)
    assert (done.reason, done.exit_code) == (Reason.EXIT_NONZERO, 7)
    assert house.outputs(task) == ["part.txt"]
    [note] = await house.notes(task)
    assert note.startswith("not all of the outputs were taken: output stolen.txt: it is a symbolic link")

    task = await house.submit("write big 2000; exit 8", outputs=("big",))
    done = await house.run(task, house.with_pool(max_output_bytes=1000))
    assert (done.reason, done.exit_code) == (Reason.EXIT_NONZERO, 8)
    [note] = await house.notes(task)
    assert note.startswith("not all of the outputs were taken") and "at most 1000" in note


async def test_outputs_that_are_too_large_are_not_taken(house: House) -> None:
    task = await house.submit("write big 2000", outputs=("big",))
    done = await house.run(task, house.with_pool(max_output_bytes=1000))
    assert (done.reason, done.exit_code) == (Reason.STAGING_FAILED, 125)
    assert "at most 1000" in done.message
    assert house.outputs(task) == []


async def test_a_log_that_is_too_large_is_cut_and_says_so(house: House) -> None:
    task = await house.submit("flood 5000; echo end > end.txt", outputs=("*",))
    done = await house.run(task, house.with_pool(max_log_bytes=1000))
    assert done.state is TaskState.FINISHED
    assert house.log(task, "stdout") == b"x" * 1000
    [stdout] = [log for log in (await house.report(task))["attempts"][0]["logs"] if log["name"] == "stdout"]
    assert stdout["cut"]
