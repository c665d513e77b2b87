"""The services as an operator runs them: schedulers that are killed, runners' names, chores, what doctor sees."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from orchestrator.scheduler.loop import CHORES
from tests.driver import Mayfly

DEADLINE = 60.0
LEASE_SECONDS = 2.0


@pytest.fixture(scope="module")
def mayfly(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mayfly]:
    """A home with a local cloud of no machines, and short leases."""
    home = tmp_path_factory.mktemp("services") / "home"
    environment = {"MAYFLY_HOME": str(home), "MAYFLY_DATABASE_URL": "", "ONE_XMLRPC": "", "ONE_AUTH": ""}
    mayfly = Mayfly({**environment, "MAYFLY_LEASE_SECONDS": f"{LEASE_SECONDS:g}"})
    started = mayfly("cloud", "start", "--hypervisor", "simulated")
    assert started.exit_code == 0, started.stderr
    yield mayfly
    assert mayfly("cloud", "stop").exit_code == 0


@contextlib.contextmanager
def service(mayfly: Mayfly, *words: str) -> Iterator[subprocess.Popen[str]]:
    process = mayfly.start(*words)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=DEADLINE)
        if process.poll() is None:
            process.kill()
            process.communicate()


def until(what: str, condition: Callable[[], Any]) -> Any:
    """Poll; fail, naming `what`, at a deadline."""
    give_up = time.monotonic() + DEADLINE
    while time.monotonic() < give_up:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"never: {what}")


def doctor(mayfly: Mayfly) -> dict[str, Any]:
    """What it finds, by requirement."""
    return {each["requirement"]: each for each in mayfly("doctor", "--json").json()}


def asked(mayfly: Mayfly, query: str) -> list[tuple[Any, ...]]:
    """Rows, straight from the home's database."""
    with contextlib.closing(sqlite3.connect(mayfly.home / "mayfly.db", timeout=DEADLINE)) as database:
        return database.execute(query).fetchall()


def leader(mayfly: Mayfly) -> str:
    """Who leads, or led last; the name has the process's id in it."""
    return "".join(holder for (holder,) in asked(mayfly, "select holder from leaders"))


def keys(mayfly: Mayfly) -> list[str]:
    return [key for (key,) in asked(mayfly, "select idempotency_key from tasks order by id")]


def test_a_killed_scheduler_is_followed_and_no_instant_is_submitted_twice(mayfly: Mayfly) -> None:
    added = mayfly("schedule", "add", "often", "--every", "1s", "--catch-up", "--", "true")
    assert added.exit_code == 0, added.stderr
    with service(mayfly, "scheduler") as first:
        until("the first leads", lambda: f"-{first.pid}-" in leader(mayfly))
        with service(mayfly, "scheduler") as second:
            until("two tasks", lambda: len(keys(mayfly)) >= 2)
            assert f"-{first.pid}-" in leader(mayfly)
            assert f"-{first.pid}-" in doctor(mayfly)["scheduler"]["seen"]
            first.send_signal(signal.SIGKILL)
            first.wait()
            until("the second leads", lambda: f"-{second.pid}-" in leader(mayfly))
            before = len(keys(mayfly))
            until("more tasks", lambda: len(keys(mayfly)) > before)
            assert mayfly("schedule", "remove", "often").exit_code == 0
    told = keys(mayfly)
    assert len(told) == len(set(told))
    instants = [datetime.fromisoformat(key.removeprefix("schedule:often:")) for key in told]
    apart = {later - earlier for earlier, later in pairwise(sorted(instants))}
    assert apart == {timedelta(seconds=1)}  # each instant, once
    assert mayfly("queue", "delete", "default", "--yes").exit_code == 0


def test_doctor_says_what_tasks_wait_for(mayfly: Mayfly) -> None:
    quiet = doctor(mayfly)
    assert quiet["database"]["met"] and "SQLite" in quiet["database"]["seen"]
    assert quiet["scheduler"]["met"]
    assert mayfly("submit", "--", "true").exit_code == 0
    found = doctor(mayfly)
    assert not found["scheduler"]["met"]
    assert "mayfly scheduler" in found["scheduler"]["hint"]
    assert not found["runner for pool default"]["met"]
    assert "1 tasks wait" in found["runner for pool default"]["seen"]
    assert mayfly("queue", "delete", "default", "--yes").exit_code == 0


