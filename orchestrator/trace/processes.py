"""Who is whose child, and in which folder each is: what a relative name means depends on it."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field

from orchestrator.trace.arguments import descriptor
from orchestrator.trace.listing import MAX_KEPT_PATH

MAX_PROCESSES = 1024
MAX_FOLDERS = 128


@dataclass(slots=True, eq=False)
class Place:
    """The working directory, None when it is not known, and what descriptors are open on. Threads share one."""

    cwd: str | None
    folders: dict[int, str] = field(default_factory=dict)

    def copy(self) -> Place:
        return Place(self.cwd, dict(self.folders))

    def opened(self, number: int, path: str) -> None:
        """A descriptor that may be a folder's; others matter to no name."""
        self.folders.pop(number, None)
        if path.startswith("/") and len(path) <= MAX_KEPT_PATH:
            if len(self.folders) >= MAX_FOLDERS:
                self.folders.pop(next(iter(self.folders)))
            self.folders[number] = path

    def resolve(self, path: str, at: bytes | None) -> str:
        """`path` as an absolute one without "." and "..", or as it is when nobody knows where it begins. `at`: the
        descriptor that the call names, None or AT_FDCWD for the working directory. Links are not followed."""
        if path.startswith("/"):
            return _normal(path)
        base = self.cwd
        if at is not None and (said := descriptor(at)) is not None:
            number, name = said
            if name.startswith(b"/"):
                base = name.decode(errors="backslashreplace")
                if number is None:
                    self.cwd = base
            elif number is not None:
                base = self.folders.get(number)
        return path if base is None else _normal(f"{base}/{path}")


@dataclass(slots=True, eq=False)
class Process:
    """program: the number of the one that it runs, among all that were executed; None: not known. own: it executed that
    itself, and did not get it from its parent. first: what it executed first, whose parent may be known later.
    certain: strace said who made it."""

    place: Place
    program: int | None = None
    own: bool = False
    first: int | None = None
    certain: bool = False


class Processes:
    """By the numbers that strace gives. At most MAX_PROCESSES are remembered, the newest."""

    def __init__(self, cwd: str) -> None:
        self._cwd = cwd
        self._living: dict[bytes, Process] = {}
        self._orphans: dict[bytes, Process] = {}
        self.seen = 0

    def of(self, pid: bytes, forking: dict[bytes, bytes]) -> Process:
        """The process; a new one is taken for the child of the newest of those that are `forking`: a child may begin
        before its parent is told its number."""
        process = self._living.get(pid)
        if process is None:
            parent = None
            if forking:
                maker = next(reversed(forking))
                parent = self._living.get(maker)
            if parent is not None:
                process = _child(parent, forking[maker])
            else:
                process = Process(Place(self._cwd if not self.seen else None), certain=not self.seen)
            self._enter(pid, process)
        return process

    def made(self, maker: Process, pid: bytes, flags: bytes) -> Process | None:
        """`maker` was told the number of its child. Returns the child if it has begun before, and so was taken for
        another's or nobody's."""
        known = self._living.get(pid) or self._orphans.pop(pid, None)
        if known is None or known.certain:  # a number that is used again
            if known is not None:
                self.ended(pid)
            child = _child(maker, flags)
            child.certain = True
            self._enter(pid, child)
            return None
        known.certain = True
        if known.place.cwd is None:
            known.place.cwd = maker.place.cwd
        if known.program is None:
            known.program = maker.program
        return known

    def ended(self, pid: bytes) -> Process | None:
        process = self._living.pop(pid, None)
        if process is not None and not process.certain:
            if len(self._orphans) >= MAX_PROCESSES:
                self._orphans.pop(next(iter(self._orphans)))
            self._orphans[pid] = process
        return process

    def _enter(self, pid: bytes, process: Process) -> None:
        self.seen += 1
        if len(self._living) >= MAX_PROCESSES:
            self._living.pop(next(iter(self._living)))
        self._living[pid] = process


def _child(parent: Process, call: bytes) -> Process:
    shared = b"CLONE_THREAD" in call or b"CLONE_FS" in call
    return Process(parent.place if shared else parent.place.copy(), parent.program)


def _normal(path: str) -> str:
    if (
        "/." not in path and "//" not in path and path[-1] != "/"
    ):  # it is normal already, which normpath finds out slowly
        return path
    normal = posixpath.normpath(path)
    return normal[1:] if normal.startswith("//") else normal
