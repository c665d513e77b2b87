"""Where the time of an attempt went, as bars on a terminal: to scale, one below the other, with the seconds."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich.bar import Bar
from rich.table import Table
from rich.text import Text

from orchestrator.domain.task import Stage
from orchestrator.reports.stages import Part, to_scale

BAR_WIDTH = 48
_SHORTEST = 1.5 / (8 * BAR_WIDTH)
"""An eighth of a character, rounded up: what took any time is seen."""

_COLORS = {
    Stage.STAGING_IN.value: "cyan",
    Stage.EXECUTING.value: "green",
    Stage.STAGING_OUT.value: "cyan",
    Stage.DESTROYING.value: "magenta",
    "QUEUED": "yellow",
    "CLAIMED": "yellow",
}
"""The others, which make a machine ready, are blue."""


def stage_bars(parts: Sequence[Part], now: datetime) -> Table:
    """A line for each part: its name, its seconds (with … while it lasts), its bar. A wait that is too long to be drawn
    beside the rest is cut short, and marked with ⋯."""
    drawn = Table.grid(padding=(0, 1))
    drawn.add_column(width=15)
    drawn.add_column(justify="right", min_width=12)
    drawn.add_column(width=1)
    drawn.add_column(width=BAR_WIDTH)
    for part, start, end, cut in to_scale(parts, now):
        begin = min(start, 1 - _SHORTEST)
        color = _COLORS.get(part.name, "blue")
        seconds = Text(f"{part.seconds(now) or 0.0:.2f} s" + ("  " if part.over else " …"))
        bar = Bar(1.0, begin, max(end, begin + _SHORTEST), width=BAR_WIDTH, color=color)
        drawn.add_row(Text(f"  {part.name}"), seconds, Text("⋯" if cut else "", style=color), bar)
    return drawn
