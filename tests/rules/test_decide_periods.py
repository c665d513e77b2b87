"""Which numbers of a pool hold at a time."""

from __future__ import annotations

from datetime import datetime

import pytest

from orchestrator.decide.periods import Numbers, in_force, most_ready, numbers, wanted_ready
from orchestrator.domain.pool import Pool, Warm
from orchestrator.provisioning.periods import period_from

WARM = Warm(min_ready=4, max_ready=9, scale_factor=0.5)
POOL = Pool(name="small", image="debian-12", max_vms=20, warm=WARM)
USUAL = Numbers(4, 9, 0.5, 20)


def at(time: str, *periods: dict[str, object]) -> Numbers:
    read = tuple(period_from(each) for each in periods)
    pool = Pool(
        name="small",
        image="debian-12",
        max_vms=20,
        warm=Warm(min_ready=4, max_ready=9, scale_factor=0.5, periods=read),
    )
    found = numbers(pool, datetime.fromisoformat(time))
    assert in_force(pool, datetime.fromisoformat(time)).max_vms == found.max_vms
    return found


NIGHT = {"when": "* 19-23,0-6 * * *", "min_ready": 0}
WEEKEND = {"when": "* * * * sat,sun", "min_ready": 1, "max_ready": 2, "scale_factor": 0, "max_vms": 5}


@pytest.mark.parametrize(
    ("time", "period", "matches"),
    [
        ("2026-03-02T19:00Z", NIGHT, True),
        ("2026-03-02T18:59:59Z", NIGHT, False),
        ("2026-03-03T06:59:59.999Z", NIGHT, True),
        ("2026-03-03T07:00Z", NIGHT, False),
        ("2026-03-02T20:00+01:00", NIGHT, True),
        ("2026-03-02T19:30+01:00", NIGHT, False),
        ("2026-03-07T12:00Z", WEEKEND, True),
        ("2026-03-08T12:00Z", WEEKEND, True),
        ("2026-03-09T12:00Z", WEEKEND, False),
        ("2026-03-08T12:00Z", {"when": "* * * * 0"}, True),  # crontab(5) counts from Sunday
        ("2026-03-08T12:00Z", {"when": "* * * * 7"}, True),
        ("2026-03-09T12:00Z", {"when": "* * * * 1-5"}, True),
        ("2026-03-01T12:00Z", {"when": "* * 1 * 1"}, True),  # the day of the month, or
        ("2026-03-02T12:00Z", {"when": "* * 1 * 1"}, True),  # that of the week
        ("2026-03-03T12:00Z", {"when": "* * 1 * 1"}, False),
        ("2026-03-31T12:00Z", {"when": "* * 31 * *"}, True),
        ("2026-02-28T12:00Z", {"when": "* * 31 * *"}, False),
        ("2026-03-03T12:00Z", {"when": "* * * jan-mar *"}, True),
        ("2026-04-03T12:00Z", {"when": "* * * jan-mar *"}, False),
        ("2026-03-03T12:17Z", {"when": "*/15 * * * *"}, False),
        ("2026-03-03T12:30Z", {"when": "*/15 * * * *"}, True),
        # the clock of the zone, in winter and in summer
        ("2026-03-02T18:00Z", NIGHT | {"time_zone": "Europe/Amsterdam"}, True),
        ("2026-03-02T17:59Z", NIGHT | {"time_zone": "Europe/Amsterdam"}, False),
        ("2026-07-02T17:00Z", NIGHT | {"time_zone": "Europe/Amsterdam"}, True),
        # 25 October 2026: what lasts from 2 to 3 lasts for two hours there, and on 29 March not at all
        ("2026-10-25T00:30Z", {"when": "* 2 * * *", "time_zone": "Europe/Amsterdam"}, True),
        ("2026-10-25T01:30Z", {"when": "* 2 * * *", "time_zone": "Europe/Amsterdam"}, True),
        ("2026-03-29T00:59Z", {"when": "* 2 * * *", "time_zone": "Europe/Amsterdam"}, False),
        ("2026-03-29T01:00Z", {"when": "* 2 * * *", "time_zone": "Europe/Amsterdam"}, False),
    ],
)
def test_a_period_lasts_for_the_minutes_that_its_line_matches(
    time: str, period: dict[str, object], matches: bool
) -> None:
    assert bool(at(time, period).period) == matches


def test_without_a_period_the_pools_numbers_hold() -> None:
    assert at("2026-03-02T12:00Z") == at("2026-03-02T12:00Z", NIGHT, WEEKEND) == USUAL


def test_what_a_period_does_not_say_stays_as_the_pool_has_it() -> None:
    assert at("2026-03-02T20:00Z", NIGHT) == Numbers(0, 9, 0.5, 20, "* 19-23,0-6 * * * (UTC)")
    assert at("2026-03-07T12:00Z", WEEKEND) == Numbers(1, 2, 0.0, 5, "* * * * sat,sun (UTC)")


def test_of_those_that_match_the_last_counts_alone() -> None:
    assert at("2026-03-07T20:00Z", WEEKEND, NIGHT) == Numbers(0, 9, 0.5, 20, "* 19-23,0-6 * * * (UTC)")
    assert at("2026-03-07T20:00Z", NIGHT, WEEKEND).min_ready == 1


@pytest.mark.parametrize(
    ("found", "held", "wanted", "most"),
    [
        (Numbers(2, None, 0, 10), 0, 2, 10),
        (Numbers(2, None, 0, 10), 9, 1, 1),
        (Numbers(2, None, 0, 10), 12, 0, 0),
        (Numbers(2, None, 0.5, 100), 3, 4, 97),
        (Numbers(0, None, 1.1, 100), 10, 11, 90),  # and not 12, for 1.1 is a little more than that
        (Numbers(2, 5, 1, 100), 30, 5, 5),
        (Numbers(0, 0, 1, 100), 30, 0, 0),
    ],
)
def test_how_many_ready_ones_are_wanted(found: Numbers, held: int, wanted: int, most: int) -> None:
    assert (wanted_ready(found, held), most_ready(found, held)) == (wanted, most)
