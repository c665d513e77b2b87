"""Whose turn it is, of the frontends that wait in one queue with tasks of one priority."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence


def share_out(
    waiting: Mapping[str, Sequence[str]], held: Mapping[str, int], turns: Mapping[str, int], count: int
) -> list[tuple[str, str]]:
    """Up to `count` tasks, each with its frontend, in the order in which they are served: always the first of the
    frontend that holds the fewest tasks; of those that hold equally many, of the one that was served longest ago.

    >>> share_out({"a": ["a1", "a2"], "b": ["b1", "b2"]}, {"a": 1}, {}, 3)
    [('b', 'b1'), ('a', 'a1'), ('b', 'b2')]
    """
    last = max(turns.values(), default=0)
    line = [(held.get(each, 0), turns.get(each, 0), each, 0) for each, ids in waiting.items() if ids]
    heapq.heapify(line)
    served: list[tuple[str, str]] = []
    while line and len(served) < count:
        has, _, frontend, place = heapq.heappop(line)
        served.append((frontend, waiting[frontend][place]))
        if place + 1 < len(waiting[frontend]):
            heapq.heappush(line, (has + 1, last + len(served), frontend, place + 1))
    return served