def test_two_runners_with_one_name(mayfly: Mayfly) -> None:
    with service(mayfly, "runner", "--name", "north", "--pool", "default") as first:
        until("it is alive", lambda: "north (default" in doctor(mayfly)["runners"]["seen"])
        again = mayfly("runner", "--name", "north")
        assert again.exit_code == 2
        assert "name" in again.stderr and "north" in again.stderr and "Traceback" not in again.stderr
        assert first.poll() is None
        first.terminate()
        assert first.wait(DEADLINE) == 0
    with service(mayfly, "runner", "--name", "north"):
        until("the name is free again", lambda: "north (" in doctor(mayfly)["runners"]["seen"])


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("--pool", "defualt"), ("pool", "defualt", "default")),
        (("--limit", "0"), ("--limit",)),
        (("--drain-seconds", "soon"), ("drain-seconds", "'soon'", "90s")),
    ],
)
def test_a_runner_that_cannot_be(mayfly: Mayfly, words: tuple[str, ...], names: tuple[str, ...]) -> None:
    done = mayfly("runner", *words)
    assert done.exit_code == 2
    assert all(name in done.stderr for name in names), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", list(CHORES))
def test_every_chore_can_be_run_by_hand(mayfly: Mayfly, name: str) -> None:
    done = mayfly("chore", name)
    assert (done.exit_code, done.stdout) == (0, ""), done.stderr


def test_a_chore_that_there_is_not(mayfly: Mayfly) -> None:
    done = mayfly("chore", "reep")
    assert done.exit_code == 2
    assert "reep" in done.stderr and "reap" in done.stderr


def test_a_scheduler_without_a_cloud_says_so(mayfly: Mayfly, tmp_path: Path) -> None:
    auth = tmp_path / "auth"
    auth.write_text("oneadmin:secret\n")
    elsewhere = mayfly.with_environment(ONE_XMLRPC="http://127.0.0.1:9/RPC2", ONE_AUTH=str(auth))
    found = doctor(elsewhere)
    assert not found["cloud"]["met"]
    assert "127.0.0.1:9" in found["cloud"]["seen"]


def test_a_runner_and_a_scheduler_wait_for_their_cloud(tmp_path: Path) -> None:
    environment = {"MAYFLY_HOME": str(tmp_path / "home"), "MAYFLY_DATABASE_URL": "", "ONE_XMLRPC": "", "ONE_AUTH": ""}
    mayfly = Mayfly({**environment, "MAYFLY_LEASE_SECONDS": f"{LEASE_SECONDS:g}"})
    with service(mayfly, "runner", "--name", "early") as runner, service(mayfly, "scheduler") as scheduler:
        for process in (runner, scheduler):
            assert process.stderr is not None
            line = process.stderr.readline()
            assert "tried again" in line and "mayfly cloud start" in line
        assert mayfly("cloud", "start", "--hypervisor", "simulated").exit_code == 0
        try:
            until("the scheduler leads", lambda: f"-{scheduler.pid}-" in leader(mayfly))
            until("the runner is alive", lambda: "early (" in doctor(mayfly)["runners"]["seen"])
        finally:
            assert mayfly("cloud", "stop").exit_code == 0


@pytest.mark.parametrize("words", [("runner",), ("scheduler",)])
def test_a_service_that_is_stopped_while_it_waits_for_its_database_ends_well(
    mayfly: Mayfly, tmp_path: Path, words: tuple[str, ...]
) -> None:
    elsewhere = mayfly.with_environment(MAYFLY_DATABASE_URL=f"postgresql:///mayfly?host={tmp_path}")
    with service(elsewhere, *words) as process:
        assert process.stderr is not None
        assert "the database does not answer" in process.stderr.readline()
        process.terminate()
        rest = process.communicate(timeout=DEADLINE)[1]
        assert process.returncode == 0
        assert "Traceback" not in rest
