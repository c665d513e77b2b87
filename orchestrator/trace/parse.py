"""What `strace -f -o FILE --absolute-timestamps` wrote → events, as a stream of bytes cut anywhere.

strace(1) says how lines look. A process chooses part of their text (file names, words, what it sends), always inside of
quotes, or of angle brackets (`-y`), in which strace escapes what would end them. Whoever has broken into the machine
chooses all of it: nothing here raises, and nothing grows without bound.

Most lines are alike but for process and time. What a line tells is found out once for each text and kept; and there is
an event only of calls that somebody wants: all others are counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import itemgetter

MAX_TEXT = 65536
"""Bytes of a line after its process and time; what is longer is not read."""
MAX_HEAD = 64
MAX_UNFINISHED = 1024
"""Calls that have begun and not ended, of different threads; of a further one the end alone is not understood."""
MAX_NAMES = 1024
"""Different calls and errors that are counted each by itself; the rest is counted together, as `OTHER`."""
OTHER = "…"

KEPT_TEXTS = 16384
_KEPT_TEXT = 320
_BLOCK = 1 << 18
_LINE = re.compile(rb"^(\d{1,10}) {1,12}(\d{1,12}\.\d)(\d{0,8}) (.*)$", re.MULTILINE)
_CALL = re.compile(
    # the greedy part ends at the last ")" after which nothing but a result follows. What strace says of an error, and
    # of a descriptor (`-y`), has no character in it that a process could use to go on with a result of its own.
    rb"([a-z_]\w{0,63})\((.*)\) += (-?\d{1,20}|\?|0x[0-9a-f]{1,16})(<[^<>]*>(?:\(deleted\))?)?"
    rb"(?: (E[A-Z0-9]{1,30})(?: \([^()<>\"]*\))?| \((?:[^()<>]++|<[^<>]*+>)*+\))?(?: \(INJECTED\)| \(DELAYED\))?"
)
_UNFINISHED = b" <unfinished ...>"
_RESUMED = b"<... "
_CHANGED = re.compile(rb"([a-z_]\w{0,63}\(.*?) ?<pid changed to (\d{1,10}) \.\.\.>")
_EXITED = re.compile(rb"\+\+\+ exited with (\d{1,3}) \+\+\+")
_KILLED = re.compile(rb"\+\+\+ killed by (?:SIG)?([A-Z0-9+_]{1,20})(?: \(core dumped\))? \+\+\+")
_SUPERSEDED = re.compile(rb"\+\+\+ superseded by execve in pid (\d{1,10}) \+\+\+")
_SIGNAL = re.compile(rb"--- (?:SIG)?([A-Z0-9+_]{1,20}) \{si_signo=\w+, si_code=(\w+)(?:, si_pid=(\d{1,10}))?.*\} ---")
_STOPPED = re.compile(rb"--- stopped by (?:SIG)?([A-Z0-9+_]{1,20}) ---")
_REMARK = re.compile(rb"\[ Process PID=\d+ runs in [\w ]+ mode\. \]")
_FORKS = (b"clone(", b"clone3(", b"fork(", b"vfork(")


@dataclass(slots=True, eq=False)
class Call:
    """One system call: `arguments` as strace wrote them; `result` its number, or "?" when it did not return; `opened`
    what strace says of a descriptor that it returned (`-y`), in angle brackets; `error` the name of the errno, "" for
    none. The same object for each line of the same text."""

    name: str
    error: str
    arguments: bytes
    result: str
    opened: bytes

    @property
    def succeeded(self) -> bool:
        return not self.error and self.result != "?"


@dataclass(frozen=True, slots=True)
class Ended:
    """A process, or a thread, is over: its `code`, or the `signal` (without SIG) that ended it."""

    code: int | None
    signal: str


@dataclass(frozen=True, slots=True)
class Signaled:
    """A signal was delivered; `code` is strace's si_code ("SI_USER": a process sent it), "" for a stop."""

    signal: str
    code: str


Event = tuple[bytes, bytes, Call | Ended | Signaled]
"""The number of the process or thread, the seconds since the epoch when it began (both as they are written: most are
never looked at), and what."""


