"""The programs that were executed: each time, and by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestrator.trace.arguments import Text, readable
from orchestrator.trace.known import Known
from orchestrator.trace.listing import MAX_KEPT_PATH, MAX_LISTED, MAX_TEXT, Entry, Listing
from orchestrator.trace.parse import Ended

MAX_WORDS = 64


@dataclass(slots=True)
class _Run:
    entry: Entry
    parent: int | None


class Programs:
    """Numbered from 0 in the order in which they were executed; the first is the process itself."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self._runs: list[_Run] = []
        self._count = 0
        self._names: Listing[str] = Listing()

    def executed(self, path: str, words: list[Text], *, parent: int | None, replaces: bool, at: float) -> int:
        """The number of the program. replaces: the process ran `parent` itself, which so is over."""
        number = self._count
        self._count += 1
        placed = self._known.place(path, there=True)
        argv = [readable(word.value, MAX_TEXT) for word in words[:MAX_WORDS]]
        name = readable(path.encode(errors="backslashreplace"), MAX_TEXT)
        self._names.add(
            path[:MAX_KEPT_PATH], lambda: {"path": name, "shown": placed.shown, "class": placed.file_class.value}
        )
        if replaces and parent is not None and parent < len(self._runs):
            self._runs[parent].entry.update(end="replaced", ended_at=at)
        if number < MAX_LISTED:
            entry: Entry = {
                "number": number,
                "at": at,
                "path": name,
                "shown": placed.shown,
                "class": placed.file_class.value,
                "argv": argv,
                "argv_shown": [self._known.word(word, placed.shown) for word in argv],
                "argv_cut": len(words) > MAX_WORDS or any(word.cut for word in words),
                "end": "not seen",
                "code": None,
                "signal": "",
                "ended_at": None,
            }
            self._runs.append(_Run(entry, parent))
        return number

    def adopt(self, number: int | None, parent: int | None) -> None:
        """A process had executed `number` before it was known whose child it is."""
        if number is not None and number < len(self._runs) and parent != number:
            self._runs[number].parent = parent

    def ended(self, number: int, end: Ended, at: float) -> None:
        if number < len(self._runs):
            how = "signaled" if end.signal else "exited"
            self._runs[number].entry.update(end=how, code=end.code, signal=end.signal, ended_at=at)

    def told(self) -> dict[str, Any]:
        return {
            "listed": [{**run.entry, "parent": run.parent} for run in self._runs],
            "not_listed": self._count - len(self._runs),
            "names": self._names.listed(),
        }
