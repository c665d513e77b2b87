"""Lines of crontab(5), read by APScheduler's triggers with what they understand otherwise put right."""

from __future__ import annotations

from datetime import datetime, tzinfo
from zoneinfo import ZoneInfo

from apscheduler.triggers.cron import CronTrigger

from orchestrator.domain.pool import Times

_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


def zone(name: str) -> ZoneInfo:
    """Raises ValueError when there is none of this name."""
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError) as error:  # not there, a folder, a path out of the database
        raise ValueError(f"no time zone {name!r}") from error


def triggers(line: str, zone: tzinfo) -> tuple[CronTrigger, ...]:
    """Two when both the day of the month and that of the week are named: either will do, says crontab(5).

    Raises ValueError saying what is wrong with the line.
    """
    fields = line.split()
    if len(fields) != 5:
        raise ValueError(f"has {len(fields)} fields, not 5")
    minute, hour, day, month, weekday = fields
    weekday = _by_name(weekday.lower())
    days = [(day, weekday)] if day[0] == "*" or weekday[0] == "*" else [(day, "*"), ("*", weekday)]
    return tuple(
        CronTrigger(minute=minute, hour=hour, day=d, month=month, day_of_week=w, timezone=zone) for d, w in days
    )


def times(line: str) -> tuple[Times, ...]:
    """The minutes that a line matches. Raises ValueError, also for days that differ from month to month ("last").

    >>> [sorted(each.hours) for each in times("0 19-21 * * *")]
    [[19, 20, 21]]
    """
    read = triggers(line, ZoneInfo("UTC"))
    if any(each.isalpha() for each in line.split()[2]):
        raise ValueError(f"{line.split()[2]!r} is no day of the month")
    return tuple(
        Times(
            minutes=_matching(each, "minute", [datetime(2024, 1, 1, 0, minute) for minute in range(60)]),
            hours=_matching(each, "hour", [datetime(2024, 1, 1, hour) for hour in range(24)]),
            days=_matching(each, "day", [datetime(2024, 1, day) for day in range(1, 32)]),
            months=_matching(each, "month", [datetime(2024, month, 1) for month in range(1, 13)]),
            weekdays=_matching(each, "day_of_week", [datetime(2024, 1, day) for day in range(1, 8)]),  # from a Monday
        )
        for each in read
    )


def _matching(trigger: CronTrigger, name: str, moments: list[datetime]) -> frozenset[int]:
    """The values of a field that its expressions match."""
    [field] = (field for field in trigger.fields if field.name == name)
    found = ((field.get_value(moment), field.get_next_value(moment)) for moment in moments)
    return frozenset(value for value, following in found if value == following)


def _by_name(field: str) -> str:
    """A field of days of the week, in names: crontab(5) counts from Sunday (0 and 7), APScheduler from Monday.

    >>> _by_name("0,5-7"), _by_name("mon"), _by_name("*")
    ('fri,sat,sun', 'mon', '*')
    """
    if field == "*":
        return field
    found: set[int] = set()
    for part in field.split(","):
        span, slash, step = part.partition("/")
        first, dash, last = ("0", "-", "6") if span == "*" else span.partition("-")
        low, high = _day(first), _day(last if dash else first)
        if not dash and slash:
            high = 6
        if dash and high < low:
            high += 7
        if slash and not (step.isdecimal() and int(step)):
            raise ValueError(f"{part!r} has no step")
        found.update(day % 7 for day in range(low, high + 1, int(step) if slash else 1))
    return ",".join(sorted(_DAYS[day] for day in found))


def _day(text: str) -> int:
    if text in _DAYS:
        return _DAYS.index(text)
    if text.isdecimal() and int(text) <= 7:
        return int(text)
    raise ValueError(f"{text!r} is no day of the week")
