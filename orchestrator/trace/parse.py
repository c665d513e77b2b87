"""Lines of `strace -f -o FILE --absolute-timestamps` → events. A line in, an event out; unfinished calls are joined.

The text of a line is what a hostile process may choose in part (file names, argv), always inside of quotes that strace
escapes. strace(1) says how lines look.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_LINE = 65536
_HEAD = re.compile(r"(\d{1,10}) +(?:(\d{1,12}\.\d{1,9}) )?(.*)", re.DOTALL)
_CALL = re.compile(r"([a-z_][a-z0-9_]*)\((.*)", re.DOTALL)
_RESUMED = re.compile(r"<\.\.\. ([a-z_][a-z0-9_]*) resumed>(.*)", re.DOTALL)
_RESULT = re.compile(r"(.*)\)\s+= (-?\d+|\?|0x[0-9a-f]+)(?:<[^>]*>)?(?: ([A-Z][A-Z0-9_]+))?(?: \(.*\))?.*", re.DOTALL)
_UNFINISHED = re.compile(r"(.*?) ?<(?:unfinished|pid changed to (\d+)) \.\.\.>", re.DOTALL)
_EXITED = re.compile(r"\+\+\+ exited with (\d+) \+\+\+")
_KILLED = re.compile(r"\+\+\+ killed by SIG([A-Z0-9+_]+)(?: \(core dumped\))? \+\+\+")
_SUPERSEDED = re.compile(r"\+\+\+ superseded by execve in pid (\d+) \+\+\+")
_SIGNAL = re.compile(r"--- (?:SIG([A-Z0-9+_]+) \{.*\}|stopped by SIG([A-Z0-9+_]+)) ---")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|([0-7]{1,3})|(.))", re.DOTALL)
_PLAIN = {"n": "\n", "t": "\t", "r": "\r", "v": "\v", "f": "\f", "a": "\a", "b": "\b"}


@dataclass(frozen=True, slots=True)
class Call:
    """One system call: `arguments` as strace wrote them; `result` its number, or "?" when it did not return; `error`
    the name of the errno ("" for none). `time` in seconds since the epoch, when it began."""

    pid: int
    time: float
    name: str
    arguments: str
    result: str
    error: str

    @property
    def succeeded(self) -> bool:
        return not self.error and self.result != "?"


@dataclass(frozen=True, slots=True)
class Ended:
    """A process, or a thread, is over: its `code`, or the `signal` (without SIG) that ended it."""

    pid: int
    time: float
    code: int | None
    signal: str


@dataclass(frozen=True, slots=True)
class Signaled:
    """A signal was delivered."""

    pid: int
    time: float
    signal: str


Event = Call | Ended | Signaled


class Parser:
    """Feed it lines in order. `unread` counts those that are none of strace's, and calls that never came to an end."""

    def __init__(self) -> None:
        self.unread = 0
        self._unfinished: dict[int, tuple[float, str, str]] = {}

    def feed(self, line: str) -> Event | None:
        """The event that the line tells or completes; None when it begins one, or cannot be read."""
        head = _HEAD.fullmatch(line[:MAX_LINE].rstrip("\n"))
        if not head:
            self.unread += bool(line.strip())
            return None
        pid, time, rest = int(head[1]), float(head[2] or 0), head[3]
        if rest.startswith(("+++", "---")):
            return self._other(pid, time, rest)
        if resumed := _RESUMED.fullmatch(rest):
            began = self._unfinished.pop(pid, None)
            if began is None or began[1] != resumed[1]:
                self.unread += 1
                return None
            return self._call(pid, began[0], began[1], began[2] + resumed[2])
        call = _CALL.fullmatch(rest)
        if not call:
            self.unread += 1
            return None
        if begun := _UNFINISHED.fullmatch(call[2]):
            # a thread that calls execve goes on under the number of its process, which strace tells in one of two ways
            pid = int(begun[2] or pid)
            self.unread += pid in self._unfinished
            self._unfinished[pid] = (time, call[1], begun[1])
            return None
        return self._call(pid, time, call[1], call[2])

    def _call(self, pid: int, time: float, name: str, rest: str) -> Call | None:
        ended = _RESULT.fullmatch(rest)
        if not ended:
            self.unread += 1
            return None
        return Call(pid, time, name, ended[1], ended[2], ended[3] or "")

    def _other(self, pid: int, time: float, rest: str) -> Event | None:
        if exited := _EXITED.fullmatch(rest):
            self._unfinished.pop(pid, None)
            return Ended(pid, time, int(exited[1]), "")
        if killed := _KILLED.fullmatch(rest):
            self._unfinished.pop(pid, None)
            return Ended(pid, time, None, killed[1])
        if signal := _SIGNAL.fullmatch(rest):
            return Signaled(pid, time, signal[1] or signal[2])
        if superseded := _SUPERSEDED.fullmatch(rest):
            if began := self._unfinished.pop(int(superseded[1]), None):
                self._unfinished[pid] = began
            return None
        self.unread += 1
        return None


def strings(arguments: str) -> Iterator[str]:
    """The quoted strings in a call's arguments, unescaped; bytes that are not UTF-8 as surrogate escapes."""
    for found in _STRING.finditer(arguments):
        yield unescape(found[1])


def unescape(text: str) -> str:
    """A string as it was before strace escaped it: octal and hexadecimal stand for bytes."""
    raw = bytearray()
    at = 0
    for escape in _ESCAPE.finditer(text):
        raw += text[at : escape.start()].encode(errors="surrogateescape")
        if escape[1]:
            raw.append(int(escape[1], 16))
        elif escape[2]:
            raw.append(int(escape[2], 8) & 0xFF)
        else:
            raw += _PLAIN.get(escape[3], escape[3]).encode(errors="surrogateescape")
        at = escape.end()
    raw += text[at:].encode(errors="surrogateescape")
    return raw.decode(errors="surrogateescape")
