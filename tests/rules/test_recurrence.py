"""When recurring tasks are due: crontab(5)'s rules, time zones, both changes of the clock, what was missed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.domain.errors import InvalidTask
from orchestrator.scheduler.recurrence import Recurrence

AMSTERDAM = "Europe/Amsterdam"


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"{text}+00:00")


def following(recurrence: Recurrence, start: str, count: int) -> list[str]:
    """The next instants after `start`, in UTC, as month-day hour:minute."""
    found, instant = [], at(start)
    for _ in range(count):
        later = recurrence.after(instant)
        assert later > instant
        instant = later
        found.append(f"{instant:%m-%d %H:%M}")
    return found


@pytest.mark.parametrize(
    ("line", "start", "expected"),
    [
        ("30 2 * * *", "2026-11-21T12:00", ["11-22 02:30", "11-23 02:30"]),
        ("*/20 * * * *", "2026-11-21T12:00", ["11-21 12:20", "11-21 12:40", "11-21 13:00"]),
        ("0 0 * * 0", "2026-11-21T12:00", ["11-22 00:00", "11-29 00:00"]),  # a Sunday, as crontab(5) counts
        ("0 0 * * 7", "2026-11-21T12:00", ["11-22 00:00", "11-29 00:00"]),
        ("0 0 * * sun", "2026-11-21T12:00", ["11-22 00:00", "11-29 00:00"]),
        ("0 0 * * 1-5", "2026-11-20T12:00", ["11-23 00:00", "11-24 00:00"]),
        ("0 0 * * fri-mon", "2026-11-21T12:00", ["11-22 00:00", "11-23 00:00", "11-27 00:00"]),
        ("0 0 * * */3", "2026-11-21T12:00", ["11-22 00:00", "11-25 00:00", "11-28 00:00"]),
        ("0 0 1 * 1", "2026-11-21T12:00", ["11-23 00:00", "11-30 00:00", "12-01 00:00", "12-07 00:00"]),  # either day
        ("0 0 29 2 *", "2096-03-01T00:00", ["02-29 00:00"]),  # 2104: there is no 29 February in 2100
        ("0 0 31 * *", "2026-11-21T12:00", ["12-31 00:00", "01-31 00:00", "03-31 00:00"]),
    ],
)
def test_cron_lines(line: str, start: str, expected: list[str]) -> None:
    assert following(Recurrence(cron=line), start, len(expected)) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        # 28 March 2027, at 01:00 UTC: 02:00 becomes 03:00, so there is no 02:30
        ("30 2 * * *", ["03-27 01:30", "03-28 01:30", "03-29 00:30"]),
        ("0 3 * * *", ["03-27 02:00", "03-28 01:00", "03-29 01:00"]),
        ("30 1-3 27,28 3 *", ["03-27 00:30", "03-27 01:30", "03-27 02:30", "03-28 00:30", "03-28 01:30"]),
        ("0 */12 * * *", ["03-27 11:00", "03-27 23:00", "03-28 10:00", "03-28 22:00"]),
    ],
)
def test_the_clock_is_put_forward(line: str, expected: list[str]) -> None:
    assert following(Recurrence(cron=line, time_zone=AMSTERDAM), "2027-03-27T00:00", len(expected)) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        # 25 October 2026, at 01:00 UTC: 03:00 becomes 02:00, so 02:30 comes twice
        ("30 2 * * *", ["10-24 00:30", "10-25 00:30", "10-26 01:30"]),
        ("0 3 * * *", ["10-24 01:00", "10-25 02:00", "10-26 02:00"]),
        ("30 1-3 25 10 *", ["10-24 23:30", "10-25 00:30", "10-25 02:30"]),
    ],
)
def test_the_clock_is_put_back(line: str, expected: list[str]) -> None:
    assert following(Recurrence(cron=line, time_zone=AMSTERDAM), "2026-10-24T00:00", len(expected)) == expected


@pytest.mark.parametrize("start", ["2027-03-28T00:00", "2026-10-25T00:00"])
def test_what_goes_by_the_time_that_passes_does_not_mind_the_clock(start: str) -> None:
    expected = [f"{at(start) + timedelta(minutes=30 * n):%m-%d %H:%M}" for n in range(1, 9)]
    assert following(Recurrence(cron="*/30 * * * *", time_zone=AMSTERDAM), start, 8) == expected
    assert following(Recurrence(every_seconds=1800, time_zone=AMSTERDAM), start, 8) == expected


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "has 0 fields"),
        ("* * * *", "has 4 fields"),
        ("* * * * * *", "has 6 fields"),
        ("61 * * * *", "61"),
        ("* 24 * * *", "24"),
        ("* * * 13 *", "13"),
        ("* * * * 8", "'8' is no day of the week"),
        ("* * * * mon-", "'' is no day of the week"),
        ("* * * * */0", "no step"),
        ("every day at noon please", "please"),
        ("0 0 30 2 *", "never due"),
    ],
)
def test_a_cron_line_that_cannot_be_read(line: str, says: str) -> None:
    with pytest.raises(InvalidTask, match="cron: ") as refused:
        Recurrence(cron=line)
    assert says in str(refused.value)


@pytest.mark.parametrize("zone", ["Europe/Atlantis", "", "../../etc/passwd", "Europe", "/etc/localtime", "a\0b"])
def test_a_time_zone_that_is_none(zone: str) -> None:
    with pytest.raises(InvalidTask, match="time-zone: no time zone"):
        Recurrence(cron="0 0 * * *", time_zone=zone)


@pytest.mark.parametrize("seconds", [0, -5, 0.5, float("nan"), float("inf"), 400 * 86400])
def test_an_interval_that_is_none(seconds: float) -> None:
    with pytest.raises(InvalidTask, match="every: is"):
        Recurrence(every_seconds=seconds)


def test_both_or_neither() -> None:
    for wrong in ({}, {"cron": "0 0 * * *", "every_seconds": 60.0}):
        with pytest.raises(InvalidTask, match="either a cron line or an interval"):
            Recurrence(**wrong)


@pytest.mark.parametrize("recurrence", [Recurrence(cron="*/5 * * * *"), Recurrence(every_seconds=300)])
def test_what_was_missed(recurrence: Recurrence) -> None:
    due = at("2026-11-21T12:00")
    assert recurrence.missed(due, due - timedelta(seconds=1), limit=10) == ()
    assert recurrence.missed(due, due, limit=10) == (due,)
    now = due + timedelta(minutes=17)
    assert recurrence.missed(due, now, limit=10) == tuple(due + timedelta(minutes=5 * n) for n in range(4))
    assert recurrence.missed(due, now, limit=1) == (due + timedelta(minutes=15),)
    years = due + timedelta(days=1500, minutes=1)
    newest = years - timedelta(minutes=1)
    assert recurrence.missed(due, years, limit=3) == (
        newest - timedelta(minutes=10),
        newest - timedelta(minutes=5),
        newest,
    )


def test_an_interval_keeps_to_its_grid() -> None:
    recurrence = Recurrence(every_seconds=7200)
    anchor = at("2026-11-21T12:34:56.789")
    late = anchor + timedelta(days=1, seconds=5)
    assert recurrence.after(late, anchor=anchor) == anchor + timedelta(days=1, hours=2)
    assert recurrence.after(anchor).astimezone(UTC) == anchor + timedelta(hours=2)
