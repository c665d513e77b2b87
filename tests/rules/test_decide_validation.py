"""Submissions that are wrong, each told with its field and a remedy."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.decide.validation import problems, validate
from orchestrator.domain.errors import InvalidTask
from orchestrator.domain.pool import Pool
from orchestrator.domain.task import Entrypoint, InputSpec, Limits, TaskSpec, Terms

POOLS = {
    "small": Pool(name="small", image="debian-12", max_timeout_seconds=60, max_processes=64),
    "large": Pool(name="large", image="debian-12", task_memory_bytes=2**30),
}
GOOD = TaskSpec(
    pool="small",
    command=("sh", "-c", "exit 7", "", "naïve\n\udcff"),
    inputs=(
        InputSpec("/a", "a"),
        InputSpec("/b", "data/b \n\udcff"),
        InputSpec("/b", "data/c"),
        InputSpec("/c", "a b"),
    ),
    outputs=("*.csv", "**", "a/./b"),
    environment={"_x1": "ü", "PATH": ""},
    limits=Limits(timeout_seconds=60, memory_bytes=384 * 2**20, processes=64),
    name="Mijn taak №1",
)


def inputs(*dests: str) -> tuple[InputSpec, ...]:
    return tuple(InputSpec("/src", dest) for dest in dests)


def test_a_good_submission_has_no_problems() -> None:
    assert list(problems(GOOD, POOLS)) == []
    validate(GOOD, POOLS)


@pytest.mark.parametrize(
    "change, field, told",
    [
        ({"pool": "smal"}, "pool", "no pool 'smal' (did you mean small?)"),
        ({"pool": "xyz"}, "pool", "no pool 'xyz' (there is large, small)"),
        ({"pool": ""}, "pool", "no pool ''"),
        ({"command": ()}, "command", "is empty"),
        ({"command": ("",)}, "command", "is empty"),
        ({"command": ("a", "b\0c")}, "command", "word 2 has a NUL"),
        ({"command": ("é" * 6000,) * 9}, "command", "with its environment, quoted; at most 100000 can be sent"),
        ({"command": ("'" * 7000,)}, "command", "quoted; at most 100000 can be sent"),
        ({"environment": {"A": "x" * 60000, "B": "x" * 60000}}, "command", "quoted; at most 100000 can be sent"),
        ({"name": "x" * 201}, "name", "has 201 characters"),
        ({"name": "a\nb"}, "name", "cannot be shown"),
        ({"name": "a\0"}, "name", "cannot be shown"),
        ({"name": "\udcff"}, "name", "cannot be shown"),
        ({"inputs": inputs("")}, "input", "is empty"),
        ({"inputs": inputs("/etc/passwd")}, "input", "is absolute"),
        ({"inputs": inputs("a/../b")}, "input", "leaves /task/in"),
        ({"inputs": inputs("..")}, "input", "leaves /task/in"),
        ({"inputs": inputs("a\0")}, "input", "has a NUL in it"),
        ({"inputs": (InputSpec("/a\0", "a"),)}, "input", "'/a\\x00' has a NUL in it"),
        ({"inputs": inputs("a//b")}, "input", "plainest form"),
        ({"inputs": inputs("a/")}, "input", "plainest form"),
        ({"inputs": inputs(".")}, "input", "plainest form"),
        ({"inputs": inputs("é" * 128)}, "input", "is too long"),
        ({"inputs": inputs("/".join(["d" * 200] * 20)[1:])}, "input", "is too long"),
        ({"inputs": inputs("a", "b", "a")}, "input", "two inputs have the dest 'a'"),
        ({"inputs": inputs("a/b/c", "a/b")}, "input", "dest 'a/b/c' lies inside dest 'a/b'"),
        ({"inputs": inputs("a", "a/b")}, "input", "dest 'a/b' lies inside dest 'a'"),
        ({"outputs": ("/etc/shadow",)}, "output", "is absolute"),
        ({"outputs": ("/task/out/x.csv",)}, "output", "(write 'x.csv')"),
        ({"outputs": ("/task/out/../in/x",)}, "output", "only /task/out is kept"),
        ({"outputs": ("ok", "../in/*")}, "output", "leaves /task/out"),
        ({"outputs": ("a/../../b",)}, "output", "leaves /task/out"),
        ({"outputs": ("a\0",)}, "output", "has a NUL in it"),
        ({"outputs": ("",)}, "output", "names nothing"),
        ({"outputs": ("./",)}, "output", "names nothing"),
        ({"environment": {"1A": ""}}, "env", "no name of a variable"),
        ({"environment": {"": ""}}, "env", "no name of a variable"),
        ({"environment": {"A B": ""}}, "env", "no name of a variable"),
        ({"environment": {"A\n": ""}}, "env", "no name of a variable"),
        ({"environment": {"É": ""}}, "env", "no name of a variable"),
        ({"environment": {"A": "x\0"}}, "env", "has a NUL in it"),
        ({"limits": Limits(timeout_seconds=0)}, "timeout", "is 0 s"),
        ({"limits": Limits(timeout_seconds=-1)}, "timeout", "is -1 s"),
        ({"limits": Limits(timeout_seconds=math.nan)}, "timeout", "is nan s"),
        ({"limits": Limits(timeout_seconds=math.inf)}, "timeout", "is inf s"),
        ({"limits": Limits(timeout_seconds=60.5)}, "timeout", "above the 60 s of pool small (give at most 60)"),
        ({"limits": Limits(memory_bytes=0)}, "memory", "is 0"),
        ({"limits": Limits(memory_bytes=-5)}, "memory", "is -5"),
        ({"limits": Limits(memory_bytes=1024)}, "memory", "is 1024 (give at least 16M)"),
        ({"limits": Limits(memory_bytes=2**40)}, "memory", "is 1048576M, above the 384M of pool small"),
        ({"limits": Limits(memory_bytes=2**31), "pool": "large"}, "memory", "is 2048M, above the 1024M of pool large"),
        ({"limits": Limits(processes=0)}, "processes", "is 0"),
        ({"limits": Limits(processes=65)}, "processes", "above the 64 processes of pool small"),
    ],
)
def test_what_is_wrong_is_told_with_its_field_and_a_remedy(change: dict[str, object], field: str, told: str) -> None:
    found = list(problems(replace(GOOD, **change), POOLS))
    assert [problem.field for problem in found] == [field], found
    assert told in str(found[0])
    assert found[0].remedy
    with pytest.raises(InvalidTask) as raised:
        validate(replace(GOOD, **change), POOLS)
    assert str(raised.value) == str(found[0])


def test_all_problems_are_found_at_once() -> None:
    bad = replace(
        GOOD, pool="x", command=(), outputs=("/a", "../b"), inputs=inputs("..", "/x"), environment={"=": "\0"}
    )
    assert [problem.field for problem in problems(bad, POOLS)] == [
        "pool", "command", "input", "input", "output", "output", "env", "env",
    ]  # fmt: skip


def test_no_pools_at_all_is_told_too() -> None:
    [problem] = problems(GOOD, {})
    assert "inventory" in problem.remedy


def test_the_other_entry_points_want_no_command() -> None:
    spec = replace(GOOD, command=(), entrypoint=Entrypoint.DATA_EXCHANGE, inputs=inputs("code", "data"))
    assert list(problems(spec, POOLS)) == []
    [problem] = problems(replace(spec, command=("python3",)), POOLS)
    assert problem.field == "command"


@pytest.mark.parametrize(
    "terms, told",
    [
        (Terms(priority=101), "priority: is 101 (give -100 to 100)"),
        (Terms(priority=-101), "priority: is -101"),
        (Terms(max_attempts=0), "attempts: is 0 (give 1 to 100)"),
        (Terms(max_attempts=101), "attempts: is 101"),
        (Terms(depends_on=tuple(map(str, range(1001)))), "depends_on: names 1001 tasks"),
    ],
)
def test_terms_that_cannot_be(terms: Terms, told: str) -> None:
    with pytest.raises(InvalidTask) as refused:
        validate(replace(GOOD, terms=terms), POOLS)
    assert told in str(refused.value)


def test_terms_at_their_limits() -> None:
    for terms in (Terms(priority=-100, max_attempts=1), Terms(priority=100, max_attempts=100)):
        validate(replace(GOOD, terms=terms), POOLS)


def test_a_task_may_not_be_meant_for_later_than_it_may_wait() -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    limit = timedelta(seconds=POOLS["small"].max_queue_seconds)
    validate(replace(GOOD, terms=Terms(not_before=now + limit)), POOLS, now=now)
    validate(replace(GOOD, terms=Terms(not_before=now - limit)), POOLS, now=now)
    for instant, told in (
        (now + limit + timedelta(seconds=1), "further ahead than a task of pool small may wait (at most 720 h ahead)"),
        (datetime(2026, 3, 2), "has no time zone (add Z, or an offset as +01:00)"),
    ):
        with pytest.raises(InvalidTask) as refused:
            validate(replace(GOOD, terms=Terms(not_before=instant)), POOLS, now=now)
        assert "not_before: " in str(refused.value) and told in str(refused.value)
