"""The texts that are sent to a guest: nothing that a submitter chose is ever shell."""

from __future__ import annotations

import math
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.decide.validation import LONGEST_COMMAND
from orchestrator.domain.task import TraceProfile
from orchestrator.guest import DEFAULT_ENVIRONMENT, Launch, LaunchFailed
from orchestrator.guest.launch import RUN_DIRECTORY, TRACE_PATH, start_request
from orchestrator.guest.wire import request, script
from orchestrator.trace.command import traced

WORDS = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=20)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
SHOW = r"""printf '%s\0' "$@"; printf '%s\0' --; env -0 | sort -z"""


def plain(argv: tuple[str, ...], **changes: object) -> Launch:
    limits: dict[str, object] = {"timeout_seconds": 1.0, "memory_bytes": 1, "processes": 1, "trace": ()}
    return Launch(argv=argv, **{**limits, **changes})  # type: ignore[arg-type]


@settings(deadline=None, max_examples=25)
@given(arguments=st.lists(WORDS, max_size=4), environment=st.dictionaries(NAMES, WORDS, max_size=3))
def test_words_and_variables_reach_the_process_as_they_are(arguments: list[str], environment: dict[str, str]) -> None:
    """The unit's own command, as the request's shell unpacks it, run here."""
    environment.pop("_", None)
    wanted = {**DEFAULT_ENVIRONMENT, **environment, "PATH": "/usr/bin:/bin", "PWD": "/"}
    text = start_request(
        plain(("sh", "-c", SHOW, "sh", *arguments), environment={**environment, "PATH": "/usr/bin:/bin"})
    )
    unpack = text.split("\nrecord=")[0] + '\nprintf %s "$launch"'
    command = subprocess.run(["sh", "-c", unpack], capture_output=True, check=True).stdout.decode()
    marker, redirect, rest = (command.partition("\n")[0], command.split("\n")[2], command.split("\n", 3)[3])
    assert marker == f": >{RUN_DIRECTORY}/launched"
    assert redirect.startswith(f"exec >{RUN_DIRECTORY}/stdout")
    shown = subprocess.run(["sh", "-c", rest], capture_output=True, check=True, cwd="/").stdout.decode().split("\0")
    end = shown.index("--", len(arguments))
    assert shown[:end] == arguments or (not arguments and shown[:end] == [""])
    got = dict(line.split("=", 1) for line in shown[end + 1 : -1])
    assert {name: got.get(name) for name in wanted} == wanted


def test_a_program_whose_name_looks_like_a_variable_is_run(tmp_path: Path) -> None:
    program = tmp_path / "a=b"
    program.write_text("#!/bin/sh\necho ran $1\n")
    program.chmod(0o755)
    text = start_request(plain((str(program), "x")))
    unpack = text.split("\nrecord=")[0] + '\nprintf %s "$launch"'
    command = subprocess.run(["sh", "-c", unpack], capture_output=True, check=True, text=True).stdout.split("\n", 3)[3]
    assert subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout == "ran x\n"


@pytest.mark.parametrize(
    "changes",
    [
        {"argv": ()},
        {"argv": ("a\0b",)},
        {"environment": {"A": "\0"}},
        {"environment": {"A=B": ""}},
        {"environment": {"": ""}},
        {"timeout_seconds": 0.0},
        {"timeout_seconds": -1.0},
        {"timeout_seconds": math.inf},
        {"timeout_seconds": math.nan},
        {"kill_grace_seconds": 0.0},
        {"memory_bytes": 0},
        {"processes": 0},
        {"max_log_bytes": 0},
    ],
)
def test_a_launch_that_makes_no_sense_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        plain(**{"argv": ("x",), **changes})  # type: ignore[arg-type]


def test_a_request_has_one_first_line_and_a_bound() -> None:
    with pytest.raises(ValueError, match="newline"):
        request("stop", "1\nreboot", body="stop.sh")
    assert request("stop", "1; reboot", body="stop.sh").startswith("set -- mayfly-stop '1; reboot'\n")
    with pytest.raises(LaunchFailed, match="too long"):
        start_request(plain(("x" * 120_000,)))
    first = start_request(plain(("x",))).split("\n")[0]
    assert shlex.split(first)[:3] == ["set", "--", "mayfly-start"]


@pytest.mark.parametrize("word", ["x", "'", "é", "\n"])
def test_the_longest_command_that_is_valid_fits_into_a_request(word: str) -> None:
    argv = ("python3", "/task/in/script.py", word)
    while len(shlex.quote(shlex.join(argv)).encode()) < LONGEST_COMMAND:
        argv = (*argv[:-1], argv[-1] + word * 50)
    start_request(plain(argv, trace=traced(TraceProfile.AUDIT, output=TRACE_PATH)))


@pytest.mark.parametrize("shell", ["dash", "bash"])
@pytest.mark.parametrize("name", ["facts.sh", "record.sh", "start.sh", "stop.sh"])
def test_the_scripts_are_shell_for_either_shell(shell: str, name: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    checked = subprocess.run([shell, "-n", "-c", script(name)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize(
    ("there", "answer"),
    [
        ([], "never"),
        (["run/"], "never"),
        (["run/", "logs/"], "never"),
        (["run/token"], "running"),
        (["run/token", "logs/trace"], "running"),
        (["run/token", "logs/trace", "run/exit"], "ended"),
        (["logs/trace"], "gone"),
        (["run/", "logs/trace"], "gone"),
    ],
)
def test_a_look_tells_what_became_of_a_launch(tmp_path: Path, there: list[str], answer: str) -> None:
    for name in there:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if not name.endswith("/"):
            (tmp_path / name).write_text("mine.1\n")
    look = script("look.sh").replace("/run/mayfly-task", f"{tmp_path}/run")
    look = look.replace("/var/lib/mayfly-task", f"{tmp_path}/logs")
    for token, expected in (("mine.1", answer), ("mine.2", "other" if "run/token" in there else answer)):
        told = subprocess.run(["sh", "-c", look, "sh", "mayfly-look", token], capture_output=True, text=True)
        assert (told.stdout, told.stderr, told.returncode) == (f"{expected}\n", "", 0)


def test_a_start_where_one_was_before_a_restart_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "trace").touch()
    text = start_request(plain(("touch", str(tmp_path / "ran")), token="mine.1"))
    text = text.replace("/run/mayfly-task", f"{tmp_path}/run").replace("/var/lib/mayfly-task", f"{tmp_path}/logs")
    told = subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=True)
    assert told.stdout == "gone\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs"]
