"""A trace → what the process did. The result is plain JSON: docs/reference/findings.schema.json describes it, and
`views` says what of it who may see.

Names are as far as the trace goes: a file that is opened through a link counts under the link's name, and what was done
without a recorded call (io_uring) is not here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from orchestrator.trace.arguments import readable, split, texts
from orchestrator.trace.files import DEEDS, DENIED, EXECUTES, FOLDERS, Deed, Use, named, opened_plainly, uses
from orchestrator.trace.known import FileClass, Known, Placed, known_apart
from orchestrator.trace.listing import MAX_KEPT_PATH, MAX_LISTED, MAX_TEXT, Entry, Listing
from orchestrator.trace.network import TRIES, Attempt, attempts
from orchestrator.trace.parse import OTHER, Call, Ended, Parser, Signaled
from orchestrator.trace.processes import Process, Processes
from orchestrator.trace.programs import Programs
from orchestrator.trace.timeline import Timeline

FORMAT = 1
BUSIEST = 20
Findings = dict[str, Any]

_WATCHED = frozenset({
    "ptrace", "process_vm_readv", "process_vm_writev", "seccomp", "prctl", "io_uring_setup", "mount", "umount2",
    "pivot_root", "unshare", "setns", "bpf", "init_module", "finit_module", "keyctl",
})  # fmt: skip
"""Calls by which a process can do what its tracer does not see, or for which a sealed one has no use. Of prctl, those
that set a seccomp filter."""
_FORKS = frozenset({"clone", "clone3", "fork", "vfork"})
KEPT_USES = 8192
_KEPT_TEXT = 512


class Finder:
    """Feed it the trace, then ask for the findings. Whatever comes, it does not raise, and its memory is bounded."""

    def __init__(self, known: Known | None = None) -> None:
        self._known = known or Known()
        self._parser = Parser(self._wants, self._counter)
        self._processes = Processes(self._known.cwd)
        self._programs = Programs(self._known)
        self._timeline = Timeline()
        self._files: dict[tuple[FileClass, Deed], Listing[str]] = {
            (file_class, deed): Listing() for file_class in FileClass for deed in Deed
        }
        self._renamed: Listing[tuple[str, str]] = Listing()
        self._denied: Listing[tuple[str, str, str]] = Listing()
        self._network: Listing[Attempt] = Listing()
        self._signals: Listing[tuple[str, str]] = Listing(100)
        self._read: set[str] = set()
        self._uses: dict[Call, tuple[Use, ...]] = {}
        self._counters: dict[tuple[Deed, str, str], list[int]] = {}
        self._seccomp = [0]

    def feed(self, chunk: bytes) -> None:
        """Take some of the trace in, cut anywhere."""
        for pid, at, what in self._parser.feed(chunk):
            if isinstance(what, Call):
                self._call(self._processes.of(pid, self._parser.forking), float(at), what)
            elif isinstance(what, Ended):
                self._ended(pid, float(at), what)
            else:
                self._signaled(what)
        self._timeline.count(self._parser.ticks)

    # -- what is asked of the parser

    def _wants(self, name: str, error: str) -> bool:
        if name in TRIES or name in ("socket", "prctl"):
            return True
        if error:
            return error in DENIED
        return name in DEEDS or name in EXECUTES or name in FOLDERS or name in _FORKS

    def _counter(self, call: Call) -> list[int] | None:
        """What is opened for one thing, and by a name that is the same wherever it is said, means the same whoever does
        it: by far the most of what is recorded."""
        if call.name == "prctl":
            return self._seccomp if call.arguments.startswith(b"PR_SET_SECCOMP") else None
        if call.error or call.name not in ("openat", "open"):
            return None
        deed, path = opened_plainly(call)
        if deed is None or not (call.opened or known_apart(path)):  # what is in a folder may be named by its descriptor
            return None
        return self._file(deed, path, by=call.name)

    # -- what is told by it

    def _call(self, process: Process, at: float, call: Call) -> None:
        name = call.name
        self._timeline.begin(at)
        if name in TRIES or name == "socket":
            self._try(at, call)
        elif call.error:
            self._deny(process, call)
        elif name in DEEDS:
            self._use(process, call)
        elif name in EXECUTES:
            self._execute(process, at, call)
        elif name in FOLDERS:
            self._move(process, call)
        elif name in _FORKS and call.succeeded and call.result != "0":
            child = self._processes.made(process, call.result.encode(), call.arguments)
            if child is not None:
                self._programs.adopt(child.first, process.program)

    def _try(self, at: float, call: Call) -> None:
        for attempt in attempts(call):
            # a socket alone reaches nothing: it is told only when it was refused, or is of an uncommon family
            if attempt.call == "socket" and attempt.family in ("AF_INET", "AF_INET6") and not call.error:
                continue
            self._network.add(attempt, lambda: {**asdict(attempt), "first_at": self._timeline.since(at)})  # noqa: B023
            self._timeline.note(at, "network")

    def _deny(self, process: Process, call: Call) -> None:
        name = named(call)
        if name is not None:
            path = process.place.resolve(name.path, name.at)
            placed = self._known.place(path, there=False)
            entry = {"call": call.name, "error": call.error, **_names(path, placed), "class": placed.file_class.value}
            self._denied.add((call.name, call.error, path[:MAX_KEPT_PATH]), lambda: entry)

    def _use(self, process: Process, call: Call) -> None:
        if not call.succeeded:
            return
        done = self._uses.get(call)
        if done is None:
            done = uses(call)
            if len(call.arguments) <= _KEPT_TEXT:
                if len(self._uses) >= KEPT_USES:
                    self._uses.clear()
                self._uses[call] = done
        for use in done:
            path = process.place.resolve(use.name.path, use.name.at)
            if use.to is not None:
                self._rename(path, process.place.resolve(use.to.path, use.to.at))
            elif not use.listing:
                self._file(use.deed, path)[0] += 1
            if use.deed is Deed.READ and call.result.isdigit():
                process.place.opened(int(call.result), path)

    def _rename(self, old: str, new: str) -> None:
        was, becomes = (self._known.place(path, there=False) for path in (old, new))
        entry = {
            "from": _shortened(old), "from_shown": was.shown, "from_class": was.file_class.value,
            "to": _shortened(new), "to_shown": becomes.shown, "to_class": becomes.file_class.value,
        }  # fmt: skip
        self._renamed.add((old[:MAX_KEPT_PATH], new[:MAX_KEPT_PATH]), lambda: entry)
        self._file(Deed.WRITTEN, new)[0] += 1

    def _file(self, deed: Deed, path: str, by: str = "") -> list[int]:
        """The counter of a deed to a file."""
        known = self._counters.get((deed, path, by))
        if known is None:
            known = self._new_file(deed, path, by)
            if len(path) <= _KEPT_TEXT:
                if len(self._counters) >= KEPT_USES:
                    self._counters.clear()
                self._counters[deed, path, by] = known
        return known

    def _new_file(self, deed: Deed, path: str, by: str) -> list[int]:
        there = deed is Deed.READ
        if known_apart(path):  # one of many, and nothing else is to be known of it but whether it has been listed
            listing = self._files[FileClass.SYSTEM, deed]
            return listing.counter(path[:MAX_KEPT_PATH], lambda: _names(path, self._known.place(path, there=there)), by)
        placed = self._known.place(path, there=there)
        if placed.given and there:
            self._read.add(path)
        listing = self._files[placed.file_class, deed]
        return listing.counter(path[:MAX_KEPT_PATH], lambda: _names(path, placed), by)

    def _execute(self, process: Process, at: float, call: Call) -> None:
        parts = split(call.arguments)
        place = EXECUTES[call.name]
        name = named(call)
        if not call.succeeded or name is None or len(parts) <= place + 1:
            return
        path = process.place.resolve(name.path, name.at)
        words = texts(parts[place + 1])
        process.program = self._programs.executed(
            path, words, parent=process.program, replaces=process.own, at=self._timeline.since(at)
        )
        process.first = process.program if process.first is None else process.first
        process.own = True
        self._timeline.note(at, "programs")
        if path in self._known.given:
            self._read.add(path)

    def _move(self, process: Process, call: Call) -> None:
        parts = split(call.arguments)
        if not parts or not call.succeeded:
            return
        if call.name == "fchdir":
            path = process.place.resolve("", parts[0])
            process.place.cwd = path if path.startswith("/") else None
        elif said := texts(parts[0]):
            name = said[0].value.decode(errors="backslashreplace")
            path = process.place.resolve(name, None)
            process.place.cwd = path if path.startswith("/") else None

    def _ended(self, pid: bytes, at: float, end: Ended) -> None:
        self._timeline.begin(at)
        process = self._processes.ended(pid)
        if process is not None and process.own and process.program is not None:
            self._programs.ended(process.program, end, self._timeline.since(at))

    def _signaled(self, what: Signaled) -> None:
        sender = (
            "stop" if not what.code else "process" if what.code in ("SI_USER", "SI_TKILL", "SI_QUEUE") else "kernel"
        )
        self._signals.add((what.signal, sender), lambda: {"signal": what.signal, "sender": sender})

    # -- what came of it

    def findings(self) -> Findings:
        """What was fed so far."""
        parser = self._parser
        programs = self._programs.told()
        failed: Counter[str] = Counter()
        times: Counter[str] = Counter()
        for (name, error), count in parser.calls.items():
            times[name] += count
            failed[name] += count if error else 0
        return {
            "format": FORMAT,
            "view": "steward",
            "trace": {
                "lines": parser.lines,
                "lines_unread": parser.unread,
                "began_at": self._timeline.began,
                "seconds": self._timeline.seconds,
                "ends_with_a_line": parser.between_lines,
            },
            "programs": {**programs, "processes": self._processes.seen},
            "files": {
                each.value: {deed.value: self._files[each, deed].listed() for deed in Deed} for each in FileClass
            },
            "renamed": self._renamed.listed(),
            "inputs": self._inputs(),
            "network": self._network.listed(),
            "denied": {
                "files": self._denied.listed(),
                "calls": [
                    {"call": name, "error": error, "times": count}
                    for (name, error), count in sorted(parser.calls.items(), key=lambda item: (-item[1], item[0]))
                    if error in DENIED
                ][:MAX_LISTED],
            },
            "signals": self._signals.listed(),
            "watched": [
                {"call": name, "times": count, "failed": failed[name]}
                for name, count in sorted({**times, "prctl": self._seccomp[0]}.items())
                if name in _WATCHED and count
            ],
            "calls": {
                "total": sum(times.values()),
                "failed": sum(failed.values()),
                "distinct": len(times) - (OTHER in times),
                "busiest": [
                    {"call": name, "times": count, "failed": failed[name]}
                    for name, count in sorted(times.items(), key=lambda item: (-item[1], item[0]))[:BUSIEST]
                ],
            },
            "timeline": self._timeline.told(),
        }

    def _inputs(self) -> Entry:
        never = [(path, each) for path, each in self._known.given.items() if path not in self._read]
        data = [path for path, each in self._known.given.items() if each.file_class is FileClass.INPUT]
        unread = [(path, each) for path, each in never if each.file_class is FileClass.INPUT]
        return {
            "files": len(data),
            "read": len(data) - len(unread),
            "never_read": {
                "listed": [_names(path, each) for path, each in unread[:MAX_LISTED]],
                "not_listed": max(0, len(unread) - MAX_LISTED),
            },
            "code_files": len(self._known.given) - len(data),
            "code_read": len(self._known.given) - len(data) - (len(never) - len(unread)),
        }


def _names(path: str, placed: Placed) -> Entry:
    return {"path": _shortened(path), "shown": placed.shown}


def _shortened(text: str) -> str:
    return readable(text.encode(errors="backslashreplace"), MAX_TEXT)
