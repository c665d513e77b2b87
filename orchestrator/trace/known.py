"""What is known of a run before it begins, and so what may be said of it to somebody who must not see the data.

A process that reads the data can put it into whatever name it makes up: of a file, a word of a command, an address. So
a name is shown as it is only when it was there before: it stands in the task, in its code, in its packages or in the
machine's system. In the place of others stands where they are, or for files of an input, which in their order.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

HIDDEN = "…"
TASK_IN, TASK_OUT, TASK_TMP, TASK_LAYER = "/task/in", "/task/out", "/task/tmp", "/task/layer"
_SCRATCH = (TASK_TMP, "/tmp", "/var/tmp", "/dev/shm")  # noqa: S108
_OURS = ("/task", *_SCRATCH)
_IN_THE_IMAGE = ("usr", "lib", "lib32", "lib64", "libx32", "bin", "sbin", "etc", "opt")
_DEVICES = frozenset(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty"))
_TOP = frozenset((*_IN_THE_IMAGE, "boot", "dev", "home", "mnt", "proc", "root", "run", "srv", "sys", "task", "var"))


class FileClass(StrEnum):
    """Where a file is. INPUT: data that the task was given. CODE: its program. DEPENDENCY: packages installed for it.
    SYSTEM: the machine's. SCRATCH: gone with the machine. OUTPUT: /task/out. UNKNOWN: its folder was not recorded."""

    INPUT = "input"
    CODE = "code"
    DEPENDENCY = "dependency"
    SYSTEM = "system"
    SCRATCH = "scratch"
    OUTPUT = "output"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Placed:
    """file_class; `shown`: how its name is given to who must not see the data; `given`: a file of an input, or code."""

    file_class: FileClass
    shown: str
    given: bool = False


@dataclass(frozen=True)
class Known:
    """command: the words that are run. inputs: of each dest the paths of its files below it, in order; "" is the dest
    itself. code: which of the dests are programs. outputs: the patterns of what is kept. cwd: where the process begins.
    """

    command: tuple[str, ...] = ()
    inputs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    code: frozenset[str] = frozenset()
    outputs: tuple[str, ...] = ()
    cwd: str = TASK_OUT

    def __post_init__(self) -> None:
        given: dict[str, Placed] = {}
        for dest, paths in self.inputs.items():
            for number, path in enumerate(paths, 1):
                full = f"{TASK_IN}/{dest}/{path}" if path else f"{TASK_IN}/{dest}"
                if dest in self.code:
                    given[full] = Placed(FileClass.CODE, full, True)
                else:
                    shown = f"{TASK_IN}/{dest}/(file {number})" if path else full
                    given[full] = Placed(FileClass.INPUT, shown, True)
        object.__setattr__(self, "given", given)
        # the longest dest first: code may lie inside of an input
        roots = sorted(
            ((f"{TASK_IN}/{dest}", dest in self.code) for dest in self.inputs), key=lambda each: -len(each[0])
        )
        object.__setattr__(self, "_roots", roots)
        object.__setattr__(self, "_words", frozenset(self.command))
        kept = {f"{TASK_OUT}/{each}" for each in self.outputs if not any(sign in each for sign in "*?[")}
        object.__setattr__(self, "_kept", kept)

    given: Mapping[str, Placed] = field(init=False)
    _roots: list[tuple[str, bool]] = field(init=False, repr=False)
    _words: frozenset[str] = field(init=False, repr=False)
    _kept: set[str] = field(init=False, repr=False)

    def place(self, path: str, *, there: bool) -> Placed:
        """Where an absolute, normal path is; `there`: it was opened or executed, so its file exists."""
        if given := self.given.get(path):
            return given
        if not path.startswith("/"):
            return Placed(FileClass.UNKNOWN, HIDDEN)
        return self._ours(path, there) if path.startswith(_OURS) else _of_the_system(path, there)

    def _ours(self, path: str, there: bool) -> Placed:
        if _below(path, TASK_IN):
            for root, code in self._roots:
                if _below(path, root):
                    shown = root if path == root else f"{root}/{HIDDEN}"
                    return Placed(FileClass.CODE if code else FileClass.INPUT, shown)
            return Placed(FileClass.INPUT, path if path == TASK_IN else f"{TASK_IN}/{HIDDEN}")
        if _below(path, TASK_LAYER):
            return Placed(FileClass.DEPENDENCY, path if there or path == TASK_LAYER else f"{TASK_LAYER}/{HIDDEN}")
        if _below(path, TASK_OUT):
            return Placed(FileClass.OUTPUT, path if path in self._kept or path == TASK_OUT else f"{TASK_OUT}/{HIDDEN}")
        for root in _SCRATCH:
            if _below(path, root):
                return Placed(FileClass.SCRATCH, path if path == root else f"{root}/{HIDDEN}")
        return _of_the_system(path, there)

    def word(self, word: str, program: str) -> str:
        """A word of a command as it is shown. `program`: what is executed, as it is shown."""
        if word in self._words or (HIDDEN not in program and word in (program, posixpath.basename(program))):
            return word
        if not word.startswith("/"):
            return HIDDEN
        return self.place(posixpath.normpath(word), there=False).shown


def known_apart(path: str) -> bool:
    """It is of the machine's system, whatever the task was given."""
    return path.startswith("/") and not path.startswith(_OURS)


def _below(path: str, root: str) -> bool:
    return path.startswith(root) and (len(path) == len(root) or path[len(root)] == "/")


def _of_the_system(path: str, there: bool) -> Placed:
    top, _, below = path[1:].partition("/")
    if path in _DEVICES or (there and top in _IN_THE_IMAGE) or (not below and (top in _TOP or not top)):
        return Placed(FileClass.SYSTEM, path)
    return Placed(FileClass.SYSTEM, f"/{top}/{HIDDEN}" if top in _TOP else f"/{HIDDEN}")
