"""Where the time of an attempt went: its wait in the queue, and its stages, each from when to when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

QUEUED, CLAIMED = "QUEUED", "CLAIMED"
"""Parts beside the stages: in the queue; from the claim to the first stage."""

SHORTEST_SECONDS = 0.01
"""A shorter CLAIMED is not worth a line."""


@dataclass(frozen=True, slots=True)
class Part:
    """over: None while it lasts."""

    name: str
    begun: datetime
    over: datetime | None

    def seconds(self, now: datetime | None) -> float | None:
        """How long it took, or has taken until `now`; None when that is not said."""
        over = self.over or now
        return None if over is None else max(0.0, (over - self.begun).total_seconds())


def parts_of(attempt: dict[str, Any]) -> Iterator[Part]:
    """Those of an attempt, as a report has it, in the order of time. One that took a ready machine has no stage before
    STAGING_IN."""
    claimed, end = attempt["started_at"], attempt["finished_at"]
    yield Part(QUEUED, attempt["queued_at"], claimed)
    stages = [(stage["stage"], stage["started_at"], stage["ended_at"] or end) for stage in attempt["stages"]]
    first = Part(CLAIMED, claimed, stages[0][1] if stages else end)
    took = first.seconds(None)
    if took is None or took >= SHORTEST_SECONDS:
        yield first
    for name, begun, over in stages:
        yield Part(str(name), begun, over)


def waiting(report: dict[str, Any]) -> Part | None:
    """The wait of a task for its next attempt; None: it does not wait."""
    if report["state"] not in ("NEW", "QUEUED"):
        return None
    ended = [attempt["finished_at"] for attempt in report["attempts"] if attempt["finished_at"]]
    return Part(QUEUED, ended[-1] if ended else report["submitted_at"], None)


def as_line(part: Part, now: datetime | None) -> str:
    """A part as a line of text."""
    seconds = part.seconds(now)
    told = "      …" if seconds is None else f"{seconds:9.2f} s" + ("" if part.over else " …")
    return f"  {part.name:<14}{told}"


def to_scale(parts: Sequence[Part], now: datetime) -> Iterator[tuple[Part, float, float, bool]]:
    """Of each part where it begins and ends, 0 to 1, and whether it is cut: what came before the claim is drawn no
    longer than all that came after, for a wait of hours would leave nothing to be seen of the rest."""
    if not parts:
        return
    begun, over = parts[0].begun, max(part.over or now for part in parts)
    after = (over - parts[0].over).total_seconds() if parts[0].over else 0.0
    cut = max(0.0, (parts[0].seconds(now) or 0.0) - after) if after > 0 else 0.0
    whole = max((over - begun).total_seconds() - cut, 1e-6)
    for part in parts:
        first = part is parts[0]
        start = 0.0 if first else (part.begun - begun).total_seconds() - cut
        end = ((part.over or now) - begun).total_seconds() - cut
        yield part, min(max(start / whole, 0.0), 1.0), min(max(end / whole, 0.0), 1.0), first and cut > 0
