"""What every runner would do now for the ready machines of its pools, seen from outside. Nothing is changed.

How many attempts a runner may still begin, and what its rate allows, it alone knows; the rest is in the database and in
the cloud.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.decide.admission import Capacity, Room, room_for
from orchestrator.decide.periods import in_force, numbers, wanted_ready
from orchestrator.decide.quarantine import Quarantine
from orchestrator.decide.warm import Facts, Plan, Ready, plan
from orchestrator.domain.errors import CloudError, UserError
from orchestrator.domain.outcome import Reason
from orchestrator.domain.pool import Pool
from orchestrator.domain.vm import VmState
from orchestrator.runner.supply import Supply, read_supply
from orchestrator.runner.tools import Tools
from orchestrator.runner.versions import usable
from orchestrator.store import VmRow


@dataclass(frozen=True, slots=True)
class PoolOutlook:
    """One pool. wanted: how many ready ones, over all runners; period: the one that counts, or "". version: the image
    version to launch; "": none is, for `version_because`, which also says why it is not the promoted one. plans: by the
    names of the runners that serve the pool."""

    pool: Pool
    wanted: int
    period: str
    ready: int
    launching: int
    held: int
    waiting: int
    drained: bool
    version: str
    version_because: str
    plans: Mapping[str, Plan]


@dataclass(frozen=True, slots=True)
class Outlook:
    """All pools, and what is put aside."""

    pools: tuple[PoolOutlook, ...]
    aside: Quarantine


async def look_ahead(tools: Tools) -> Outlook:
    """Of every pool in `tools`. Raises what the database does; what the cloud does not tell, plans say."""
    supply = await read_supply(tools, tuple(tools.pools))
    spares = await tools.store.vms.spares()
    open_vms = await tools.store.vms.open_by_pool()
    capacity = await _capacity(tools)
    found = []
    for pool in tools.pools.values():
        if isinstance(capacity, Capacity):
            room = room_for(in_force(pool, supply.now), capacity, open_vms=open_vms.get(pool.name, 0))
        else:
            room = capacity
        found.append(await _of_pool(pool, tools, supply, [row for row in spares if row.pool == pool.name], room))
    return Outlook(tuple(found), supply.aside)


async def _of_pool(pool: Pool, tools: Tools, supply: Supply, spares: list[VmRow], room: Room) -> PoolOutlook:
    version, because = await _version(pool, tools, supply.aside)
    names = {row.id: row.name for row in supply.runners}
    plans, facts = {}, supply.facts(pool, tools.pools, ready=(), coming=())
    for runner_id in facts.runners:
        ours = [row for row in spares if row.runner_id == runner_id]
        facts = dataclasses.replace(
            _seen_by(runner_id, supply, pool, tools.pools, ours),
            room=room,
            wanted_version=version,
            version_because=because,
        )
        plans[names[runner_id]] = plan(pool, facts, supply.now)
    now = numbers(pool, supply.now)
    return PoolOutlook(
        pool=pool,
        wanted=0 if facts.drained else wanted_ready(now, facts.held),
        period=now.period,
        ready=sum(row.state is VmState.READY for row in spares),
        launching=sum(row.state in (VmState.REQUESTED, VmState.BOOTING) for row in spares),
        held=facts.held,
        waiting=facts.waiting,
        drained=facts.drained,
        version=version,
        version_because=because,
        plans=plans,
    )


def _seen_by(runner_id: str, supply: Supply, pool: Pool, pools: Mapping[str, Pool], ours: list[VmRow]) -> Facts:
    """As that runner sees it, but for what only it knows."""
    return dataclasses.replace(supply, runner_id=runner_id).facts(
        pool,
        pools,
        ready=tuple(_spare(row) for row in ours if row.state is VmState.READY),
        coming=tuple(_spare(row) for row in ours if row.state in (VmState.REQUESTED, VmState.BOOTING)),
    )


def _spare(row: VmRow) -> Ready:
    since = row.moved_at if row.state is VmState.READY else row.created_at
    return Ready(row.id, row.image_version, since, row.host or "", asked_at=row.created_at)


async def _capacity(tools: Tools) -> Capacity | Room:
    """What OpenNebula has; the want of an answer is no room."""
    try:
        return await tools.cloud.capacity()
    except CloudError as trouble:
        return Room(0, Reason.NO_CAPACITY, f"OpenNebula does not answer: {trouble}")


async def _version(pool: Pool, tools: Tools, aside: Quarantine) -> tuple[str, str]:
    """The image version to launch, or "", and what is to be said of it."""
    try:
        found = await usable(pool, tools, aside)
    except (CloudError, UserError) as trouble:
        return "", str(trouble)
    return (found.image.template_name if found.good else ""), found.because
