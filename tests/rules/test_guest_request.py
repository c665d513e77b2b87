"""The texts that are sent to a guest: nothing that a submitter chose is ever shell."""

from __future__ import annotations

import marshal
import math
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from orchestrator.decide.validation import LONGEST_COMMAND
from orchestrator.domain.pool import SEALED
from orchestrator.domain.seal import Network, Seal
from orchestrator.guest import DEFAULT_ENVIRONMENT, Arming, Launch, LaunchFailed, wire
from orchestrator.guest.launch import RUN_DIRECTORY, arm_request, arming_programs, start_message
from orchestrator.guest.wire import python, request, script

SCRIPTS = Path(wire.__file__).parent / "scripts"
WORDS = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=20)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
SHOW = """
import os, sys
variables = (name + b"=" + value for name, value in os.environb.items())
os.write(1, b"".join(word + b"\\0" for word in [*map(os.fsencode, sys.argv[1:]), b"--", *variables]))
"""


def plain(argv: tuple[str, ...], **changes: object) -> Launch:
    limits: dict[str, object] = {"timeout_seconds": 1.0, "memory_bytes": 1, "processes": 1, "trace": ()}
    return Launch(argv=argv, **{**limits, **changes})  # type: ignore[arg-type]


def launched(folder: Path, wanted: Launch, shell: str = "sh") -> str:
    """The stdout of the unit's own command, armed and told to start, run here as whoever runs this."""
    for name in ("stdout", "stderr", "ready", "go"):
        (folder / name).unlink(missing_ok=True)
    (folder / "go").write_text("\n")
    (folder / "launch").write_bytes(start_message(wanted).partition(b"\n")[2].split(b"\0", 6)[6])
    text = arm_request(Arming.of(wanted)).partition("\nexport RECORD=")[0] + '\nprintf %s "$LAUNCHER"'
    launcher = subprocess.run(["sh", "-c", text], capture_output=True, check=True).stdout.decode()
    launcher = launcher.replace(RUN_DIRECTORY, str(folder)).replace("/bin/sh", str(shutil.which(shell)))
    subprocess.run(["sh", "-c", launcher], check=True, cwd="/")
    return (folder / "stdout").read_bytes().decode()


@pytest.mark.parametrize("shell", ["dash", "bash"])
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arguments=st.lists(WORDS, max_size=4), environment=st.dictionaries(NAMES, WORDS, max_size=3))
@example(arguments=[], environment={"OPTIND": "x", "_": "y", "PPID": "z", "IFS": "s"})
@example(arguments=[], environment={"PS4": "$(touch /oh)", "ENV": "/oh", "LC_ALL": "none", "CDPATH": ""})
def test_words_and_variables_reach_the_process_as_they_are(
    tmp_path: Path, shell: str, arguments: list[str], environment: dict[str, str]
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    show = ("python3", "-ISc", SHOW, *arguments)
    shown = launched(tmp_path, plain(show, environment=environment), shell).split("\0")
    end = shown.index("--", len(arguments))
    assert shown[:end] == arguments
    assert dict(line.split("=", 1) for line in shown[end + 1 : -1]) == {**DEFAULT_ENVIRONMENT, **environment}


@pytest.mark.parametrize("name", ["a=b", "-a", "-a=b"])
def test_a_program_whose_name_looks_like_something_else_is_run(tmp_path: Path, name: str) -> None:
    program = tmp_path / name
    program.write_text("#!/bin/sh\necho ran $1\n")
    program.chmod(0o755)
    wanted = plain((name, "x"), environment={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert launched(tmp_path, wanted) == "ran x\n"


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
        {"open_files": 0},
        {"open_files": (1 << 20) + 1},
        {"output_bytes": 0},
        {"scratch_bytes": -1},
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
        start_message(plain(("x" * 120_000,)))
    first = arm_request(Arming.of(plain(("x",)))).split("\n")[0]
    assert shlex.split(first)[:3] == ["set", "--", "mayfly-arm"]


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_the_process_may_open_as_many_files_as_the_launch_says(tmp_path: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    told = launched(tmp_path, plain(("sh", "-c", "ulimit -Sn; ulimit -Hn"), open_files=77), shell)
    assert told == "77\n77\n"


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"memory_bytes": 2, "processes": 2, "open_files": 9, "timeout_seconds": 2.0, "environment": {"A": ""}}, True),
        ({"trace": ("strace",)}, False),
        ({"kill_grace_seconds": 1.0}, False),
        ({"seal": replace(SEALED, version=2)}, False),
        ({"output_bytes": 1 << 20}, False),
        ({"scratch_bytes": 1 << 20}, False),
    ],
)
def test_a_launch_fits_what_was_armed_for_the_same_seal_room_and_tracer(changes: dict[str, object], fits: bool) -> None:
    assert Arming.of(plain(("x",))).fits(plain(("x",), **changes)) is fits


