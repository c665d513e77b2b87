"""What a trace says in short: which programs ran, how many files were written, what was tried of the network."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from orchestrator.trace.parse import Call, Parser, strings

_T = TypeVar("_T")

MAX_LISTED = 1000
"""Programs and network attempts that are listed; what is over it is counted."""

_ADDRESS = re.compile(
    r"sa_family=(AF_[A-Z0-9]+)"
    r"(?:, sin6?_port=htons\((\d+)\))?"
    r'(?:, sin_addr=inet_addr\("([^"]*)"\))?'
    r'(?:, sin6_flowinfo=htonl\(\d+\), inet_pton\(AF_INET6, "([^"]*)", &sin6_addr\))?'
    r'(?:, sun_path=(@?)"((?:[^"\\]|\\.)*)")?'
)
_NETWORK = frozenset({"connect", "bind", "sendto", "sendmsg", "sendmmsg"})
_WRITES = ("O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC")
_MAKES = {
    "creat": 0, "mkdir": 0, "mkdirat": 0, "mknod": 0, "mknodat": 0, "truncate": 0,
    "rename": 1, "renameat": 1, "renameat2": 1, "link": 1, "linkat": 1, "symlink": 1, "symlinkat": 1,
}  # fmt: skip
"""Calls that make or change a file by name, with the place of that name among their strings."""


@dataclass(frozen=True, slots=True)
class Program:
    """A program that was executed: its file, its words (strace cuts long ones), when (seconds since the epoch)."""

    pid: int
    time: float
    path: str
    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NetworkAttempt:
    """Something tried of the network: `call` with an address of `family` ("AF_INET"). `result`: "ok", or the errno."""

    pid: int
    time: float
    call: str
    family: str
    address: str
    port: int | None
    result: str


@dataclass(frozen=True, slots=True)
class Summary:
    """The trace in short. The first of `programs` is the process itself. `files_written`: distinct names opened for
    writing, made or renamed, with success. Sockets of the machine's own (AF_UNIX) are not network. `lines_unread`:
    lines that are none of strace's."""

    programs: tuple[Program, ...]
    files_written: int
    network: tuple[NetworkAttempt, ...]
    calls: int
    lines_unread: int
    not_listed: int


class Summarizer:
    """Feed it the lines of a trace in order, then ask for the summary."""

    def __init__(self) -> None:
        self._parser = Parser()
        self._programs: list[Program] = []
        self._network: list[NetworkAttempt] = []
        self._written: set[str] = set()
        self._calls = 0
        self._not_listed = 0

    def feed(self, line: str) -> None:
        """Take one line in."""
        match self._parser.feed(line):
            case Call() as call:
                self._calls += 1
                self._take(call)
            case _:
                pass

    def summary(self) -> Summary:
        """What was fed so far."""
        return Summary(
            programs=tuple(self._programs),
            files_written=len(self._written),
            network=tuple(self._network),
            calls=self._calls,
            lines_unread=self._parser.unread,
            not_listed=self._not_listed,
        )

    def _take(self, call: Call) -> None:
        if call.name in ("execve", "execveat") and call.succeeded:
            self._list(self._programs, Program(call.pid, call.time, *_executed(call.arguments)))
        elif call.name in _NETWORK:
            for attempt in _attempts(call):
                self._list(self._network, attempt)
        elif call.succeeded and (name := _written(call)) is not None:
            self._written.add(name)

    def _list(self, where: list[_T], what: _T) -> None:
        if len(where) < MAX_LISTED:
            where.append(what)
        else:
            self._not_listed += 1


def summarize(lines: Iterable[str]) -> Summary:
    """The summary of a whole trace."""
    summarizer = Summarizer()
    for line in lines:
        summarizer.feed(line)
    return summarizer.summary()


def _executed(arguments: str) -> tuple[str, tuple[str, ...]]:
    """The file and the words: all that is quoted, as strace shows only the count of the variables."""
    path, *argv = strings(arguments)
    return path, tuple(argv)


def _attempts(call: Call) -> Iterable[NetworkAttempt]:
    for found in _ADDRESS.finditer(_without_payload(call)):
        family = found[1]
        if family in ("AF_UNIX", "AF_NETLINK", "AF_UNSPEC"):
            continue
        yield NetworkAttempt(
            pid=call.pid,
            time=call.time,
            call=call.name,
            family=family,
            address=found[3] or found[4] or "",
            port=int(found[2]) if found[2] else None,
            result=call.error or ("unfinished" if call.result == "?" else "ok"),
        )


def _without_payload(call: Call) -> str:
    """The arguments without the strings that the process chose, in which it could write what looks like an address."""
    if call.name in ("connect", "bind"):
        return call.arguments
    return re.sub(r'^(\d+(?:<[^>]*>)?, )"(?:[^"\\]|\\.)*"|iov_base="(?:[^"\\]|\\.)*"', r"\1", call.arguments)


def _written(call: Call) -> str | None:
    names = list(strings(call.arguments))
    if call.name in ("open", "openat", "openat2") and names:
        flags = call.arguments.rpartition('"')[2]
        return names[0] if any(flag in flags for flag in _WRITES) else None
    place = _MAKES.get(call.name)
    return names[place] if place is not None and place < len(names) else None
