"""Where the time of an attempt went: the parts of a report, as lines, and as bars to scale."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from orchestrator.cli.stage_bars import BAR_WIDTH, stage_bars
from orchestrator.reports.stages import Part, as_line, parts_of, to_scale, waiting

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def attempt(
    *stages: tuple[str, float, float | None], queued: float = 0, claimed: float = 1, end: float | None = None
) -> dict[str, Any]:
    """As a report has it."""
    return {
        "queued_at": at(queued),
        "started_at": at(claimed),
        "finished_at": None if end is None else at(end),
        "stages": [
            {"stage": name, "started_at": at(begun), "ended_at": None if over is None else at(over)}
            for name, begun, over in stages
        ],
    }


def told(attempt: dict[str, Any], now: float) -> list[tuple[str, float | None, bool]]:
    return [(part.name, part.seconds(at(now)), part.over is not None) for part in parts_of(attempt)]


def test_a_cold_attempt_that_is_over() -> None:
    cold = attempt(("PROVISIONING", 1, 2), ("CONNECTING", 2, 20), ("EXECUTING", 20, 22.5), end=23)
    assert told(cold, 99) == [
        ("QUEUED", 1, True),
        ("PROVISIONING", 1, True),
        ("CONNECTING", 18, True),
        ("EXECUTING", 2.5, True),
    ]


def test_a_warm_attempt_that_runs() -> None:
    warm = attempt(("STAGING_IN", 1.25, 1.5), ("EXECUTING", 1.5, None))
    assert told(warm, 4) == [
        ("QUEUED", 1, True),
        ("CLAIMED", 0.25, True),
        ("STAGING_IN", 0.25, True),
        ("EXECUTING", 2.5, False),
    ]


def test_an_attempt_that_was_just_claimed_and_one_that_ended_so() -> None:
    assert told(attempt(), 3) == [("QUEUED", 1, True), ("CLAIMED", 2, False)]
    assert told(attempt(end=1.5), 9) == [("QUEUED", 1, True), ("CLAIMED", 0.5, True)]
    assert told(attempt(end=1.001), 9) == [("QUEUED", 1, True)]


def test_a_stage_that_nobody_ended_is_over_with_its_attempt() -> None:
    assert told(attempt(("EXECUTING", 1, None), end=3), 99)[-1] == ("EXECUTING", 2, True)


def test_a_clock_that_was_put_back_makes_nothing_negative() -> None:
    assert told(attempt(("EXECUTING", 1, 0.5), claimed=1, queued=2, end=3), 0) == [
        ("QUEUED", 0, True),
        ("EXECUTING", 0, True),
    ]
    for _, start, end, _ in to_scale(list(parts_of(attempt(("EXECUTING", 1, None), claimed=1, queued=2))), at(0)):
        assert 0 <= start <= 1 and 0 <= end <= 1


@pytest.mark.parametrize(
    ("state", "ends", "since"), [("QUEUED", [], 0), ("NEW", [], 0), ("QUEUED", [7], 7), ("RUNNING", [7], None)]
)
def test_the_wait_that_goes_on(state: str, ends: list[float], since: float | None) -> None:
    attempts = [attempt(end=end) for end in ends]
    wait = waiting({"state": state, "submitted_at": at(0), "attempts": attempts})
    assert wait == (None if since is None else Part("QUEUED", at(since), None))


def test_parts_as_lines() -> None:
    assert as_line(Part("EXECUTING", at(0), at(2.5)), at(9)) == "  EXECUTING          2.50 s"
    assert as_line(Part("EXECUTING", at(0), None), at(9)) == "  EXECUTING          9.00 s …"
    assert as_line(Part("EXECUTING", at(0), None), None) == "  EXECUTING           …"


def bars(*parts: Part, now: float = 100) -> dict[str, str]:
    """By name, the bar of each part as it is drawn: `BAR_WIDTH` characters."""
    console = Console(force_terminal=True, width=100, color_system=None)
    with console.capture() as drawn:
        console.print(stage_bars(parts, at(now)))
    lines = drawn.get().splitlines()
    assert len(lines) == len(parts)
    # rich 13 writes a space behind the last column, later ones do not
    return {line.split()[0]: line[32 : 32 + BAR_WIDTH] for line in lines}


def test_bars_are_to_scale_and_follow_each_other() -> None:
    found = bars(Part("QUEUED", at(0), at(6)), Part("STAGING_IN", at(6), at(12)), Part("EXECUTING", at(12), at(24)))
    assert found == {
        "QUEUED": "█" * 12 + " " * 36,
        "STAGING_IN": " " * 12 + "█" * 12 + " " * 24,
        "EXECUTING": " " * 24 + "█" * 24,
    }


def test_what_took_hardly_any_time_is_still_seen() -> None:
    parts = Part("QUEUED", at(0), at(0)), Part("SEALING", at(50), at(50)), Part("DESTROYING", at(100), at(100))
    for name, bar in bars(*parts).items():
        assert bar.strip(), name


def test_a_long_wait_is_cut_and_says_so() -> None:
    parts = [Part("QUEUED", at(0), at(3600)), Part("EXECUTING", at(3600), at(3612))]
    assert [cut for *_, cut in to_scale(parts, at(9999))] == [True, False]
    found = bars(*parts)
    assert found["QUEUED"] == "█" * 24 + " " * 24
    assert found["EXECUTING"] == " " * 24 + "█" * 24
    console = Console(force_terminal=True, width=100, color_system=None)
    with console.capture() as drawn:
        console.print(stage_bars(parts, at(9999)))
    first, second = drawn.get().splitlines()
    assert "3600.00 s" in first and "⋯" in first
    assert "12.00 s" in second and "⋯" not in second


def test_what_goes_on_reaches_to_now() -> None:
    found = bars(Part("QUEUED", at(0), at(5)), Part("EXECUTING", at(5), None), now=10)
    assert found["EXECUTING"] == " " * 24 + "█" * 24
    assert bars(Part("QUEUED", at(0), None), now=10)["QUEUED"] == "█" * BAR_WIDTH


def test_nothing_is_drawn_of_nothing() -> None:
    assert list(to_scale([], at(0))) == []
