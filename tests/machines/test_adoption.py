"""kill -9 of a runner while its process runs in a real machine: another runner finishes the same process."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.driver import Mayfly, TestCloud

SECONDS = 60
COUNT = f"""
echo $(cat /proc/sys/kernel/random/boot_id) $$
i=0; while [ $i -lt {SECONDS} ]; do i=$((i+1)); echo second $i; sleep 1; done
echo whole >result
"""
PATIENCE_SECONDS = 480.0
"""An emulated machine on a busy host takes several seconds for one of its own."""


@contextmanager
def runner(mayfly: Mayfly) -> Iterator[subprocess.Popen[str]]:
    """A `mayfly runner`; asked to go at the end of the block, unless it is gone by then."""
    process = mayfly.start("runner")
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            _, said = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            _, said = process.communicate()
        print(said)  # shown when the test fails


def test_another_runner_finishes_the_process_of_one_that_was_killed(mayfly: Mayfly, cloud: TestCloud) -> None:
    mayfly = mayfly.with_environment(MAYFLY_LEASE_SECONDS="4")
    task = mayfly("submit", "--json", "-o", "result", "--", "sh", "-c", COUNT).json()["id"]
    with mayfly.start("logs", "--follow", task) as following, runner(mayfly) as first:
        assert following.stdout
        seen = [following.stdout.readline() for _ in range(11)]
        first.kill()
        first.wait()
        [vm] = cloud.machines()
        with runner(mayfly):
            rest, _ = following.communicate(timeout=PATIENCE_SECONDS)
        told = mayfly("show", task, "--json").json()

    assert (told["state"], told["exit_code"]) == ("FINISHED", 0), told
    [attempt] = told["attempts"]
    assert attempt["vm"]["cloud_id"] == vm
    assert (attempt["vm"]["state"], "DONE" in attempt["vm"]["proof"]) == ("DESTROYED", True)
    assert [file["path"] for file in attempt["outputs"]["files"]] == ["result"]
    began, *counted = mayfly("logs", task).stdout.splitlines()
    boot_id, _, pid = began.partition(" ")
    assert len(boot_id) == 36 and pid.isdigit()
    assert counted == [f"second {number}" for number in range(1, SECONDS + 1)]
    assert "".join(seen) + rest == mayfly("logs", task).stdout
    assert mayfly("trace", task, "--raw").stdout.count("+++ exited with 0 +++\n") > 1
    assert mayfly("vm", "list", "--json").json() == []
    assert cloud.machines() == []
    assert cloud.processes() == []
