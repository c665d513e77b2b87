"""Lists that do not grow without bound, and say what they leave out."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

MAX_LISTED = 500
MAX_TEXT = 512
"""Characters of a name or a word that is listed."""
MAX_KEPT_PATH = 1024
"""Characters by which names are told apart."""

Entry = dict[str, Any]


class Listing(Generic[K]):
    """Distinct things with how often each came. Of those that come after the first `most`, only how often any of them
    came is counted: the same one may be in that number more than once."""

    def __init__(self, most: int = MAX_LISTED) -> None:
        self._most = most
        self._entries: dict[K, Entry] = {}
        self._counters: dict[tuple[K | None, str], list[int]] = {}

    def add(self, key: K, make: Callable[[], Entry]) -> None:
        """Count one; `make` gives the entry of one that was not there."""
        self.counter(key, make)[0] += 1

    def counter(self, key: K, make: Callable[[], Entry], by: str = "") -> list[int]:
        """Its counter, to be counted up: a list of one number. by: who counts, where each has a counter of its own."""
        known = self._counters.get((key, by))
        if known is not None:
            return known
        if key not in self._entries:
            if len(self._entries) >= self._most:
                return self._counters.setdefault((None, by), [0])
            self._entries[key] = make()
        return self._counters.setdefault((key, by), [0])

    def listed(self) -> Entry:
        """As findings have it. An entry that nobody counted is left out."""
        times: dict[K | None, int] = {}
        for (key, _), counter in self._counters.items():
            times[key] = times.get(key, 0) + counter[0]
        return {
            "listed": [{**entry, "times": times[key]} for key, entry in self._entries.items() if times[key]],
            "not_listed": times.get(None, 0),
        }
