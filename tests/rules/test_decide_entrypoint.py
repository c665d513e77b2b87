"""From code and data to a command line, as the two conventions have it."""

from __future__ import annotations

import pytest

from orchestrator.decide.entrypoint import argv_of, check_contents
from orchestrator.domain.errors import InvalidTask
from orchestrator.domain.task import Entrypoint, InputSpec, TaskSpec

DX, SANE = Entrypoint.DATA_EXCHANGE, Entrypoint.BLIND_SANE
SCRIPT, FOLDER = InputSpec("/me/alg.py", "code"), InputSpec("/me/project", "code")
PLACED = InputSpec("/me/alg.py", "code/alg.py")
TABLE, COHORT = InputSpec("/d/table.csv", "data/table.csv"), InputSpec("/d/cohort", "data")


def spec(entrypoint: Entrypoint, *inputs: InputSpec, command: tuple[str, ...] = ()) -> TaskSpec:
    return TaskSpec("small", command, entrypoint, inputs)


def sane(script: str) -> tuple[str, ...]:
    return ("python3", script, "-i", "/task/in/data", "-o", "/task/out", "-t", "/task/tmp")


@pytest.mark.parametrize(
    "task, argv",
    [
        (spec(Entrypoint.COMMAND, command=("a", "", "b c")), ("a", "", "b c")),
        (spec(DX, SCRIPT, COHORT), ("python3", "/task/in/code", "/task/in/data")),
        (spec(DX, COHORT, FOLDER), ("python3", "/task/in/code/run.py", "/task/in/data")),
        (spec(DX, PLACED, TABLE), ("python3", "/task/in/code/alg.py", "/task/in/data/table.csv")),
        (
            spec(DX, InputSpec("/me/run.py", "code/run.py"), InputSpec("/me/lib", "code/lib"), COHORT),
            ("python3", "/task/in/code/run.py", "/task/in/data"),
        ),
        (
            spec(DX, SCRIPT, TABLE, InputSpec("/d/b", "data/b")),
            ("python3", "/task/in/code", "/task/in/data"),
        ),
        (spec(SANE, SCRIPT, COHORT), sane("/task/in/code")),
        (spec(SANE, FOLDER, COHORT), sane("/task/in/code/script.py")),
        (spec(SANE, PLACED, TABLE), sane("/task/in/code/alg.py")),
    ],
)
def test_each_profile_has_its_command_line(task: TaskSpec, argv: tuple[str, ...]) -> None:
    assert argv_of(task) == argv


@pytest.mark.parametrize(
    "task, field, told",
    [
        (spec(Entrypoint.COMMAND), "command", "is empty"),
        (spec(Entrypoint.COMMAND, command=("", "x")), "command", "is empty"),
        (spec(DX, SCRIPT, COHORT, command=("x",)), "command", "data-exchange makes the command itself"),
        (spec(DX), "input", "data-exchange needs code"),
        (spec(DX, COHORT), "input", "data-exchange needs code, and none is given (add -i SRC:code)"),
        (spec(SANE, SCRIPT), "input", "blind-sane needs data, and none is given (add -i SRC:data)"),
        (
            spec(DX, InputSpec("/me/alg.py", "alg.py"), COHORT),
            "input",
            "'alg.py' is neither code nor data, and data-exchange has no other "
            "(give it as -i /me/alg.py:code or -i /me/alg.py:data)",
        ),
        (spec(DX, SCRIPT, COHORT, InputSpec("/x", "codes")), "input", "'codes' is neither"),
    ],
)
def test_parts_that_are_missing_or_too_many_are_told(task: TaskSpec, field: str, told: str) -> None:
    with pytest.raises(InvalidTask) as refused:
        argv_of(task)
    assert refused.value.field == field and told in str(refused.value) and refused.value.remedy


@pytest.mark.parametrize(
    "task, contents",
    [
        (spec(DX, SCRIPT, COHORT), {"code": [""], "data": ["x"]}),
        (spec(DX, FOLDER, COHORT), {"code": ["run.py", "lib/a.py"], "data": []}),
        (spec(SANE, FOLDER, COHORT), {"code": ["script.py"], "data": []}),
        (spec(DX, PLACED, TABLE), {"code/alg.py": [""], "data/table.csv": [""]}),
        (
            spec(DX, InputSpec("/a/run.py", "code/run.py"), InputSpec("/a/lib", "code/lib"), COHORT),
            {"code/run.py": [""], "code/lib": ["x.py"], "data": []},
        ),
        (spec(Entrypoint.COMMAND, command=("x",)), {}),
    ],
)
def test_code_that_is_where_it_should_be_is_accepted(task: TaskSpec, contents: dict[str, list[str]]) -> None:
    check_contents(task, contents)


@pytest.mark.parametrize(
    "task, contents, told",
    [
        (
            spec(DX, FOLDER, COHORT),
            {"code": ["main.py", "x"], "data": ["run.py"]},
            "code/run.py; there is code/main.py",
        ),
        (spec(SANE, FOLDER, COHORT), {"code": ["run.py"], "data": []}, "code/script.py; there is code/run.py"),
        (spec(DX, FOLDER, COHORT), {"code": [], "data": []}, "the code has no code/run.py (give one .py file"),
        (spec(DX, InputSpec("/a.sh", "code"), COHORT), {"code": [""], "data": []}, "has no code/run.py"),
        (spec(DX, InputSpec("/dir.py", "code"), COHORT), {"code": ["run.py"], "data": []}, "has no code; there is"),
    ],
)
def test_code_that_is_not_there_is_told_before_any_machine_starts(
    task: TaskSpec, contents: dict[str, list[str]], told: str
) -> None:
    with pytest.raises(InvalidTask) as refused:
        check_contents(task, contents)
    assert refused.value.field == "input" and told in str(refused.value) and refused.value.remedy
