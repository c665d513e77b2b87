"""`mayfly pool`: what the inventory says, what there is of it, and what is done about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from orchestrator.bootstrap import INVENTORY_SECONDS, House, load_pools, look_ahead, make_home, open_house
from orchestrator.cli import output
from orchestrator.cli.because import Because, require_plain
from orchestrator.cli.entry import perform
from orchestrator.cli.pool_words import plan_as_dict, plan_lines, remarks
from orchestrator.cli.submission import AsJson
from orchestrator.decide import quarantine
from orchestrator.domain.errors import NotFound
from orchestrator.domain.pool import Pool
from orchestrator.domain.vm import VmState
from orchestrator.settings import Settings
from orchestrator.store import QueueRow, VmCount

app = typer.Typer(no_args_is_help=True, help="The pools of the inventory, and their ready machines.")
PoolName = Annotated[str, typer.Argument(metavar="POOL", help="One of the pools of the inventory.")]


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """The pools, as the inventory describes them, and what there is of each."""
    settings = Settings.from_environment()

    async def work() -> None:
        async with open_house(settings) as house:
            rows = [(pool, now) for pool, now in (await _now(house)).values()]
        if as_json:
            output.as_json([_described(pool) | {"now": now} for pool, now in rows])
            return
        output.table(
            (
                "pool",
                "image",
                "cpus",
                "memory",
                "network",
                "max vms",
                "time limit",
                "ready",
                "in use",
                "waiting",
                "state",
            ),
            (
                (
                    *(pool.name, pool.image, pool.cpus, output.size(pool.memory_bytes), pool.network, pool.max_vms),
                    f"{pool.default_timeout_seconds:g} s",
                    *(now["ready"], now["in_use"], now["waiting"], _state(now)),
                )
                for pool, now in rows
            ),
            empty="the inventory has no pool: see inventories/local",
        )

    perform(work())


@app.command()
def check(as_json: AsJson = False) -> None:
    """Read the inventory as the services do, and say what is wrong with it, or worth knowing."""
    settings = Settings.from_environment()

    async def work() -> None:
        make_home(settings)
        pools = await load_pools(settings)
        said = {name: remarks(pool, pools) for name, pool in pools.items()}
        if as_json:
            output.as_json([{"pool": name, "remarks": lines} for name, lines in said.items()])
            return
        _say_checked(said)

    perform(work())


@app.command()
def plan(as_json: AsJson = False) -> None:
    """What would be launched and destroyed now, and why; and what is put aside because launches keep failing."""
    settings = Settings.from_environment()

    async def work() -> None:
        async with open_house(settings) as house:
            outlook = await look_ahead(house)
        if as_json:
            output.as_json(plan_as_dict(outlook))
            return
        for line in plan_lines(outlook):
            output.say(line)

    perform(work())


@app.command()
def apply(as_json: AsJson = False) -> None:
    """Check the inventory, and say who follows it: every service reads it again by itself, so nothing is sent."""
    settings = Settings.from_environment()

    async def work() -> None:
        async with open_house(settings) as house:
            pools = await load_pools(settings)
            runners = await house.store.runners.alive(now=await house.store.clock.sync())
            stranded = [row.pool for row in await house.store.queues.list() if row.waiting and row.pool not in pools]
        following = [{"runner": row.name, "pools": sorted(row.pools)} for row in runners if row.pools]
        if as_json:
            facts = {"within_seconds": INVENTORY_SECONDS, "runners": following, "stranded": stranded}
            output.as_json({"pools": sorted(pools), **facts})
            return
        _say_checked({name: remarks(pool, pools) for name, pool in pools.items()})
        for name in stranded:
            output.say(f"{name}: tasks wait for it, and the inventory has no such pool any more")
        names = ", ".join(str(each["runner"]) for each in following) or "none that is alive"
        output.say(f"services that are given this inventory follow it within {INVENTORY_SECONDS:g} s; runners: {names}")

    perform(work())


@app.command()
def drain(
    pool: PoolName,
    because: Because = "",
    as_json: AsJson = False,
) -> None:
    """Destroy its ready machines and start no more tasks; those that run come to their end. Again is fine."""
    settings = Settings.from_environment()

    async def work() -> None:
        require_plain(because)
        async with open_house(settings) as house:
            await _known(house, pool)
            await house.store.queues.drain(pool, because, now=await house.store.clock.sync())
        _say(pool, "drained", f"pool {pool} is drained: its ready machines go, and nothing of it starts", as_json)

    perform(work())


@app.command()
def resume(pool: PoolName, as_json: AsJson = False) -> None:
    """Keep machines ready and start tasks again, where the pool was drained or its queue paused. Again is fine."""
    settings = Settings.from_environment()

    async def work() -> None:
        async with open_house(settings) as house:
            await _known(house, pool)
            await house.store.queues.resume(pool, now=await house.store.clock.sync())
        _say(pool, "resumed", f"pool {pool} is resumed", as_json)

    perform(work())


@app.command()
def rotate(pool: PoolName, as_json: AsJson = False) -> None:
    """Replace ready machines of another image version than the one that is used now. Those in use end as they do."""
    settings = Settings.from_environment()

    async def work() -> None:
        async with open_house(settings) as house:
            await _known(house, pool)
            await house.store.queues.rotate(pool, now=await house.store.clock.sync())
        told = f"pool {pool} is rotated: its ready machines of other image versions are replaced, one after the other"
        _say(pool, "rotated", told, as_json)

    perform(work())


async def _now(house: House) -> dict[str, tuple[Pool, dict[str, Any]]]:
    """Each pool, and what there is of it."""
    pools = await load_pools(house.settings)
    store, warms = house.store, {name: pool.warm for name, pool in pools.items()}
    now = await store.clock.sync()
    counts = await store.vms.counts()
    queues = {queue.pool: queue for queue in await store.queues.list()}
    launches = await store.vms.launches(since=now - quarantine.looks_back(warms.values()))
    # how many hosts there are, OpenNebula would have to be asked: those that launches were on will do
    hosts = len({launch.host for launch in launches if launch.host})
    aside = quarantine.of(launches, warms, now, hosts=hosts)
    versions = {(pools[each.pool].image, each.image_version) for each in launches if each.pool in pools}
    found = {}
    for name, pool in pools.items():
        own = aside.of_pool(name).versions
        why = {version: own[version] for image, version in sorted(versions) if image == pool.image and version in own}
        found[name] = pool, _there_is(pool, counts, queues.get(name), why)
    return found


def _there_is(
    pool: Pool, counts: tuple[VmCount, ...], queue: QueueRow | None, aside: Mapping[str, str]
) -> dict[str, Any]:
    """What the database knows of a pool, for JSON. aside: versions of its image that are in quarantine, and why."""
    ours = [each for each in counts if each.pool == pool.name]
    return {
        "ready": sum(each.count for each in ours if each.spare and each.state is VmState.READY),
        "launching": sum(
            each.count for each in ours if each.spare and each.state in (VmState.REQUESTED, VmState.BOOTING)
        ),
        "in_use": 0 if queue is None else queue.held,
        "waiting": 0 if queue is None else queue.waiting,
        "paused_at": None if queue is None else queue.paused_at,
        "paused_because": "" if queue is None else queue.paused_because,
        "drained_at": None if queue is None else queue.drained_at,
        "drained_because": "" if queue is None else queue.drained_because,
        "rotated_at": None if queue is None else queue.rotated_at,
        "quarantine": dict(aside),
    }


def _state(now: Mapping[str, Any]) -> str:
    """What is not as usual."""
    said = []
    if now["drained_at"]:
        said.append("drained" + (f": {now['drained_because']}" if now["drained_because"] else ""))
    elif now["paused_at"]:
        said.append("paused" + (f": {now['paused_because']}" if now["paused_because"] else ""))
    said += [f"{name} in quarantine" for name in now["quarantine"]]
    return "; ".join(said)


def _described(pool: Pool) -> dict[str, Any]:
    """As the inventory says it; lines of periods as they were written."""
    said = dataclasses.asdict(pool)
    for period in said["warm"]["periods"]:
        del period["times"]
    return said


async def _known(house: House, pool: str) -> None:
    """Raises NotFound unless the inventory has it."""
    pools = await load_pools(house.settings)
    if pool not in pools:
        raise NotFound("pool", f"no pool {pool!r}", f"there is {', '.join(sorted(pools))}")


def _say_checked(said: Mapping[str, list[str]]) -> None:
    for name, lines in said.items():
        output.say(f"{name}: in order")
        for line in lines:
            output.say(f"  {line}")


def _say(pool: str, state: str, told: str, as_json: bool) -> None:
    if as_json:
        output.as_json({"pool": pool, "state": state})
    else:
        output.say(told)
