"""Which image versions and hosts are not used for now, because launches keep failing there; and what is used instead.

It follows from the launches alone, so that every runner comes to the same answer, and nothing has to be cleared up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from orchestrator.decide.pace import Launched
from orchestrator.domain.pool import Warm

_PROMOTED, _PREVIOUS = "promoted", "previous"


@dataclass(frozen=True, slots=True)
class Quarantine:
    """What is put aside, and why, in words. Hosts are taken for want of another all the same."""

    versions: Mapping[str, str] = field(default_factory=dict)
    hosts: Mapping[str, str] = field(default_factory=dict)


class Version(Protocol):
    """One version of a base image. state: "promoted", or "previous" of one that was promoted before; others are none to
    launch."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def state(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Chosen:
    """The image version to launch. because: why it is not the promoted one; "" when it is."""

    name: str
    because: str = ""


def of(launches: Iterable[Launched], warms: Mapping[str, Warm], now: datetime, *, hosts: int = 1) -> Quarantine:
    """What has failed so often in a row, and none went well since, as the pool of the last failure says.

    launches: the newest first. warms: by pool. hosts: how many can be used. While there are several, failures that were
    all on one are that host's; the version's too when there are twice as many. A version that is put aside is no host's
    fault.
    """
    newest = list(launches)

    def often(failures: Sequence[Launched], times: int = 1) -> bool:
        return len(failures) >= times * _warm(failures, warms).max_failures

    versions = {
        name: failures
        for name, failures in _failing(newest, lambda launch: launch.image_version).items()
        if often(failures, 2 if hosts > 1 and len({launch.host for launch in failures}) == 1 else 1)
    }
    blameless = [launch for launch in newest if launch.ok or launch.image_version not in versions]
    on_hosts = {
        name: failures for name, failures in _failing(blameless, lambda launch: launch.host).items() if often(failures)
    }
    return Quarantine(_still(versions, warms, now), _still(on_hosts, warms, now))


def looks_back(warms: Iterable[Warm]) -> timedelta:
    """How long ago a launch may have been that `of` has to know: those before the last quarantine count, too."""
    longest = max((warm.quarantine_seconds for warm in warms), default=0.0)
    return timedelta(seconds=2 * longest)


def choose(versions: Iterable[Version], quarantine: Quarantine) -> Chosen | None:
    """Of one image: the promoted version, else the newest earlier one that was promoted once.

    None: no version is promoted, or all that could be used are put aside.
    """
    known = sorted(versions, key=lambda version: version.version, reverse=True)
    promoted = next((version for version in known if version.state == _PROMOTED), None)
    if promoted is None:
        return None
    if promoted.name not in quarantine.versions:
        return Chosen(promoted.name)
    because = f"{promoted.name} is put aside: {quarantine.versions[promoted.name]}"
    earlier = (version for version in known if version.state == _PREVIOUS and version.version < promoted.version)
    usable = (Chosen(version.name, because) for version in earlier if version.name not in quarantine.versions)
    return next(usable, None)


def _failing(newest: Iterable[Launched], name: Callable[[Launched], str]) -> dict[str, list[Launched]]:
    """The failures of each since it last went well, the newest first."""
    found: dict[str, list[Launched]] = defaultdict(list)
    well: set[str] = set()
    for launch in newest:
        of = name(launch)
        if launch.ok:
            well.add(of)
        elif of and of not in well:
            found[of].append(launch)
    return found


def _still(failing: Mapping[str, Sequence[Launched]], warms: Mapping[str, Warm], now: datetime) -> dict[str, str]:
    """Those whose time is not up, and why."""
    found = {}
    for name, failures in failing.items():
        last = failures[0]
        until = last.at + timedelta(seconds=_warm(failures, warms).quarantine_seconds)
        if now < until:
            many = f"{len(failures)} launches in a row" if len(failures) > 1 else "the last launch"
            found[name] = f"{many} failed, the last with: {last.message}; until {until.isoformat(timespec='seconds')}"
    return found


def _warm(failures: Sequence[Launched], warms: Mapping[str, Warm]) -> Warm:
    return warms.get(failures[0].pool) or Warm()
