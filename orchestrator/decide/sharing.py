"""Who of several runners has how many of what they have together."""

from __future__ import annotations

import heapq
from collections.abc import Mapping


def shares(total: int, has: Mapping[str, int]) -> dict[str, int]:
    """`total` among those in `has`, by what each has already, in their order.

    The one with the fewest gets the next, the one with the most gives the next; of equals the first gets and the last
    gives. So whoever looks at the same numbers comes to the same shares, nothing moves while the total is right, and
    those who have nothing get even shares.

    >>> shares(5, {"a": 0, "b": 0})
    {'a': 3, 'b': 2}
    >>> shares(4, {"a": 4, "b": 0})
    {'a': 4, 'b': 0}
    """
    found = dict(has)
    names = list(found)
    missing = total - sum(found.values())
    sign = 1 if missing > 0 else -1
    heap = [(sign * found[name], sign * place) for place, name in enumerate(names)]
    heapq.heapify(heap)
    for _ in range(abs(missing) if heap else 0):
        count, place = heapq.heappop(heap)
        name = names[sign * place]
        found[name] += sign
        heapq.heappush(heap, (count + 1, place))
    return found
