"""The periods of a pool, as operators write them, checked; and which of them come at the same time."""

from __future__ import annotations

import difflib
from calendar import monthrange
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.domain.pool import Period, Times

_UNSAID: Any = None  # never seen: only what an inventory said is passed on. A null that it said is an error

Ready = Annotated[int, Field(strict=True, ge=0)]
Count = Annotated[int, Field(strict=True, ge=1)]
Factor = Annotated[float, Field(strict=True, ge=0, le=100, allow_inf_nan=False)]


class PeriodVariables(BaseModel):
    """What an inventory may say of a period. Only `when` is required."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    when: Annotated[str, Field(strict=True)]
    time_zone: Annotated[str, Field(strict=True)] = "UTC"
    min_ready: Ready = _UNSAID
    max_ready: Ready = _UNSAID
    scale_factor: Factor = _UNSAID
    max_vms: Count = _UNSAID


def period_from(said: object) -> Period:
    """One period. Raises ValueError saying what is wrong and what is expected."""
    # read where a period is: no command that reads pools from the cache waits for APScheduler
    from orchestrator.provisioning import crontab

    try:
        known = PeriodVariables.model_validate(said, strict=True)
    except ValidationError as error:
        raise ValueError(_complaint(said, error)) from error
    crontab.zone(known.time_zone)
    try:
        times = crontab.times(known.when)
    except ValueError as error:
        remedy = "write minute, hour, day, month, day of the week, as '* 19-23 * * 1-5'"
        raise ValueError(f"when {known.when!r}: {error}; {remedy}") from error
    return Period(**known.model_dump(exclude_unset=True), times=times)


def overlapping(periods: Sequence[Period]) -> Iterator[tuple[int, int]]:
    """Numbers (from 1) of two periods that may last at the same minute, the earlier one first. Those in different time
    zones are taken to."""
    for (number, earlier), (later_number, later) in combinations(enumerate(periods, start=1), 2):
        zones_differ = earlier.time_zone != later.time_zone
        if zones_differ or any(_meet(one, other) for one in earlier.times for other in later.times):
            yield number, later_number


def never_lasts(period: Period) -> bool:
    """Whether no month that it names has the day that it names."""
    return not any(_comes(times) for times in period.times)


def _meet(one: Times, other: Times) -> bool:
    """Whether a minute is in both."""
    both = Times(
        one.minutes & other.minutes,
        one.hours & other.hours,
        one.days & other.days,
        one.months & other.months,
        one.weekdays & other.weekdays,
    )
    return all((both.minutes, both.hours, both.days, both.months, both.weekdays)) and _comes(both)


def _comes(times: Times) -> bool:
    """Whether one of its months has one of its days, in a leap year at least."""
    return any(min(times.days) <= monthrange(2024, month)[1] for month in times.months)


def _complaint(said: object, error: ValidationError) -> str:
    """The first of pydantic's complaints, in our words."""
    complaint = error.errors(include_url=False)[0]
    if not isinstance(said, Mapping):
        return "expected a mapping, with when, time_zone, min_ready and so on"
    field = str(complaint["loc"][0]) if complaint["loc"] else ""
    known = list(PeriodVariables.model_fields)
    if complaint["type"] == "extra_forbidden":
        near = difflib.get_close_matches(field, known, n=1)
        return f"no such key {field!r}; " + (f"did you mean {near[0]}?" if near else "known are " + ", ".join(known))
    if complaint["type"] == "missing":
        return "when is missing: a cron line, as '* 19-23 * * 1-5'"
    what = complaint["msg"]
    return f"{field} {complaint['input']!r} is not right: {what[:1].lower()}{what[1:]}"
