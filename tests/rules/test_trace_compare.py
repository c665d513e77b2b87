"""Whether a run behaved as the approved one: what matters, and what only varies with the data."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.trace.compare import differences
from orchestrator.trace.findings import Finder, Findings
from orchestrator.trace.known import Known

APPROVED = (
    'execve("/usr/bin/python3", ["python3", "/task/in/code/run.py"], 0x1 /* 1 var */) = 0',
    'openat(AT_FDCWD, "/usr/lib/python3.11/os.py", O_RDONLY) = 3',
    'openat(AT_FDCWD, "/task/in/code/run.py", O_RDONLY) = 3',
    'openat(AT_FDCWD, "/task/in/data/a.csv", O_RDONLY) = 3',
    'openat(AT_FDCWD, "/task/tmp/x1", O_WRONLY|O_CREAT, 0600) = 3',
    'unlink("/task/tmp/x1") = 0',
    'openat(AT_FDCWD, "total.csv", O_WRONLY|O_CREAT, 0600) = 3',
    'connect(3, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("10.0.2.3")}, 16) = -1 ENETUNREACH (No net)',
    'openat(AT_FDCWD, "/etc/shadow", O_RDONLY) = -1 EACCES (Permission denied)',
)
DATA = ("a.csv", "b.csv")


def run(*calls: str, end: str = "+++ exited with 0 +++", data: tuple[str, ...] = DATA, **others: Any) -> Findings:
    known = Known(command=("python3", "/task/in/code/run.py"), inputs={"code": ("run.py",), "data": data},
                  code=frozenset({"code"}), outputs=("*.csv",))  # fmt: skip
    finder = Finder(known)
    finder.feed("".join(f"7 1.{number:06} {call}\n" for number, call in enumerate((*calls, end))).encode())
    inputs = [
        {"dest": "code", "blob": "c" * 64, "code": True, "files": 1},
        {"dest": "data", "blob": others.pop("blob", "d" * 64), "code": False, "files": len(data)},
    ]
    task = {
        "id": "t",
        "attempt": 1,
        "command": list(known.command),
        "trace_profile": "audit",
        "inputs": inputs,
        "outputs": ["*.csv"],
        "layer": None,
        "outcome": {"kind": "Exited", "code": 0},
    }
    findings = finder.findings()
    cut = others.pop("cut", False)
    tracer = others.pop("tracer", None)
    return {**findings, "task": {**task, **others}, "tracer": tracer, "trace": {**findings["trace"], "cut": cut}}


def matters(approved: Findings, other: Findings) -> list[str]:
    return [each.what for each in differences(approved, other) if each.matters]


def test_a_run_behaves_as_itself() -> None:
    assert differences(run(*APPROVED), run(*APPROVED)) == ()


def test_other_data_of_another_size_and_names_is_no_difference_that_matters() -> None:
    calls = [call.replace("a.csv", "Wanda.csv").replace("x1", "x2") for call in APPROVED]
    calls += ['openat(AT_FDCWD, "/task/in/data/Kurt.csv", O_RDONLY) = 3', 'openat(AT_FDCWD, "more.csv", O_WRONLY) = 3']
    calls += ['openat(AT_FDCWD, "/usr/lib/python3.11/re.py", O_RDONLY) = 3']
    other = run(*calls, data=("Kurt.csv", "Wanda.csv", "Zoe.csv"), blob="e" * 64)
    found = differences(run(*APPROVED), other)
    assert [each.what for each in found if each.matters] == []
    assert {each.what for each in found} == {"count"}
    assert "Wanda" not in str(found)


def test_what_the_approved_run_did_and_this_one_did_not_does_not_matter() -> None:
    found = differences(run(*APPROVED), run(*APPROVED[:5]))
    assert [each for each in found if each.matters] == []
    assert {"network", "denied", "file"} <= {each.what for each in found}


SHELL = 'execve("/bin/sh", ["sh", "-c", "Wanda"], 0x1 /* 1 var */) = 0'


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (SHELL, ["program"]),
        ('execve("/task/tmp/Wanda", ["x"], 0x1 /* 1 var */) = 0', ["program"]),
        ('unlink("/task/out/Wanda.csv") = 0', ["file"]),
        ('openat(AT_FDCWD, "/dev/shm/Wanda", O_RDONLY) = 3', ["file"]),
        ('openat(AT_FDCWD, "/task/layer/numpy/__init__.py", O_RDONLY) = 3', ["file"]),
        ('openat(AT_FDCWD, "/dev/null", O_WRONLY) = 3', ["file", "file"]),
        ('rename("/task/tmp/Wanda", "/task/out/Wanda") = 0', ["rename"]),
        ('chmod("/task/out/total.csv", 0700) = 0', ["file"]),
        ('connect(3, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("10.0.2.3")}, 16) = 0', ["network"]),
        (APPROVED[7].replace("htons(53)", "htons(443)"), ["network"]),
        (APPROVED[7].replace("10.0.2.3", "9.9.9.9"), ["network"]),
        ('openat(AT_FDCWD, "/task/in/data/a.csv", O_WRONLY) = -1 EROFS (Read-only file system)', ["denied", "call"]),
        ('kill(1, SIGKILL) = -1 EPERM (Operation not permitted)', ["call"]),
        ("ptrace(PTRACE_TRACEME) = 0", ["watched"]),
        ("io_uring_setup(8, {}) = 3", ["trace", "watched"]),
        ("--- SIGSEGV {si_signo=SIGSEGV, si_code=SEGV_MAPERR, si_addr=NULL} ---", ["signal"]),
        ("not strace's", ["trace"]),
    ],
)  # fmt: skip
def test_a_new_kind_of_thing_matters(call: str, what: list[str]) -> None:
    found = differences(run(*APPROVED), run(*APPROVED, call))
    assert [each.what for each in found if each.matters] == what
    assert "Wanda" not in json.dumps([each.said for each in found])


@pytest.mark.parametrize(
    ("others", "what"),
    [
        ({"command": ["python3", "/task/in/code/run.py", "--fast"]}, "code"),
        ({"layer": "k" * 64}, "code"),
        ({"inputs": []}, "code"),
        ({"trace_profile": "full"}, "trace"),
        ({"outcome": {"kind": "Exited", "code": 1}}, "end"),
        ({"outcome": {"kind": "TimedOut", "seconds": 5}}, "end"),
        ({"cut": True}, "trace"),
        ({"tracer": {"lost": "the tracer ended before the process did"}}, "trace"),
    ],
)
def test_what_makes_two_runs_differ_before_anything_is_compared(others: dict[str, Any], what: str) -> None:
    assert matters(run(*APPROVED), run(*APPROVED, **others)) == [what]


def test_names_of_the_data_in_the_command_do_not_matter() -> None:
    one, two = (
        run(*APPROVED, command=["python3", "/task/in/code/run.py", f"/task/in/data/{name}.csv"]) for name in "ab"
    )
    assert matters(one, two) == []


def test_what_is_not_listed_cannot_be_known() -> None:
    many = [f'execve("/usr/bin/p{number}", ["p"], 0x1) = 0' for number in range(501)]
    assert "trace" in matters(run(*APPROVED, *many), run(*APPROVED, *many))
