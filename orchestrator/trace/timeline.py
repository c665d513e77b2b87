"""When things happened: counts in buckets of equal width, of which there are never more than MAX_BUCKETS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_BUCKETS = 60
_NARROWEST = 0.1
_COLUMNS = ("lines", "programs", "network")


class Timeline:
    """Buckets get twice as wide whenever there would be too many of them. Instants are seconds since the epoch."""

    def __init__(self) -> None:
        self.began: float | None = None
        self._last = 0.0
        self._width = _NARROWEST
        self._origin: float | None = None
        self._buckets: list[dict[str, int]] = []

    def begin(self, at: float) -> None:
        """Something was done then; the first of all is when everything began."""
        if self.began is None:
            self.began = at
        if at > self._last:
            self._last = at

    def since(self, at: float) -> float:
        """Seconds since everything began."""
        return round(max(0.0, at - (at if self.began is None else self.began)), 6)

    @property
    def seconds(self) -> float:
        return self.since(self._last) if self.began is not None else 0.0

    def count(self, tenths: Mapping[bytes, int]) -> None:
        """So many lines in each of these tenths of a second."""
        for tenth, lines in tenths.items():
            self.note(float(tenth), "lines", lines)

    def note(self, at: float, column: str, times: int = 1) -> None:
        if self._origin is None:
            self._origin = int(at * 10) / 10
        while (number := max(0, int((at - self._origin) / self._width + 1e-6))) >= MAX_BUCKETS:
            self._widen()
        while len(self._buckets) <= number:
            self._buckets.append(dict.fromkeys(_COLUMNS, 0))
        self._buckets[number][column] += times
        self._last = max(self._last, at)

    def told(self) -> dict[str, Any]:
        return {"bucket_seconds": round(self._width, 3), "buckets": [dict(bucket) for bucket in self._buckets]}

    def _widen(self) -> None:
        self._width *= 2
        halves = self._buckets
        self._buckets = [
            {column: sum(half[column] for half in halves[at : at + 2]) for column in _COLUMNS}
            for at in range(0, len(halves), 2)
        ]