@pytest.mark.parametrize(
    ("seal", "loopback", "there", "missing"),
    [
        (SEALED, "up", ["PrivateNetwork=yes", "ProtectProc=invisible", "SystemCallErrorNumber=EPERM"], ["NoExecPaths"]),
        (
            replace(SEALED, network=Network.NONE, tmp_executable=False),
            "down",
            ["PrivateNetwork=yes", "NoExecPaths=/task/out /task/tmp /tmp /var/tmp /dev/shm"],
            [],
        ),
        (
            replace(SEALED, network=Network.OPEN, others_hidden=False, denied_calls=()),
            "open",
            ["RestrictNamespaces=yes"],
            ["PrivateNetwork", "ProtectProc", "SystemCallFilter", "SystemCallErrorNumber"],
        ),
        (replace(SEALED, denied_calls=("@mount", "bpf")), "up", ["SystemCallFilter=~@mount bpf"], []),
    ],
)
def test_a_profile_is_what_the_unit_is_told(seal: Seal, loopback: str, there: list[str], missing: list[str]) -> None:
    script_text = arm_request(Arming.of(plain(("x",), seal=seal, output_bytes=5, scratch_bytes=6)))
    show = script_text.rpartition("\nexec python3")[0] + '\nprintf "%s\\n%s" "$ROOM" "$PROPERTIES"'
    told = subprocess.run(["sh", "-c", show], capture_output=True, text=True, check=True).stdout.splitlines()
    assert told[0] == f"5 6 {loopback}"
    always = [
        "CapabilityBoundingSet=CAP_SYS_PTRACE CAP_DAC_READ_SEARCH CAP_SETUID CAP_SETGID",
        "RestrictNamespaces=yes",
    ]
    assert {*always, *there} <= set(told[1:])
    assert [line for line in told for name in missing if line.startswith(name)] == []


@pytest.mark.parametrize("word", ["x", "'", "é", "\n"])
def test_the_longest_command_that_is_valid_fits_into_a_request(word: str) -> None:
    argv = ("python3", "/task/in/script.py", word)
    while len(shlex.quote(shlex.join(argv)).encode()) < LONGEST_COMMAND:
        argv = (*argv[:-1], argv[-1] + word * 50)
    start_message(plain(argv))


@pytest.mark.parametrize("shell", ["dash", "bash"])
@pytest.mark.parametrize("name", ["look.sh", "record.sh", "stop.sh"])
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
        (["run/", "logs/mark"], "never"),
        (["run/token", "logs/mark"], "never"),
        (["run/token", "run/launched", "logs/mark"], "running"),
        (["run/token", "run/launched", "run/exit", "logs/mark"], "ended"),
        (["run/token", "run/exit", "logs/mark"], "ended"),
        (["logs/mark"], "gone"),
    ],
)
def test_a_look_tells_what_became_of_a_launch(tmp_path: Path, there: list[str], answer: str) -> None:
    for name in there:
        (tmp_path / name.rpartition("/")[0]).mkdir(exist_ok=True)
        if not name.endswith("/"):
            (tmp_path / name).write_text("mine.1\n")
    look = script("look.sh").replace("/run/mayfly-task", f"{tmp_path}/run")
    look = look.replace("/var/lib/mayfly-task", f"{tmp_path}/logs")
    for token, expected in (("mine.1", answer), ("mine.2", "other" if "run/token" in there else answer)):
        told = subprocess.run(["sh", "-c", look, "sh", "mayfly-look", token], capture_output=True, text=True)
        assert (told.stdout, told.stderr, told.returncode) == (f"{expected}\n", "", 0)


@pytest.mark.parametrize("same", [True, False])
def test_a_machine_that_restarted_since_it_was_armed_is_not_armed_again(tmp_path: Path, same: bool) -> None:
    """Whether its Python is one such as this, or has to compile what is sent."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "mark").touch()
    text = arm_request(Arming.of(plain(("true",))))
    head, _, sent = arming_programs().partition(b"\n")
    assert int(head.split()[2]) == len(sent)
    programs = []
    for name, program, _ in marshal.loads(sent):
        moved = program.replace("/run/mayfly-task", f"{tmp_path}/run").replace(
            "/var/lib/mayfly-task", f"{tmp_path}/logs"
        )
        programs.append((name, "" if same else moved, marshal.dumps(compile(moved, name, "exec")) if same else b"none"))
    whole = marshal.dumps(programs, 2)
    magic = head.split()[1] if same else b"00000000"
    sent = b"programs %s %d\n" % (magic, len(whole)) + whole
    told = subprocess.run(["sh", "-c", text], capture_output=True, check=True, input=sent)
    assert told.stdout == b"a\0\0\0\4gone"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs"]


@pytest.mark.parametrize("name", sorted({path.name for path in SCRIPTS.glob("*.py")} - {"load.py"}))
def test_a_program_is_sent_with_all_that_it_imports(name: str) -> None:
    """Loaded as over there; not started, for it is not the last one."""
    load = "import sys; print(*(each for each in sys.meta_path[-1].codes if each != 'last' and not __import__(each)))"
    text = python(name).replace(' -- "$@"', f' last "{load}" -- "$@"')
    done = subprocess.run(["sh", "-c", text], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert (done.stdout, done.stderr) == ("\n", "")
