"""Traces → findings. A new case is two files: `tests/data/strace/NAME.strace` and `NAME.json`, which holds what was
`known` before and what is `expected`; `record.py` there makes those of real runs."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from orchestrator.trace import findings as findings_module
from orchestrator.trace import parse
from orchestrator.trace.arguments import split, unescape
from orchestrator.trace.findings import Finder, Findings
from orchestrator.trace.known import HIDDEN, Known
from orchestrator.trace.listing import MAX_LISTED
from orchestrator.trace.parse import MAX_TEXT, Call, Ended, Parser, Signaled
from orchestrator.trace.timeline import MAX_BUCKETS
from orchestrator.trace.views import researcher, steward

ROOT = Path(__file__).resolve().parents[2]
TRACES = sorted((ROOT / "tests" / "data" / "strace").glob("*.strace"))
SCHEMA = Draft202012Validator(json.loads((ROOT / "docs" / "reference" / "findings.schema.json").read_text()))
TASK = {
    "id": "t",
    "attempt": 1,
    "command": [],
    "trace_profile": "audit",
    "inputs": [],
    "outputs": [],
    "layer": None,
    "outcome": None,
}


def found(trace: bytes, known: Known | None = None) -> Findings:
    finder = Finder(known)
    finder.feed(trace)
    return finder.findings()


def whole(findings: Findings) -> Findings:
    """With what reports add."""
    return {**findings, "task": TASK, "tracer": None, "trace": {**findings["trace"], "cut": False}}


def told(findings: Findings) -> dict[str, Any]:
    """In short, as the data files have it. Which files of the system are read hangs on the machine of the recording."""

    def names(listing: dict[str, Any]) -> list[str]:
        return [each["path"] for each in listing["listed"]]

    return {
        "trace": {key: findings["trace"][key] for key in ("lines", "lines_unread")},
        "programs": [
            {key: each[key] for key in ("path", "argv", "parent", "end", "code", "signal")}
            for each in findings["programs"]["listed"]
        ],
        "processes": findings["programs"]["processes"],
        "files": {
            f"{file_class} {deed}": names(listing)
            for file_class, deeds in findings["files"].items()
            for deed, listing in deeds.items()
            if listing["listed"] and (file_class, deed) != ("system", "read")
        },
        "renamed": [[each["from"], each["to"]] for each in findings["renamed"]["listed"]],
        "never_read": names(findings["inputs"]["never_read"]),
        "network": [
            [each[key] for key in ("call", "kind", "address", "port", "outcome", "times")]
            for each in findings["network"]["listed"]
        ],
        "denied": [[each["call"], each["path"], each["error"]] for each in findings["denied"]["files"]["listed"]],
        "signals": {f"{each['signal']} from {each['sender']}": each["times"] for each in findings["signals"]["listed"]},
        "watched": {each["call"]: [each["times"], each["failed"]] for each in findings["watched"]},
        "calls": [findings["calls"]["total"], findings["calls"]["failed"]],
    }


def known_of(case: dict[str, Any]) -> Known:
    known = case["known"]
    return Known(
        command=tuple(known.get("command", ())),
        inputs=known.get("inputs", {}),
        code=frozenset(known.get("code", ())),
        outputs=tuple(known.get("outputs", ())),
    )


@pytest.mark.parametrize("trace", TRACES, ids=lambda path: path.stem)
def test_a_trace_means_what_was_done(trace: Path) -> None:
    case = json.loads(trace.with_suffix(".json").read_text())
    findings = found(trace.read_bytes(), known_of(case))
    assert told(findings) == case["expected"]
    for view in (lambda each: each, steward, researcher):
        SCHEMA.validate(view(whole(findings)))


def test_what_is_recorded_of_every_call_tells_the_same_of_what_was_done() -> None:
    audit, full = (
        json.loads((ROOT / "tests" / "data" / "strace" / f"analysis-{profile}.json").read_text())["expected"]
        for profile in ("audit", "full")
    )
    for each in (audit, full):
        for key in ("trace", "calls"):
            del each[key]
    plain = json.dumps(audit["files"]), json.dumps(full["files"])
    assert len(plain[0]) == len(plain[1])  # only the random name of a scratch file differs
    assert {key: value for key, value in audit.items() if key not in ("files", "renamed")} == {
        key: value for key, value in full.items() if key not in ("files", "renamed")
    }


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_where_a_trace_is_cut_into_pieces_does_not_matter(data: st.DataObject) -> None:
    text = b"".join(path.read_bytes() for path in TRACES if path.stat().st_size < 32000)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=40)))
    finder = Finder()
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        finder.feed(text[begin:end])
    assert finder.findings() == found(text)


def test_one_byte_at_a_time_is_as_good() -> None:
    text = (ROOT / "tests" / "data" / "strace" / "hostile.strace").read_bytes()
    finder = Finder()
    for at in range(len(text)):
        finder.feed(text[at : at + 1])
    assert finder.findings() == found(text)


LINES = [line for path in TRACES for line in path.read_bytes().split(b"\n") if len(line) < 600]
PIECES = (
    b'"', b"\\", b"<", b">", b"(", b")", b") = 0", b" = -1 EPERM (Operation not permitted)", b" <unfinished ...>",
    b", ", b"<... openat resumed>", b"+++ ", b"--- ", b"{", b"[", b"AT_FDCWD", b"/task/in", b"..", b"\0", b"\xff",
    b"7 1.5 ",
)  # fmt: skip


@given(st.lists(st.sampled_from(LINES), min_size=1, max_size=8), st.data())
@settings(max_examples=100, deadline=None)
def test_whatever_comes_is_read_to_its_end(lines: list[bytes], data: st.DataObject) -> None:
    text = bytearray(b"\n".join(lines) + b"\n")
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(text)))
        text[at : at + data.draw(st.integers(0, 9))] = data.draw(st.sampled_from(PIECES) | st.binary(max_size=9))
    findings = found(bytes(text))
    assert findings["trace"]["lines"] == text.count(b"\n")
    SCHEMA.validate(whole(findings))
    SCHEMA.validate(researcher(whole(findings)))
    json.dumps(findings, allow_nan=False)


@given(st.binary())
def test_no_bytes_break_the_parser(raw: bytes) -> None:
    for text in (raw, b"1 1.0 " + raw + b"\n", b"1 1.0 openat(" + raw + b") = 3\n", b"1 1.0 +++ " + raw + b" +++\n"):
        found(text)


# -- single lines


def events(*lines: bytes) -> list[tuple[bytes, bytes, object]]:
    parser = Parser()
    told = list(parser.feed(b"\n".join(lines) + b"\n"))
    assert parser.unread == 0
    return told


def test_an_end_and_a_signal_are_told() -> None:
    assert events(
        b"12 1.5 +++ exited with 3 +++",
        b"12 1.5 +++ killed by SIGSEGV (core dumped) +++",
        b"12 1.5 --- SIGTERM {si_signo=SIGTERM, si_code=SI_USER, si_pid=1, si_uid=0} ---",
        b"12 1.5 --- stopped by SIGSTOP ---",
    ) == [
        (b"12", b"1.5", Ended(3, "")),
        (b"12", b"1.5", Ended(None, "SEGV")),
        (b"12", b"1.5", Signaled("TERM", "SI_USER")),
        (b"12", b"1.5", Signaled("STOP", "")),
    ]


def test_an_interrupted_call_is_joined_with_its_end_and_keeps_its_begin() -> None:
    told = events(
        b"7 1.0 connect(3, {sa_family=AF_INET}, 16 <unfinished ...>",
        b"8 1.1 getpid() = 8",
        b"7 1.2 <... connect resumed>) = -1 ETIMEDOUT (Connection timed out)",
    )
    assert [(pid, at) for pid, at, _ in told] == [(b"8", b"1.1"), (b"7", b"1.0")]
    call = told[1][2]
    assert isinstance(call, Call)
    assert (call.name, call.arguments, call.result, call.error) == (
        "connect", b"3, {sa_family=AF_INET}, 16", "-1", "ETIMEDOUT",
    )  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        b"not strace's",
        b"7 1.0 <... connect resumed>) = 0",
        b"7 1.0 connect(3, ",
        b"7 1.0 +++ what +++",
        b"99999999999999 1.0 getpid() = 1",
        b"7 1.0 write(1, " + b"x" * MAX_TEXT + b") = 1",
    ],
)
def test_what_is_not_straces_is_counted(line: bytes) -> None:
    parser = Parser()
    assert list(parser.feed(line + b"\n")) == []
    assert (parser.lines, parser.unread) == (1, 1)


def test_arguments_are_parted_where_strace_parts_them() -> None:
    assert split(rb'AT_FDCWD</a, "b>, "c, \", d", O_RDONLY|O_CLOEXEC, [1, {2, 3}], 0x1 /* 4, vars */, 1<<3') == [
        rb'AT_FDCWD</a, "b>', rb'"c, \", d"', b"O_RDONLY|O_CLOEXEC", b"[1, {2, 3}]", b"0x1 /* 4, vars */", b"1<<3",
    ]  # fmt: skip


@given(st.binary())
def test_octal_escapes_give_the_bytes_back(raw: bytes) -> None:
    assert unescape(b"".join(b"\\%03o" % byte for byte in raw)) == raw


# -- bounds


def test_what_is_listed_is_bounded_and_the_rest_counted() -> None:
    lines = [b'%d 1.0 execve("/bin/x%d", ["x"], 0x1 /* 1 var */) = 0\n' % (n + 1, n) for n in range(MAX_LISTED + 5)]
    lines += [b'1 1.0 openat(AT_FDCWD, "/etc/%d", O_RDONLY) = 3\n' % n for n in range(MAX_LISTED + 7)]
    findings = found(b"".join(lines))
    for listing, over in (
        (findings["programs"], 5),
        (findings["programs"]["names"], 5),
        (findings["files"]["system"]["read"], 7),
    ):
        assert (len(listing["listed"]), listing["not_listed"]) == (MAX_LISTED, over)
    assert findings["calls"]["total"] == 2 * MAX_LISTED + 12


ADDRESS = b'{sa_family=AF_INET, sin_port=htons(%d), sin_addr=inet_addr("10.1.%d.1")}, 16'


def endless() -> dict[str, Iterator[bytes]]:
    """Traces without an end, each of which makes something else grow."""
    name = "n" * 1500
    return {
        "processes": (f"{n} {n}.5 clone(flags=SIGCHLD) = {n + 1}\n".encode() for n in count(1)),
        "children of nobody": (f'{n} {n}.5 chdir("/{n}{name}") = 0\n'.encode() for n in count(1)),
        "forks": (f"{n} {n}.5 clone(flags=SIGCHLD, {name} <unfinished ...>\n".encode() for n in count(1)),
        "files": (f'1 1.5 openat(AT_FDCWD, "{n}{name}", O_RDWR|O_CREAT) = {n}\n'.encode() for n in count(1)),
        "folders": (f'{n % 900} 1.5 openat(AT_FDCWD, "/{n}{name}", O_PATH) = {n}\n'.encode() for n in count(1)),
        "calls": (f"1 1.5 c{n}_{'x' * 50}() = -1 EPERM (no)\n".encode() for n in count(1)),
        "texts": (f"1 1.5 read({n}, {'x' * 250}) = 1\n".encode() for n in count(1)),
        "words": (f'1 1.5 execve("/bin/{n}", ["{name}", "{name}"], 0x1) = 0\n'.encode() for n in count(1)),
        "addresses": (b"1 1.5 connect(3, " + ADDRESS % (n % 65536, n % 250) + b") = 0\n" for n in count(1)),
        "signals": (
            f"1 1.5 --- SIG{n} {{si_signo=SIG{n}, si_code=SI_USER, si_pid=1}} ---\n".encode() for n in count(1)
        ),
        "time": (f"1 {n * n}.5 unlink({n}) = 0\n".encode() for n in count(1)),
        "a line": (b"x" * 4096 for _ in count()),
    }


@pytest.mark.parametrize("what", endless())
def test_memory_is_bounded_whatever_grows(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of so many lines, and of twice as many, is the same but for a little. What is only remembered to be
    quick has its own bound, which is put lower here, to be reached."""
    monkeypatch.setattr(parse, "KEPT_TEXTS", 200)
    monkeypatch.setattr(findings_module, "KEPT_USES", 200)
    finder, lines = Finder(), endless()[what]
    sizes = []
    tracemalloc.start()
    try:
        for _ in range(2):
            for _ in range(12):
                finder.feed(b"".join(islice(lines, 100)))
            sizes.append(tracemalloc.get_traced_memory()[0])
        told = json.dumps(finder.findings())
    finally:
        tracemalloc.stop()
    assert sizes[1] < 1.25 * sizes[0] + 2**20, what
    assert sizes[1] < 64 * 2**20
    assert len(told) < 8 * 2**20


