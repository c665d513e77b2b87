"""One line of the table of aims: what was measured, its floor in the same run, and whether the aim was met."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """ours and floor in `unit`; ratio is ours / floor, or floor / ours where more is better (`faster_is_more`), so that
    below 1 is always better than the floor. met: None where there is no aim. note: where the time goes, when an aim is
    missed."""

    name: str
    ours: float
    unit: str
    aim: str
    met: bool | None
    floor: float | None = None
    floor_name: str = ""
    faster_is_more: bool = False
    samples: int = 0
    note: str = ""
    details: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        if self.floor is None or not self.ours or not self.floor:
            return None
        return self.floor / self.ours if self.faster_is_more else self.ours / self.floor

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio}


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that so great a share of them does not exceed.

    >>> quantile([1, 2, 3, 4], 0.5), quantile([1, 2, 3, 4], 0.99)
    (2, 4)
    """
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def table(rows: Sequence[Row]) -> str:
    """As Markdown, for people and for docs/reference/performance.md."""
    lines = ["| what | Mayfly | floor in the same run | ratio | aim | met |", "|---|---|---|---|---|---|"]
    for row in rows:
        floor = "–" if row.floor is None else f"{row.floor:.3g} {row.unit} ({row.floor_name})"
        ratio = "–" if row.ratio is None else f"{row.ratio:.2f}"
        met = {None: "–", True: "yes", False: "no"}[row.met]
        lines.append(f"| {row.name} | {row.ours:.3g} {row.unit} | {floor} | {ratio} | {row.aim} | {met} |")
    notes = [f"- {row.name}: {row.note}" for row in rows if row.note]
    return "\n".join([*lines, *(["", *notes] if notes else [])])
