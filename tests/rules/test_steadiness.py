"""When a runner believes that the leases of others have run out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.runner.steadiness import Steadiness

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def at(steadiness: Steadiness, monotonic: float, ahead: float = 0) -> bool:
    return steadiness.holds(monotonic=monotonic, now=NOON + timedelta(seconds=monotonic + ahead))


def test_it_holds_from_the_start_however_long_between_two_looks() -> None:
    steadiness = Steadiness(60)
    assert at(steadiness, 5)
    assert at(steadiness, 500)


def test_after_an_outage_the_others_have_two_beats() -> None:
    steadiness = Steadiness(60)
    steadiness.outage(monotonic=10)
    steadiness.outage(monotonic=12)
    assert not at(steadiness, 31.9)
    assert at(steadiness, 32)


@pytest.mark.parametrize("jump", [100.0, -100.0])
def test_after_a_jump_the_others_have_time_to_notice_and_to_beat(jump: float) -> None:
    steadiness = Steadiness(60)
    assert at(steadiness, 10)
    assert not at(steadiness, 11, ahead=jump)
    steadiness.outage(monotonic=12)
    assert not at(steadiness, 60.9, ahead=jump)
    assert at(steadiness, 61, ahead=jump)
    assert at(steadiness, 62, ahead=jump)


def test_a_clock_that_is_set_by_less_than_a_beat_is_no_jump() -> None:
    steadiness = Steadiness(60)
    assert at(steadiness, 10)
    assert at(steadiness, 11, ahead=9)
    assert at(steadiness, 12)
