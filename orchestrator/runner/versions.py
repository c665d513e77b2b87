"""Which image version a pool's machines are made of now, and which hosts they had better not be on."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.decide import quarantine
from orchestrator.decide.quarantine import Quarantine
from orchestrator.domain.pool import Pool
from orchestrator.opennebula import ImageVersion
from orchestrator.runner.tools import Tools


@dataclass(frozen=True, slots=True)
class Usable:
    """The version that a task gets. good: machines of it may be launched before a task asks. because: why it is not the
    promoted one, or not good."""

    image: ImageVersion
    good: bool = True
    because: str = ""


@dataclass(frozen=True, slots=True)
class _Version:
    """As `decide.quarantine` sees one."""

    name: str
    version: int
    state: str


async def put_aside(tools: Tools) -> Quarantine:
    """What is in quarantine. Raises what the database does."""
    warms = {name: pool.warm for name, pool in tools.pools.items()}
    launches = await tools.launches.newest(tools.store, quarantine.looks_back(warms.values()))
    if all(launch.ok for launch in launches):
        return Quarantine()
    return quarantine.of(launches, warms, tools.store.clock.now(), hosts=await tools.launches.hosts(tools.cloud))


async def usable(pool: Pool, tools: Tools, aside: Quarantine) -> Usable:
    """The version to use. Raises CloudError, and NotFound when none is promoted."""
    promoted, aside = await tools.cloud.promoted(pool.image), aside.of_pool(pool.name)
    if promoted.template_name not in aside.versions:
        return Usable(promoted)
    versions = {each.template_name: each for each in await tools.cloud.image_versions() if each.image == pool.image}
    facts = [_Version(name, each.version, each.state) for name, each in versions.items()]
    chosen = quarantine.choose(facts, aside)
    if chosen is None:
        name = promoted.template_name
        return Usable(
            promoted, good=False, because=f"{name} is put aside, and no other is left: {aside.versions[name]}"
        )
    return Usable(versions[chosen.name], because=chosen.because)
