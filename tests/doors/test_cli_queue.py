"""Queues, terms, schedules and events as people work with them: the command line, in processes of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.task import TaskSpec
from orchestrator.store import Store
from tests.driver import Mayfly

INVENTORY = """
pools:
  hosts:
    small: {mayfly_image: debian-12, mayfly_max_waiting: 3, mayfly_max_queue_time: 2d}
    other: {mayfly_image: debian-12, mayfly_max_attempts: 2}
"""


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("inventory") / "pools.yml"
    file.write_text(INVENTORY)
    return file


def at(home: Path, inventory: Path) -> Mayfly:
    """Without a cloud: nothing here needs one."""
    places = {"MAYFLY_HOME": str(home), "MAYFLY_INVENTORY": str(inventory), "MAYFLY_DATABASE_URL": ""}
    return Mayfly({**places, "ONE_XMLRPC": "", "ONE_AUTH": ""})


@pytest.fixture
def mayfly(tmp_path: Path, inventory: Path) -> Mayfly:
    """A home of its own."""
    return at(tmp_path / "home", inventory)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, inventory: Path) -> Mayfly:
    """One home for all refusals: they leave nothing behind in it."""
    return at(tmp_path_factory.mktemp("refusals") / "home", inventory)


def submitted(mayfly: Mayfly, *options: str, pool: str = "other") -> str:
    """The id of a new task."""
    done = mayfly("submit", "-p", pool, *options, "--json", "--", "true")
    assert done.exit_code == 0, done.stderr
    return str(done.json()["id"])


def tasks(mayfly: Mayfly) -> dict[str, str]:
    """Every task's state by its id, straight from the home's database."""
    with contextlib.closing(sqlite3.connect(mayfly.home / "mayfly.db")) as database:
        if not database.execute("select 1 from sqlite_master where name = 'tasks'").fetchall():
            return {}
        return dict(database.execute("select id, state from tasks order by id").fetchall())


def refused(mayfly: Mayfly, *words: str, names: tuple[str, ...], exit_code: int = 2) -> None:
    """The command fails, says all of `names`, and no task is made, changed or lost."""
    mayfly.home.mkdir(exist_ok=True)
    before = tasks(mayfly)
    done = mayfly(*words)
    assert done.exit_code == exit_code, done.stdout + done.stderr
    for name in names:
        assert name in done.stderr
    assert "Traceback" not in done.stderr
    assert tasks(mayfly) == before


# -- terms


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (("--priority", "101"), ("priority", "101", "-100 to 100")),
        (("--priority", "-101"), ("priority", "-101")),
        (("--priority", "high"), ("--priority", "integer")),
        (("--attempts", "0"), ("attempts", "is 0", "1 to 100")),
        (("--not-before", "tomorrow"), ("not_before", "'tomorrow'", "+01:00")),
        (("--not-before", "2026-11-30T08:00"), ("not_before", "time zone")),
        (("--not-before", "+3d"), ("not_before", "further ahead", "48 h")),
        (("--not-before", "+99999999999d"), ("not_before",)),
        (("--not-before", "+0s"), ("not_before", "more than 0")),
        (("--delivery", "exactly_once"), ("--delivery", "exactly_once")),
        (("--after", "nonsuch"), ("depends_on", "nonsuch")),
        (("--key", ""), ("idempotency_key",)),
        (("--memory", "1.5"), ("memory", "'1.5'", "512M")),
        (("--timeout", "soon"), ("timeout", "'soon'", "90s")),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_terms_that_are_refused(home: Mayfly, options: tuple[str, ...], names: tuple[str, ...]) -> None:
    refused(home, "submit", "-p", "small", *options, "--", "true", names=names)


def test_run_refuses_them_too(home: Mayfly) -> None:
    for options, name in ((("--priority", "101"), "priority"), (("--not-before", "tomorrow"), "not_before")):
        refused(home, "run", "-p", "small", *options, "--", "true", names=(name,), exit_code=125)


def test_terms_that_are_kept(mayfly: Mayfly) -> None:
    first = submitted(mayfly)
    options = ("--priority", "-7", "--not-before", "+1h", "--after", first[-8:], "--delivery", "at_most_once")
    second = submitted(mayfly, *options, "--attempts", "5", "--retry-job", "--timeout", "1h30m", "--memory", "64M")
    report = mayfly("show", second, "--json").json()
    assert report["priority"] == -7
    assert report["depends_on"] == [first]
    assert report["delivery"] == "at_most_once"
    assert report["max_attempts"] == 5
    assert report["retry_job"] is True
    assert report["timeout_seconds"] == 5400
    assert report["memory_bytes"] == 64 * 2**20
    ahead = datetime.fromisoformat(report["not_before"]) - datetime.fromisoformat(report["submitted_at"])
    assert timedelta(minutes=59) < ahead < timedelta(minutes=61)


def test_a_command_that_is_larger_than_can_be_sent(mayfly: Mayfly) -> None:
    refused(mayfly, "submit", "-p", "other", "--", "echo", "x" * 110_000, names=("command", "100000"))


def test_a_task_that_is_larger_than_the_limit(mayfly: Mayfly) -> None:
    words = [word for number in range(4000) for word in ("-o", f"{number:04}" + "x" * 80)]
    refused(mayfly, "submit", "-p", "other", *words, "--", "true", names=("task", "262144"))


def test_a_queue_that_is_full(mayfly: Mayfly) -> None:
    for _ in range(3):
        submitted(mayfly, pool="small")
    refused(mayfly, "submit", "-p", "small", "--", "true", names=("pool", "small", "3"))
    submitted(mayfly, pool="other")


def test_the_same_key_twice(mayfly: Mayfly) -> None:
    first = submitted(mayfly, "--key", "night 1")
    assert submitted(mayfly, "--key", "night 1") == first
    refused(
        mayfly,
        *("submit", "-p", "other", "--key", "night 1", "--", "false"),
        names=("idempotency_key", "night 1"),
    )
    assert len(tasks(mayfly)) == 1


def test_a_dependency_on_a_task_of_another_frontend(mayfly: Mayfly) -> None:
    submitted(mayfly)

    async def theirs() -> str:
        async with await Store.open(f"sqlite+aiosqlite:///{mayfly.home / 'mayfly.db'}") as store:
            now = store.clock.now()
            spec = TaskSpec(pool="other", command=("true",))
            task = await store.tasks.submit(spec, now=now, deadline_at=now + timedelta(days=1), frontend="backend")
            return task.id

    task_id = asyncio.run(theirs())
    unknown = mayfly("submit", "-p", "other", "--after", "0" * len(task_id), "--", "true")
    refused(mayfly, "submit", "-p", "other", "--after", task_id, "--", "true", names=("depends_on", task_id))
    known = mayfly("submit", "-p", "other", "--after", task_id, "--", "true")
    assert known.stderr.replace(task_id, "ID") == unknown.stderr.replace("0" * len(task_id), "ID")


def test_a_circle_of_dependencies(mayfly: Mayfly) -> None:
    first = submitted(mayfly, "--hold")
    second = submitted(mayfly, "--after", first)
    refused(mayfly, "release", first, "--after", second, names=("depends_on", first, second))
    refused(mayfly, "release", first, "--after", first, names=("depends_on", first))
    assert tasks(mayfly)[first] == "NEW"
    third = submitted(mayfly)
    assert mayfly("release", first, "--after", third).exit_code == 0
    assert mayfly("show", first, "--json").json()["waits_for"]["reason"] == "depends_on"


# -- on hold, in line


def test_a_task_on_hold_is_released_once(mayfly: Mayfly) -> None:
    task = submitted(mayfly, "--hold")
    assert mayfly("show", task, "--json").json()["waits_for"]["reason"] == "not_released"
    assert mayfly("release", task).exit_code == 0
    assert tasks(mayfly) == {task: "QUEUED"}
    refused(mayfly, "release", task, names=("task", "QUEUED"))


def test_why_it_waits(mayfly: Mayfly) -> None:
    first, second = submitted(mayfly), submitted(mayfly, "--priority", "1")
    later = submitted(mayfly, "--not-before", "+1h")
    dependent = submitted(mayfly, "--after", first)

    def waits(task: str) -> dict[str, Any]:
        found: dict[str, Any] = mayfly("show", task, "--json").json()["waits_for"]
        return found

    assert waits(first)["reason"] == "no_runner"
    assert (waits(first)["position"], waits(second)["position"]) == (2, 1)
    assert waits(later)["reason"] == "not_before"
    assert waits(later)["position"] is None
    assert waits(dependent)["reason"] == "depends_on"
    assert first in waits(dependent)["message"]
    assert mayfly("queue", "pause", "other", "--because", "new disks").exit_code == 0
    assert waits(first)["reason"] == "pool_paused"
    assert "new disks" in waits(first)["message"]
    assert "waits     " in mayfly("show", first).stdout
    listed = {task["id"]: task["waits_for"] for task in mayfly("list", "--json").json()}
    assert "new disks" in listed[first]["message"]


def test_a_pool_that_left_the_inventory(mayfly: Mayfly, tmp_path: Path) -> None:
    task = submitted(mayfly)
    smaller = tmp_path / "smaller.yml"
    smaller.write_text("pools: {hosts: {small: {mayfly_image: debian-12}}}\n")
    without = mayfly.with_environment(MAYFLY_INVENTORY=str(smaller))
    assert without("show", task, "--json").json()["waits_for"]["reason"] == "no_such_pool"
    assert tasks(mayfly) == {task: "QUEUED"}


# -- queues


def test_a_queue_is_paused_resumed_and_deleted(mayfly: Mayfly) -> None:
    waiting, held = submitted(mayfly), submitted(mayfly, "--hold")
    elsewhere = submitted(mayfly, pool="small")
    for _ in range(2):
        assert mayfly("queue", "pause", "other").exit_code == 0
    queues = {queue["pool"]: queue for queue in mayfly("queue", "list", "--json").json()}
    assert not queues["small"]["served"]
    table = mayfly("queue", "list").stdout.splitlines()
    assert any("small" in line and "no runner is alive" in line for line in table)
    assert any("other" in line and "paused" in line for line in table)
    assert (queues["other"]["waiting"], queues["other"]["running"], queues["small"]["waiting"]) == (1, 0, 1)
    assert queues["other"]["paused_at"] is not None
    assert queues["small"]["paused_at"] is None
    for _ in range(2):
        assert mayfly("queue", "resume", "other").exit_code == 0
    refused(mayfly, "queue", "delete", "other", names=("--yes",))
    done = mayfly("queue", "delete", "other", "--yes", "--json")
    assert done.json() == {"pool": "other", "canceled": 2}
    assert tasks(mayfly) == {waiting: "CANCELED", held: "CANCELED", elsewhere: "QUEUED"}
    assert mayfly("queue", "delete", "other", "--yes", "--json").json()["canceled"] == 0


def test_a_queue_that_is_not_there(mayfly: Mayfly) -> None:
    for verb in (("pause", "othr"), ("resume", "othr"), ("delete", "othr", "--yes")):
        refused(mayfly, "queue", *verb, names=("pool", "othr", "other"))


# -- schedules


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ((), ("--cron", "--every")),
        (("--cron", "* * * * *", "--every", "1h"), ("--cron", "--every")),
        (("--cron", "61 * * * *"), ("cron", "61 * * * *")),
        (("--cron", "0 0 30 2 *"), ("cron", "never due")),
        (("--cron", "0 3 * * *", "--time-zone", "Europe/Atlantis"), ("time-zone", "Europe/Atlantis")),
        (("--every", "often"), ("every", "'often'", "15m")),
        (("--every", "0.1s"), ("every", "at least")),
        (("--every", "1h", "-p", "othr"), ("pool", "othr", "other")),
        (("--every", "1h", "--attempts", "0"), ("attempts", "is 0")),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_schedules_that_are_refused(home: Mayfly, options: tuple[str, ...], names: tuple[str, ...]) -> None:
    refused(home, "schedule", "add", "nightly", "-p", "other", *options, "--", "true", names=names)


def test_what_was_refused_left_no_schedule(home: Mayfly) -> None:
    assert home("schedule", "list", "--json").json() == []


def test_a_schedule_is_added_paused_and_removed(mayfly: Mayfly) -> None:
    words = ("schedule", "add", "nightly", "-p", "other", "--cron", "30 2 * * *", "--time-zone", "Europe/Amsterdam")
    added = mayfly(*words, "--catch-up", "--json", "--", "echo", "-n", "x")
    assert added.exit_code == 0, added.stderr
    next_at = datetime.fromisoformat(added.json()["next_at"])
    assert datetime.now(UTC) < next_at < datetime.now(UTC) + timedelta(days=1, hours=1)
    refused(mayfly, *words, "--", "true", names=("nightly",))
    [row] = mayfly("schedule", "list", "--json").json()
    assert (row["name"], row["cron"], row["time_zone"], row["catch_up"]) == (
        *("nightly", "30 2 * * *", "Europe/Amsterdam"),
        True,
    )
    assert row["command"] == ["echo", "-n", "x"]
    assert mayfly("schedule", "pause", "nightly").exit_code == 0
    assert mayfly("schedule", "list", "--json").json()[0]["paused_at"] is not None
    assert mayfly("schedule", "resume", "nightly").exit_code == 0
    assert mayfly("schedule", "list", "--json").json()[0]["paused_at"] is None
    assert mayfly("schedule", "remove", "nightly").exit_code == 0
    for verb in ("remove", "pause", "resume"):
        refused(mayfly, "schedule", verb, "nightly", names=("schedule", "nightly"))


# -- events


def test_events_tell_a_tasks_story_in_order(mayfly: Mayfly) -> None:
    task, other = submitted(mayfly, "--hold"), submitted(mayfly)
    assert mayfly("release", task).exit_code == 0
    assert mayfly("cancel", task).exit_code == 0
    told = [json.loads(line) for line in mayfly("events", "--json").stdout.splitlines()]
    assert [event["number"] for event in told] == sorted(event["number"] for event in told)
    ours = [json.loads(line) for line in mayfly("events", "--task", task, "--json").stdout.splitlines()]
    assert [event["kind"] for event in ours] == ["task.submitted", "task.released", "task.canceled"]
    assert ours == [event for event in told if event["task_id"] == task]
    later = mayfly("events", "--after", str(ours[0]["number"])).stdout
    assert "task.released" in later and "task.canceled" in later and other not in later.split("task.released")[1]


@pytest.fixture
def following(mayfly: Mayfly) -> Iterator[Any]:
    process = mayfly.start("events", "--follow", "--json")
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_events_are_followed(mayfly: Mayfly, following: Any) -> None:
    for _ in range(2):
        task = submitted(mayfly)
        event = json.loads(following.stdout.readline())
        assert (event["kind"], event["task_id"]) == ("task.submitted", task)
    following.send_signal(signal.SIGINT)
    assert following.wait(30) == 130


# -- the database


@pytest.mark.parametrize("url", ["mysql://root@localhost/mayfly", "oracle://x", "nonsense", "sqlite://"])
def test_a_database_of_another_kind(mayfly: Mayfly, url: str) -> None:
    done = mayfly.with_environment(MAYFLY_DATABASE_URL=url)("submit", "-p", "other", "--", "true")
    assert done.exit_code == 2
    assert "MAYFLY_DATABASE_URL" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_database_of_a_newer_schema(mayfly: Mayfly) -> None:
    task = submitted(mayfly)
    with sqlite3.connect(mayfly.home / "mayfly.db") as database:
        [known] = database.execute("select version_num from alembic_version").fetchone()
        database.execute("update alembic_version set version_num = '9999'")
    for words in (("list",), ("submit", "-p", "other", "--", "true"), ("doctor",)):
        done = mayfly(*words)
        said = done.stdout + done.stderr
        assert done.exit_code in (1, 2), said
        assert "newer" in said and "9999" in said and "Traceback" not in said
    with sqlite3.connect(mayfly.home / "mayfly.db") as database:
        database.execute("update alembic_version set version_num = ?", (known,))
    assert tasks(mayfly) == {task: "QUEUED"}
