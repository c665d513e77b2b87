"""How fast machines are launched ahead of need."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.decide.pace import Bucket, rest
from orchestrator.domain.pool import Pool, Warm

NOW = datetime(2026, 3, 1, tzinfo=UTC)
POOL = Pool(name="small", image="debian-12", retry_backoff_seconds=5, retry_backoff_max_seconds=60)


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


@dataclass(frozen=True)
class Launched:
    ok: bool
    at: datetime = NOW
    pool: str = "small"
    image_version: str = "mayfly-debian-12-1"
    host: str = "h1"
    message: str = "no answer over SSH"


def test_a_runner_begins_with_a_whole_burst() -> None:
    assert Bucket.full(Warm(launch_rate=60, launch_burst=10), NOW) == Bucket(60, 10, 10, NOW)


@pytest.mark.parametrize(
    ("tokens", "seconds", "allowed"),
    [(0, 0, 0), (0, 9.99, 0), (0, 10, 1), (0, 25, 2), (0.5, 5, 1), (3, 3600, 4), (2, -3600, 2)],
)
def test_it_fills_up_at_its_rate_to_its_burst(tokens: float, seconds: float, allowed: int) -> None:
    found = Bucket(rate=6, burst=4, tokens=tokens, at=NOW).after(later(seconds))
    assert (found.allowed, found.at) == (allowed, later(seconds))


def test_what_was_launched_is_gone() -> None:
    assert Bucket(6, 4, 2.5, NOW).less(2) == Bucket(6, 4, 0.5, NOW)
    for count in (3, -1):
        with pytest.raises(ValueError, match=f"{count} launches, where 2 are allowed"):
            Bucket(6, 4, 2.5, NOW).less(count)


def test_other_numbers_hold_from_now_on() -> None:
    faster = Warm(launch_rate=600, launch_burst=3)
    assert Bucket(6, 10, 0, NOW).under(faster, later(10)) == Bucket(600, 3, 1, later(10))
    assert Bucket(6, 10, 9, NOW).under(faster, NOW).allowed == 3


@given(st.floats(0.1, 600), st.integers(1, 20), st.lists(st.floats(-5, 60), max_size=30))
def test_over_any_time_no_more_than_burst_and_rate(rate: float, burst: int, pauses: list[float]) -> None:
    bucket, now, taken = Bucket.full(Warm(launch_rate=rate, launch_burst=burst), NOW), NOW, 0
    passed = 0.0
    for pause in pauses:
        now += timedelta(seconds=pause)
        passed += max(0.0, pause)
        bucket = bucket.after(now)
        taken += bucket.allowed
        bucket = bucket.less(bucket.allowed)
    assert taken <= burst + rate * passed / 60 + 1e-6


OK, BAD = Launched(True), Launched(False)


@pytest.mark.parametrize(
    ("launches", "seconds"),
    [
        ([], None),
        ([OK], None),
        ([OK, BAD, BAD], None),
        ([BAD], 5),
        ([BAD, OK, BAD, BAD], 5),
        ([BAD, BAD, OK], 10),
        ([BAD] * 4, 40),
        ([BAD] * 5, 60),
        ([BAD] * 1000, 60),
        ([Launched(False, pool="large"), OK], None),
        ([Launched(True, pool="large"), BAD], 5),
        ([BAD, Launched(False, at=later(-100))], 10),
    ],
)
def test_launches_that_fail_are_followed_by_a_rest(launches: list[Launched], seconds: float | None) -> None:
    assert rest(launches, POOL) == (None if seconds is None else later(seconds))
