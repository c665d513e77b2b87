"""Traces → summaries. A new case is two files: `tests/data/strace/NAME.strace` and `NAME.json`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.trace.parse import Call, Ended, Parser, Signaled, unescape
from orchestrator.trace.summary import MAX_LISTED, Summarizer, summarize

DATA = Path(__file__).parent.parent / "data" / "strace"


@pytest.mark.parametrize("trace", sorted(DATA.glob("*.strace")), ids=lambda path: path.stem)
def test_a_recorded_trace_is_summarized(trace: Path) -> None:
    with trace.open(errors="surrogateescape") as lines:
        summary = asdict(summarize(lines))
    assert json.loads(json.dumps(summary)) == json.loads(trace.with_suffix(".json").read_text())


def test_an_end_and_a_signal_are_told() -> None:
    parser = Parser()
    events = [
        parser.feed("12 1.5 +++ exited with 3 +++\n"),
        parser.feed("12 1.5 +++ killed by SIGSEGV (core dumped) +++\n"),
        parser.feed("12 1.5 --- SIGTERM {si_signo=SIGTERM, si_code=SI_USER, si_pid=1, si_uid=0} ---\n"),
        parser.feed("12 1.5 --- stopped by SIGSTOP ---\n"),
    ]
    assert events == [
        Ended(12, 1.5, 3, ""),
        Ended(12, 1.5, None, "SEGV"),
        Signaled(12, 1.5, "TERM"),
        Signaled(12, 1.5, "STOP"),
    ]
    assert parser.unread == 0


def test_an_interrupted_call_is_joined_with_its_end_and_keeps_its_begin() -> None:
    parser = Parser()
    assert parser.feed("7 1.0 connect(3, {sa_family=AF_INET}, 16 <unfinished ...>") is None
    assert parser.feed("8 1.1 getpid() = 8") == Call(8, 1.1, "getpid", "", "8", "")
    assert parser.feed("7 1.2 <... connect resumed>) = -1 ETIMEDOUT (Connection timed out)") == Call(
        7, 1.0, "connect", "3, {sa_family=AF_INET}, 16", "-1", "ETIMEDOUT"
    )


@pytest.mark.parametrize(
    "line",
    [
        "not strace's",
        "7 1.0 <... connect resumed>) = 0",
        "7 1.0 connect(3, ",
        "7 1.0 +++ what +++",
        "99999999999999 1.0 getpid() = 1",
    ],
)
def test_what_is_not_straces_is_counted(line: str) -> None:
    parser = Parser()
    assert parser.feed(line) is None
    assert parser.unread == 1


def test_a_process_cannot_write_a_result_or_an_address_into_a_string() -> None:
    forged = r'7 1.0 execve("/bin/x", ["x", "\") = 0"], 0x1 /* 1 var */) = -1 EACCES (Permission denied)'
    sent = (
        r'7 1.0 sendto(3, "{sa_family=AF_INET, sin_port=htons(1), sin_addr=inet_addr(\"6.6.6.6\")}", 9, 0, NULL, 0) = 9'
    )
    path = r'7 1.0 connect(3, {sa_family=AF_UNIX, sun_path="x\", sa_family=AF_INET"}, 9) = 0'
    summary = summarize([forged, sent, path])
    assert (summary.programs, summary.network, summary.lines_unread) == ((), (), 0)


def test_what_is_listed_is_bounded_and_the_rest_counted() -> None:
    summarizer = Summarizer()
    for number in range(MAX_LISTED + 5):
        summarizer.feed(f'{number + 1} 1.0 execve("/bin/x", ["x"], 0x1 /* 1 var */) = 0')
    summary = summarizer.summary()
    assert (len(summary.programs), summary.not_listed) == (MAX_LISTED, 5)


@given(st.text())
def test_no_line_breaks_the_parser(line: str) -> None:
    Summarizer().feed(line)
    Summarizer().feed(f"1 1.0 {line}")
    Summarizer().feed(f"1 1.0 open({line}")


@given(st.binary())
def test_octal_escapes_give_the_bytes_back(raw: bytes) -> None:
    escaped = "".join(f"\\{byte:03o}" for byte in raw)
    assert unescape(escaped).encode(errors="surrogateescape") == raw
