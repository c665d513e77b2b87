"""When a recurring task is due: cron lines and intervals, in a time zone. APScheduler's triggers do the sums.

Where the clock is put forward or back (measured in tests/rules/test_recurrence.py): a line that names its hours runs
once a day all the same, in spring an hour late by the clock if its time is left out, in autumn at the first of the two.
A line with `*` for the hour, and an interval, go by the time that passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from zoneinfo import ZoneInfo

from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from orchestrator.domain.errors import InvalidTask
from orchestrator.provisioning import crontab

LEAST_SECONDS = 1.0
MOST_SECONDS = 366 * 86400.0
YEARS_AHEAD = 9
"""A line that is not due for so long never is: 29 February comes again after eight years at most (1896 to 1904)."""

_TICK = timedelta(microseconds=1)


@dataclass(frozen=True)
class Recurrence:
    """Either `cron`, five fields as crontab(5) has them, read in `time_zone`; or `every_seconds`.

    Raises InvalidTask naming the field: a line or zone that cannot be read, a line that is never due.
    """

    cron: str | None = None
    every_seconds: float | None = None
    time_zone: str = "UTC"

    def __post_init__(self) -> None:
        if (self.cron is None) == (self.every_seconds is None):
            raise InvalidTask("schedule", "needs either a cron line or an interval", "give --cron or --every")
        if self.every_seconds is not None and not LEAST_SECONDS <= self.every_seconds <= MOST_SECONDS:
            raise InvalidTask(
                "every", f"is {self.every_seconds:g} s", f"give {LEAST_SECONDS:g} s at least and 366d at most"
            )
        _ = self._zone
        if self.cron is not None:
            self.after(datetime.now(UTC))

    def after(self, instant: datetime, *, anchor: datetime | None = None) -> datetime:
        """The first instant later than `instant`, in UTC. `anchor`: one that an interval counts from."""
        if self.every_seconds is not None:
            trigger = IntervalTrigger(seconds=self.every_seconds, start_date=anchor or instant, timezone=UTC)
            found: datetime = trigger.get_next_fire_time(None, instant + _TICK)
            return found.astimezone(UTC)
        while (found := min(self._next(trigger, instant) for trigger in self._triggers)) and self._repeated(found):
            instant = found
        return found

    def missed(self, next_at: datetime, now: datetime, *, limit: int) -> tuple[datetime, ...]:
        """The instants from `next_at` (which is one) to `now`, oldest first; of more than `limit` only the newest."""
        if next_at > now:
            return ()
        back = timedelta(minutes=1)
        while True:
            start = max(next_at - _TICK, now - back)
            found, instant = [], start
            while (instant := self.after(instant, anchor=next_at)) <= now:
                found.append(instant)
            if len(found) >= limit or start < next_at:
                return tuple(found[-limit:])
            back *= 2

    @cached_property
    def _zone(self) -> ZoneInfo:
        try:
            return crontab.zone(self.time_zone)
        except ValueError as error:
            raise InvalidTask("time-zone", str(error), "write it as in Europe/Amsterdam or UTC") from error

    @cached_property
    def _triggers(self) -> tuple[CronTrigger, ...]:
        try:
            return crontab.triggers(self.cron or "", self._zone)
        except ValueError as error:
            raise InvalidTask(
                "cron", f"{self.cron!r}: {error}", "write minute, hour, day, month, day of the week, as '30 2 * * 1-5'"
            ) from error

    def _next(self, trigger: CronTrigger, instant: datetime) -> datetime:
        """The trigger's next. It is not asked beyond YEARS_AHEAD: without an end it would look until the year 9999."""
        trigger.end_date = instant + timedelta(days=366 * YEARS_AHEAD)
        found: datetime | None = trigger.get_next_fire_time(None, (instant + _TICK).astimezone(self._zone))
        if found is None:
            raise InvalidTask("cron", f"{self.cron!r} is never due", "name a day that its month has")
        return found.astimezone(UTC)

    def _repeated(self, instant: datetime) -> bool:
        """Whether a line that names its hours comes for the second time on the day that the clock is put back."""
        hour = (self.cron or "").split()[1]
        return hour[0] != "*" and instant.astimezone(self._zone).fold == 1
