"""What is put aside when launches keep failing, and what is used instead."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.decide.quarantine import Chosen, Quarantine, choose, looks_back, of
from orchestrator.domain.pool import Warm
from orchestrator.provisioning.versions import ImageVersion, VersionState

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
WARMS = {"small": Warm(max_failures=3, quarantine_seconds=900), "careful": Warm(max_failures=1, quarantine_seconds=60)}
NO_SSH = "no answer over SSH within 300 s"
WHY = f"3 launches in a row failed, the last with: {NO_SSH}; until 2026-03-01T12:15:00+00:00"


@dataclass(frozen=True)
class Launched:
    ok: bool = False
    image_version: str = "v2"
    host: str = "h1"
    at: datetime = NOW
    pool: str = "small"
    message: str = NO_SSH


def bad(version: str = "v2", host: str = "h1", ago: float = 0, pool: str = "small") -> Launched:
    return Launched(False, version, host, NOW - timedelta(seconds=ago), pool)


def good(version: str = "v2", host: str = "h1") -> Launched:
    return Launched(True, version, host)


@pytest.mark.parametrize(
    ("newest_first", "hosts", "versions", "on_hosts"),
    [
        ([], 1, [], []),
        ([bad()] * 2, 1, [], []),
        ([bad()] * 3, 1, ["v2"], []),  # one host: there is no other to blame the host by
        ([bad()] * 3, 2, [], ["h1"]),  # several: this one is to blame
        ([bad()] * 5, 2, [], ["h1"]),
        ([bad()] * 6, 2, ["v2"], []),  # and yet nothing else was tried: the version, too
        ([bad(), bad(host="h2"), bad()], 2, ["v2"], []),
        ([bad(), bad(host=""), bad(host="")], 2, ["v2"], []),  # never placed
        ([bad(host="")] * 3, 1, ["v2"], []),
        ([bad("v1"), bad("v2"), bad("v3")], 1, [], ["h1"]),
        ([bad("v1"), bad("v2"), bad("v3")], 3, [], ["h1"]),
        ([bad("")] * 3, 1, [], ["h1"]),
        ([good(), bad(), bad(), bad()], 1, [], []),
        ([bad(), bad(), good(), bad()], 1, [], []),
        ([bad(), bad(), bad(), good()], 1, ["v2"], []),
        ([bad(), bad(), good("v1", "h1"), bad()], 2, [], []),  # the host does well with another version
        ([bad(), bad(), bad(), good("v2", "h2")], 2, [], ["h1"]),  # the version does well on another host
        ([bad(ago=899)] * 3, 1, ["v2"], []),
        ([bad(ago=900)] * 3, 1, [], []),
        ([bad(), bad(ago=900), bad(ago=1000)], 1, ["v2"], []),  # tried again when its time was up, in vain
        ([bad(pool="careful")], 1, ["v2"], []),
        ([bad(pool="careful", ago=60)], 1, [], []),
        ([bad(pool="gone")] * 3, 1, ["v2"], []),  # a pool that the inventory has no more: the defaults
    ],
)
def test_what_failed_so_often_in_a_row_is_put_aside(
    newest_first: list[Launched], hosts: int, versions: list[str], on_hosts: list[str]
) -> None:
    found = of(newest_first, WARMS, NOW, hosts=hosts)
    assert (list(found.versions), list(found.hosts)) == (versions, on_hosts)


def test_it_is_said_why_and_until_when() -> None:
    assert of([bad()] * 3, WARMS, NOW) == Quarantine({"v2": f"for pool small alone: {WHY}"}, {}, {"v2": "small"})
    assert of([bad(), bad(), bad(pool="large")], WARMS, NOW).versions == {}
    both = [bad(), bad(pool="large"), bad(pool="large")]
    assert of([bad(), *both], WARMS, NOW) == Quarantine({"v2": WHY.replace("3", "4", 1)}, {})
    assert of([bad(pool="careful")], WARMS, NOW).versions == {
        "v2": "for pool careful alone: the last launch failed, the last with: "
        f"{NO_SSH}; until 2026-03-01T12:01:00+00:00"
    }


@pytest.mark.parametrize(
    ("pools", "hosts", "small", "large"),
    [
        (["small"] * 3, 1, True, False),  # it may be the pool's own fault
        (["small"] * 30, 1, True, False),
        (["small"] * 3 + ["large"], 1, True, False),
        (["small"] * 3 + ["large"] * 2, 1, True, True),
        (["small", "large", "other"], 1, True, True),
        (["small", "small", "large"], 1, False, False),  # neither failed often enough alone, nor both together
        (["small", "large"], 1, False, False),
        (["small"] * 3, 2, False, False),  # all on one of several hosts
        (["small"] * 6, 2, True, False),
        (["small"] * 3 + ["large"] * 3, 2, True, True),
    ],
)
def test_one_pools_failures_put_a_version_aside_for_that_pool(
    pools: list[str], hosts: int, small: bool, large: bool
) -> None:
    for order in (pools, pools[::-1]):
        aside = of([bad(pool=pool) for pool in order], WARMS, NOW, hosts=hosts)
        assert ("v2" in aside.of_pool("small").versions, "v2" in aside.of_pool("large").versions) == (small, large)


def test_a_version_that_does_well_in_one_pool_is_not_to_blame_in_another() -> None:
    well = Launched(True, "v2", "h1", pool="large")
    assert of([well, *[bad()] * 9], WARMS, NOW).versions == {}


def test_each_pool_chooses_by_what_is_put_aside_for_it() -> None:
    aside = of([bad(name(4))] * 3, WARMS, NOW)
    assert choose(ALL, aside.of_pool("large")) == Chosen(name(4))
    assert choose(ALL, aside.of_pool("small")) == Chosen(
        name(2), f"{name(4)} is put aside: for pool small alone: {WHY}"
    )


def test_launches_are_looked_at_that_far_back() -> None:
    assert looks_back(WARMS.values()) == timedelta(seconds=1800)
    assert looks_back([]) == timedelta(0)


def version(number: int, state: str) -> ImageVersion:
    return ImageVersion("debian-12", number, VersionState(state), 40 + number, (), NOW)


def name(number: int) -> str:
    return f"mayfly-debian-12-{number}"


KNOWN = [version(5, "candidate"), version(4, "promoted"), version(3, "rejected"), version(2, "previous")]
ALL = [*KNOWN, version(1, "previous")]


@pytest.mark.parametrize(
    ("versions", "aside", "chosen"),
    [
        (ALL, [], Chosen(name(4))),
        (ALL, [2], Chosen(name(4))),
        (ALL, [4], Chosen(name(2), f"{name(4)} is put aside: broken")),
        (list(reversed(ALL)), [4], Chosen(name(2), f"{name(4)} is put aside: broken")),
        (ALL, [4, 2], Chosen(name(1), f"{name(4)} is put aside: broken")),
        (ALL, [4, 2, 1], None),
        ([version(4, "promoted"), version(5, "previous")], [4], None),  # a newer one that was rolled back by promoting
        ([version(1, "candidate")], [], None),
        ([], [], None),
    ],
)
def test_the_promoted_version_else_the_newest_earlier_one(
    versions: list[ImageVersion], aside: list[int], chosen: Chosen | None
) -> None:
    quarantine = Quarantine({name(number): "broken" for number in aside})
    assert choose(versions, quarantine) == chosen