EVIL = {
    "results": b"1 1.0 read(" + b") = 0 (" * 9000,
    "paths": b"1 1.0 read(" + b") = 0<a" * 9000,
    "errors": b"1 1.0 read(" + b") = -1 E (" * 6000,
    "unfinished": b"1 1.0 read(" + b" <unfinished ...>" * 3500,
    "strings": b"1 1.0 connect(3, " + b'"\\' * 30000 + b") = 0",
    "comments": b"1 1.0 execve(" + b"/* " * 20000 + b") = 0",
    "lists": b"1 1.0 execve(" + b"[" * 60000 + b") = 0",
    "names": b"1 1.0 connect(" + b"3<a" * 20000 + b") = 0",
    "addresses": b"1 1.0 connect(" + b"sa_family=AF_INET, " * 3000 + b") = 0",
    "changed": b"1 1.0 execve(" + b" <pid changed to 1" * 3500 + b" ...>",
    "signal": b"1 1.0 --- SIGX {si_signo=X, si_code=X" + b", si_pid=1} --- " * 4000,
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", EVIL)
def test_no_line_takes_longer_than_its_length_warrants(what: str) -> None:
    """What grows with the square of its length takes minutes."""
    finder = Finder()
    for number in range(10):
        finder.feed(EVIL[what].replace(b"1 1.0", b"1 1.%d" % number) + b"\n")
    assert finder.findings()["trace"]["lines"] == 10


def test_the_timeline_has_few_buckets_however_long_it_takes() -> None:
    lines = [b'1 %d.5 unlink("x") = 0\n' % (second * 977) for second in range(1000)]
    timeline = found(b"".join(lines))["timeline"]
    assert len(timeline["buckets"]) <= MAX_BUCKETS
    assert sum(bucket["lines"] for bucket in timeline["buckets"]) == 1000
    assert timeline["bucket_seconds"] * len(timeline["buckets"]) >= 999 * 977


# -- the researcher's view

SECRET = "Wanda"
LEAKS = (
    '1 1.0 execve("/usr/bin/python3", ["python3", "run.py", "Wanda"], 0x1 /* 1 var */) = 0',
    '1 1.0 execve("/task/tmp/Wanda", ["Wanda", "/task/in/data/Wanda.csv", "/usr/Wanda", "--x=Wanda"], 0x1) = 0',
    '1 1.0 execve("/usr/bin/Wanda", ["Wanda"], 0x1) = -1 EACCES (Permission denied)',
    *(
        f'1 1.0 openat(AT_FDCWD, "{path}/Wanda", {flags}) = {result}'
        for path in ("/task/in", "/task/in/data", "/task/in/code", "/task/out", "/task/tmp", "/tmp", "/dev/shm",
                     "/proc", "/run", "/var/lib", "/Wanda", "/usr/lib", "", "relative", "/task/layer")
        for flags in ("O_RDONLY", "O_RDWR|O_CREAT", "O_WRONLY")
        for result in ("3", "-1 EACCES (Permission denied)")
        if not (path in ("/usr/lib", "/task/layer") and result == "3")
    ),
    '1 1.0 rename("/task/tmp/Wanda", "/task/out/Wanda") = 0',
    '1 1.0 unlink("/task/out/Wanda") = 0',
    '1 1.0 chmod("/task/out/Wanda", 0700) = 0',
    '1 1.0 symlink("Wanda", "/task/out/Wanda") = 0',
    '1 1.0 connect(3, {sa_family=AF_INET, sin_port=htons(4711), sin_addr=inet_addr("87.97.110.100")}, 16) = 0',
)  # fmt: skip


def test_the_researcher_sees_no_name_that_came_up_in_the_run() -> None:
    known = Known(
        command=("python3", "run.py"), inputs={"data": ("Wanda.csv", "deep/Wanda.csv"), "code": ("run.py",)},
        code=frozenset({"code"}), outputs=("total.csv", "*Wanda*"),
    )  # fmt: skip
    findings = whole(found("\n".join((*LEAKS, "")).encode(), known))
    assert findings["trace"]["lines_unread"] == 0
    assert SECRET in json.dumps(steward(findings))
    assert "shown" not in json.dumps(steward(findings))
    seen = json.dumps(researcher(findings))
    assert SECRET not in seen
    assert "87.97" not in seen
    assert "4711" not in seen


def test_the_researcher_sees_what_was_known_before() -> None:
    case = json.loads((ROOT / "tests" / "data" / "strace" / "analysis-audit.json").read_text())
    trace = (ROOT / "tests" / "data" / "strace" / "analysis-audit.strace").read_bytes()
    seen = researcher(whole(found(trace, known_of(case))))
    [first, shell, *_] = seen["programs"]["listed"]
    assert first["argv"] == ["python3", "-IS", "/task/in/code/run.py", "/task/in/data"]
    assert (shell["path"], shell["argv"]) == ("/bin/sh", ["/bin/sh", HIDDEN, HIDDEN])
    assert [each["path"] for each in seen["files"]["input"]["read"]["listed"]] == [
        "/task/in/data/(file 1)", "/task/in/data/(file 2)",
    ]  # fmt: skip
    assert {(each["path"], each["times"]) for each in seen["files"]["output"]["written"]["listed"]} == {
        ("/task/out/total.csv", 1),
        ("/task/out/…", 2),
    }
    assert {(each["kind"], each["port"], each["outcome"]) for each in seen["network"]["listed"]} == {
        ("internet", 53, "ENETUNREACH"),
        ("private", None, "EADDRNOTAVAIL"),
    }
    assert seen["inputs"]["never_read"]["listed"] == [{"path": "/task/in/data/(file 3)"}]
