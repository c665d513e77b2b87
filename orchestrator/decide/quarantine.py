"""Which image versions and hosts are not used for now, because launches keep failing there; and what is used instead.

It follows from the launches alone, so that every runner comes to the same answer, and nothing has to be cleared up.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol

from orchestrator.decide.pace import Launched
from orchestrator.domain.pool import Warm

_PROMOTED, _PREVIOUS = "promoted", "previous"


@dataclass(frozen=True, slots=True)
class Quarantine:
    """What is put aside, and why, in words. `only`: of versions that are put aside for one pool alone, which. Hosts are
    taken for want of another all the same."""

    versions: Mapping[str, str] = field(default_factory=dict)
    hosts: Mapping[str, str] = field(default_factory=dict)
    only: Mapping[str, str] = field(default_factory=dict)

    def of_pool(self, pool: str) -> Quarantine:
        """What is put aside for this pool.

        >>> Quarantine({"v1": "no SSH", "v2": "no SSH"}, only={"v2": "small"}).of_pool("large").versions
        {'v1': 'no SSH'}
        """
        return replace(
            self, versions={name: why for name, why in self.versions.items() if self.only.get(name, pool) == pool}
        )


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
    fault. Of a pool with a network that is open, or a boot timeout that is too short, every launch fails: so a version
    is put aside for all pools only when of max_failures at least half were other pools' than the one with most, and
    else for that one.
    """
    newest = list(launches)

    def often(failures: Sequence[Launched], times: int = 1) -> bool:
        return len(failures) >= times * _warm(failures, warms).max_failures

    def blamed(failures: Sequence[Launched]) -> bool:
        return often(failures, 2 if hosts > 1 and len({launch.host for launch in failures}) == 1 else 1)

    versions, only = {}, {}
    for name, failures in _failing(newest, lambda launch: launch.image_version).items():
        [(pool, most)] = Counter(launch.pool for launch in failures).most_common(1)
        own = [launch for launch in failures if launch.pool == pool]
        if blamed(failures) and 2 * (len(failures) - most) >= _warm(failures, warms).max_failures:
            versions[name] = failures
        elif blamed(own):
            versions[name], only[name] = own, pool
    blameless = [launch for launch in newest if launch.ok or launch.image_version not in versions]
    on_hosts = {
        name: failures for name, failures in _failing(blameless, lambda launch: launch.host).items() if often(failures)
    }
    aside = {
        name: f"for pool {only[name]} alone: {why}" if name in only else why
        for name, why in _still(versions, warms, now).items()
    }
    return Quarantine(aside, _still(on_hosts, warms, now), {name: only[name] for name in aside if name in only})


def looks_back(warms: Iterable[Warm]) -> timedelta:
    """How long ago a launch may have been that `of` has to know: those before the last quarantine count, too."""
    longest = max((warm.quarantine_seconds for warm in warms), default=0.0)
    return timedelta(seconds=2 * longest)


def choose(versions: Iterable[Version], quarantine: Quarantine) -> Chosen | None:
    """Of one image: the promoted version, else the newest earlier one that was promoted once. quarantine: of the pool.

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