class Parser:
    """Feed it the trace in order.

    wants(name, error): whether calls that ended so are of interest. If they are, count(call) is asked once for each
    text: for the counter that takes the place of events, a list whose only number grows by one with each such line;
    None: events there are to be.

    `calls`: how often each call ended, by name and error ("" for none). `lines`: all that came, without what is not yet
    ended by a line break. `unread`: those that are none of strace's, and halves of calls whose other half did not come.
    `ticks`: lines by the tenth of a second, of the last call of `feed` only. `forking`: the call that a process was in
    when something of another process came, of those that make processes, the newest last.
    """

    def __init__(
        self,
        wants: Callable[[str, str], bool] = lambda name, error: True,
        count: Callable[[Call], list[int] | None] = lambda call: None,
    ) -> None:
        self.calls: dict[tuple[str, str], int] = {}
        self.lines = 0
        self.unread = 0
        self.ticks: Counter[bytes] = Counter()
        self.forking: dict[bytes, bytes] = {}
        self._wants, self._count = wants, count
        self._apart: dict[int, tuple[tuple[str, str], list[int]]] = {}
        self._slots: dict[tuple[str, str], list[int]] = {}
        self._kinds: dict[tuple[bytes, bytes | None], tuple[list[int], tuple[str, str] | None]] = {}
        self._texts: dict[bytes, tuple[list[int], Call | None]] = {}
        self._begun: dict[bytes, tuple[bytes, bytes, bytes]] = {}
        self._rest = b""
        self._skipping = False

    @property
    def between_lines(self) -> bool:
        """Nothing came after the last line break: the trace was not cut off inside a line."""
        return not self._rest and not self._skipping

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events that the chunk tells or completes. To be read to its end before the next is fed."""
        self.ticks = Counter()
        for at in range(0, len(chunk), _BLOCK):
            block = chunk[at : at + _BLOCK]
            end = block.rfind(b"\n") + 1
            if not end:
                self._keep(block)
                continue
            whole = self._rest + block[:end]
            if self._skipping:
                whole = whole[whole.index(b"\n") + 1 :]
                self._skipping = False
                self.lines += 1
                self.unread += 1
            self._rest = b""
            yield from self._block(whole)
            self._keep(block[end:])
        self.calls = {key: slot[0] for key, slot in self._slots.items()}
        for key, slot in self._apart.values():
            self.calls[key] = self.calls.get(key, 0) + slot[0]

    def _keep(self, part: bytes) -> None:
        if not self._skipping:
            self._rest += part
            if len(self._rest) > MAX_TEXT + MAX_HEAD:
                self._rest, self._skipping = b"", True

    def _block(self, block: bytes) -> Iterator[Event]:
        found: list[tuple[bytes, bytes, bytes, bytes]] = _LINE.findall(block)
        lines = block.count(b"\n")
        self.lines += lines
        self.unread += lines - len(found)
        self.ticks.update(map(itemgetter(1), found))
        known, whole = self._texts.get, _CALL.fullmatch
        for pid, tenth, micros, text in found:
            told = known(text)
            if told is None:
                call = None if text[:1] == b"<" or text.endswith(_UNFINISHED) else whole(text)
                if call is not None and len(text) <= MAX_TEXT:
                    told = self._learn(text, call)
                elif (event := self._partial(pid, tenth, micros, text)) is not None:
                    yield event
                    continue
                else:
                    continue
            slot, what = told
            slot[0] += 1
            if what is not None:
                yield pid, tenth + micros, what

    def _learn(self, text: bytes, call: re.Match[bytes]) -> tuple[list[int], Call | None]:
        """What is told by a line of this text, which was not seen before, or not kept."""
        name, error = call.group(1, 5)
        kind = self._kinds.get((name, error)) or self._new_kind(name, error)
        slot, wanted = kind
        what = None
        if wanted is not None:
            what = Call(*wanted, call[2], call[3].decode(), call[4] or b"")
            if (counter := self._count(what)) is not None:
                self._apart.setdefault(id(counter), (wanted, counter))
                slot, what = counter, None
        if len(text) <= _KEPT_TEXT:
            if len(self._texts) >= KEPT_TEXTS:
                self._texts.clear()
            self._texts[text] = slot, what
        return slot, what

    def _new_kind(self, name: bytes, error: bytes | None) -> tuple[list[int], tuple[str, str] | None]:
        key = name.decode(), (error or b"").decode()
        if len(self._kinds) >= MAX_NAMES:
            return self._slots.setdefault((OTHER, ""), [0]), key if self._wants(*key) else None
        kind = self._slots.setdefault(key, [0]), key if self._wants(*key) else None
        self._kinds[name, error] = kind
        return kind

    def _partial(self, pid: bytes, tenth: bytes, micros: bytes, text: bytes) -> Event | None:
        """What a line tells that is no whole call."""
        if len(text) > MAX_TEXT:
            self.unread += 1
            return None
        if text.endswith(_UNFINISHED):
            self._begin(pid, tenth, micros, text[: -len(_UNFINISHED)])
            return None
        begun = None
        if text.startswith(_RESUMED):
            begun = self._begun.pop(pid, None)
            name, _, rest = text[len(_RESUMED) :].partition(b" resumed>")
            self.forking.pop(pid, None)
        elif changed := _CHANGED.fullmatch(text):
            # a thread that calls execve goes on under the number of its process, which strace tells in one of two ways
            self._begin(changed[2], tenth, micros, changed[1])
            return None
        elif text[:1] in b"+-[":
            return self._other(pid, tenth, micros, text)
        if begun is None or not begun[2].startswith(name + b"("):
            self.unread += 1
            return None
        tenth, micros, text = begun[0], begun[1], begun[2] + rest
        told = self._texts.get(text)
        if told is None:
            call = _CALL.fullmatch(text)
            if call is None or len(text) > MAX_TEXT:
                self.unread += 1
                return None
            told = self._learn(text, call)
        slot, what = told
        slot[0] += 1
        return None if what is None else (pid, tenth + micros, what)

    def _begin(self, pid: bytes, tenth: bytes, micros: bytes, text: bytes) -> None:
        self.unread += pid in self._begun
        if pid not in self._begun and len(self._begun) >= MAX_UNFINISHED:
            self.unread += 1
            return
        self._begun[pid] = (tenth, micros, text)
        if text.startswith(_FORKS):
            self.forking[pid] = text

    def _other(self, pid: bytes, tenth: bytes, micros: bytes, text: bytes) -> Event | None:
        """Lines that are no calls."""
        what: Ended | Signaled | None = None
        if exited := _EXITED.fullmatch(text):
            what = Ended(int(exited[1]), "")
        elif killed := _KILLED.fullmatch(text):
            what = Ended(None, killed[1].decode())
        elif signal := _SIGNAL.fullmatch(text):
            what = Signaled(signal[1].decode(), signal[2].decode())
        elif stopped := _STOPPED.fullmatch(text):
            what = Signaled(stopped[1].decode(), "")
        elif superseded := _SUPERSEDED.fullmatch(text):
            if begun := self._begun.pop(superseded[1], None):
                self._begun[pid] = begun
        elif not _REMARK.fullmatch(text):
            self.unread += 1
        if isinstance(what, Ended):
            self._begun.pop(pid, None)
            self.forking.pop(pid, None)
        return None if what is None else (pid, tenth + micros, what)
