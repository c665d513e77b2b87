"""From what was submitted to the command line that runs, one entry-point profile at a time.

command        the words that were given.
data-exchange  `python3 SCRIPT DATA`: the convention of SURF's Data Exchange (sara-nl/data-exchange), whose code is a
               `.py` file, or a folder with `run.py`, and whose data path is `sys.argv[1]`.
blind-sane     `python3 SCRIPT -i INPUT -o OUTPUT -t TMP`: the convention of SURF's Blind SANE, three folders; the
               code is a `.py` file, or a folder with `script.py`.
layer          Mayfly's own: installs packages for other tasks, see `orchestrator.decide.layers`.

In the two conventions, inputs tell their part by the first name of their dest:

    code, code/…   the program
    data, data/…   the data

One program alone is run as it is, under its own dest (`code`, or `code/analysis.py`); several inputs make up the folder
/task/in/code. One data input alone is passed as it is to data-exchange; several make up the folder /task/in/data, which
is what blind-sane always gets. No other dest is allowed, for nothing would look there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import assert_never

from orchestrator.domain.errors import InvalidTask
from orchestrator.domain.task import Entrypoint, InputSpec, TaskSpec

TASK_IN = "/task/in"
TASK_OUT = "/task/out"
TASK_TMP = "/task/tmp"
PYTHON = "python3"
_MAIN = {Entrypoint.DATA_EXCHANGE: "run.py", Entrypoint.BLIND_SANE: "script.py"}
_PARTS = ("code", "data")


def argv_of(spec: TaskSpec) -> tuple[str, ...]:
    """The command line. Raises InvalidTask when the profile's parts are not there, or a command is and may not be.

    >>> from orchestrator.domain.task import InputSpec
    >>> inputs = (InputSpec("/home/me/analysis.py", "code"), InputSpec("/data/cohort", "data"))
    >>> argv_of(TaskSpec("small", (), Entrypoint.DATA_EXCHANGE, inputs))
    ('python3', '/task/in/code', '/task/in/data')
    """
    match spec.entrypoint:
        case Entrypoint.COMMAND:
            if not spec.command or not spec.command[0]:
                raise InvalidTask("command", "is empty", "give the command after --, as in: mayfly run -- python3 -V")
            return spec.command
        case Entrypoint.DATA_EXCHANGE:
            code, data = _parts(spec)
            return PYTHON, _script(spec.entrypoint, code), _own_path(data, "data")
        case Entrypoint.BLIND_SANE:
            code, data = _parts(spec)
            script = _script(spec.entrypoint, code)
            return PYTHON, script, "-i", f"{TASK_IN}/data", "-o", TASK_OUT, "-t", TASK_TMP
        case Entrypoint.LAYER:
            return PYTHON, f"{TASK_IN}/build.py"
        case _:
            assert_never(spec.entrypoint)


def check_contents(spec: TaskSpec, contents: Mapping[str, Collection[str]]) -> None:
    """Raise InvalidTask unless the program is where `argv_of` says.

    contents: the files of each input by its dest, as paths inside the input; a file that was given by itself is "".
    """
    if spec.entrypoint in (Entrypoint.COMMAND, Entrypoint.LAYER):
        return
    script = _script(spec.entrypoint, _parts(spec)[0])
    files = {
        f"{TASK_IN}/{dest}/{path}" if path else f"{TASK_IN}/{dest}"
        for dest, paths in contents.items()
        for path in paths
    }
    if script in files:
        return
    main = _MAIN[spec.entrypoint]
    programs = sorted(file.removeprefix(f"{TASK_IN}/") for file in files if file.endswith(".py") and "/code" in file)
    found = f"; there is {', '.join(programs[:3])}" if programs else ""
    raise InvalidTask(
        "input",
        f"the code has no {script.removeprefix(f'{TASK_IN}/')}{found}",
        f"give one .py file, or a folder with {main}, as -i SRC:code",
    )


def _parts(spec: TaskSpec) -> tuple[tuple[InputSpec, ...], tuple[InputSpec, ...]]:
    """The inputs that are code, and those that are data."""
    profile = spec.entrypoint.value
    if spec.command:
        raise InvalidTask("command", f"{profile} makes the command itself", "leave out what follows --")
    for given in spec.inputs:
        if _part(given) not in _PARTS:
            raise InvalidTask(
                "input",
                f"{given.dest!r} is neither code nor data, and {profile} has no other",
                f"give it as -i {given.source}:code or -i {given.source}:data",
            )
    code, data = (tuple(given for given in spec.inputs if _part(given) == part) for part in _PARTS)
    for part, inputs in zip(_PARTS, (code, data), strict=True):
        if not inputs:
            raise InvalidTask("input", f"{profile} needs {part}, and none is given", f"add -i SRC:{part}")
    return code, data


def _part(given: InputSpec) -> str:
    return given.dest.split("/")[0]


def _own_path(inputs: tuple[InputSpec, ...], part: str) -> str:
    return f"{TASK_IN}/{inputs[0].dest if len(inputs) == 1 else part}"


def _script(entrypoint: Entrypoint, code: tuple[InputSpec, ...]) -> str:
    path = _own_path(code, "code")
    is_program = len(code) == 1 and (code[0].source.endswith(".py") or code[0].dest.endswith(".py"))
    return path if is_program else f"{path}/{_MAIN[entrypoint]}"
