"""Which numbers of a pool hold at a time: its own, or those of a period."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime
from zoneinfo import ZoneInfo

from orchestrator.domain.pool import Period, Pool


@dataclass(frozen=True, slots=True)
class Numbers:
    """What holds at a time. period: the line and the zone of the one that counts; "" when none does."""

    min_ready: int
    max_ready: int | None
    scale_factor: float
    max_vms: int
    period: str = ""


def numbers(pool: Pool, now: datetime) -> Numbers:
    """The pool's, with those of the last of its periods that match.

    >>> numbers(Pool(name="small", image="debian-12", max_vms=4), datetime.fromisoformat("2026-03-01T00:00Z")).max_vms
    4
    """
    period = next((each for each in reversed(pool.warm.periods) if lasts(each, now)), None)
    return usual(pool) if period is None else within(pool, period)


def usual(pool: Pool) -> Numbers:
    """The pool's own."""
    return Numbers(pool.warm.min_ready, pool.warm.max_ready, pool.warm.scale_factor, pool.max_vms)


def within(pool: Pool, period: Period) -> Numbers:
    """The pool's, with those of this period."""
    warm = pool.warm
    return Numbers(
        min_ready=warm.min_ready if period.min_ready is None else period.min_ready,
        max_ready=warm.max_ready if period.max_ready is None else period.max_ready,
        scale_factor=warm.scale_factor if period.scale_factor is None else period.scale_factor,
        max_vms=pool.max_vms if period.max_vms is None else period.max_vms,
        period=f"{period.when} ({period.time_zone})",
    )


def in_force(pool: Pool, now: datetime) -> Pool:
    """The pool with the `max_vms` that holds at this time."""
    return replace(pool, max_vms=numbers(pool, now).max_vms)


def lasts(period: Period, now: datetime) -> bool:
    """Whether the minute of `now` is one of the period's, by the clock of its zone."""
    local = now.astimezone(ZoneInfo(period.time_zone))
    return any(
        local.minute in times.minutes
        and local.hour in times.hours
        and local.day in times.days
        and local.month in times.months
        and local.weekday() in times.weekdays
        for times in period.times
    )


def wanted_ready(numbers: Numbers, held: int) -> int:
    """How many ready ones the pool wants, over all runners, while they hold so many of its tasks.

    >>> wanted_ready(Numbers(min_ready=2, max_ready=5, scale_factor=0.5, max_vms=20), held=4)
    4
    """
    wanted = numbers.min_ready + math.ceil(round(numbers.scale_factor * held, 6))
    return min(wanted, most_ready(numbers, held))


def most_ready(numbers: Numbers, held: int) -> int:
    """How many it may have at most, then."""
    left = max(0, numbers.max_vms - held)
    return left if numbers.max_ready is None else min(left, numbers.max_ready)
