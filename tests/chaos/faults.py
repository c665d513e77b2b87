"""What goes wrong, a function each: it does it, or says that there was no occasion (False), and nothing is counted."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

from orchestrator.domain.task import Stage
from orchestrator.localcloud import daemon
from tests.chaos.world import KNOBS, World

Fault = Callable[[World], Awaitable[bool]]

OCCASION_SECONDS = 4.0
"""How long a fault waits for a task to be at its stage."""

QUOTA = "user [0] limit of 1 reached for VMS quota in VM."

CALLS = (
    "one.template.instantiate",
    "one.vm.deploy",
    "one.vm.action",
    "one.vm.info",
    "one.vmpool.infoset",
    "one.vmpool.infoextended",
    "one.hostpool.info",
    "one.templatepool.info",
)


def kill_runner_at(stage: Stage) -> Fault:
    """kill -9 of the runner whose task is at this stage."""

    async def act(world: World) -> bool:
        give_up = asyncio.get_running_loop().time() + OCCASION_SECONDS
        while asyncio.get_running_loop().time() < give_up:
            found = await world.task_at(stage)
            if found is not None:
                found[1].kill()
                return True
            await asyncio.sleep(0.02)
        return False

    return act


async def kill_scheduler(world: World) -> bool:
    running = [service for service in world.schedulers if service.pid is not None]
    if running:
        world.rand.choice(running).kill()
    return bool(running)


async def freeze_runner(world: World) -> bool:
    """A runner stands still for longer than its lease, is given up for dead, and wakes up."""
    running = [service for service in world.runners if service.pid is not None]
    if not running:
        return False
    service = world.rand.choice(running)
    if not service.send(signal.SIGSTOP):
        return False
    await asyncio.sleep(world.scale.lease * 2.2)
    service.send(signal.SIGCONT)
    return True


async def drain_runner(world: World) -> bool:
    """SIGTERM, and soon after it another."""
    running = [service for service in world.runners if service.pid is not None]
    if not running:
        return False
    service = world.rand.choice(running)
    service.send(signal.SIGTERM)
    await asyncio.sleep(world.rand.uniform(0.1, 2.0))
    service.send(signal.SIGTERM)
    return True


async def jump_clock(world: World) -> bool:
    """The wall clock of one of our processes is minutes or hours off, for a while."""
    service = world.rand.choice(world.services)
    service.clock.jump(world.rand.choice((-1, 1)) * world.rand.uniform(60, 7200))
    await asyncio.sleep(world.rand.uniform(0.5, 3.0))
    service.clock.jump(0)
    return True


async def jump_database_clock(world: World) -> bool:
    """The database's clock, which everybody goes by, is minutes or hours off, for a while."""
    world.database_clock.jump(world.rand.choice((-1, 1)) * world.rand.uniform(60, 7200))
    await asyncio.sleep(world.rand.uniform(0.5, 3.0))
    world.database_clock.jump(0)
    return True


async def restart_database(world: World) -> bool:
    """The database ends at once, and is back after a while."""
    async with world.database_down:
        await asyncio.to_thread(world.rand.choice((world.database.stop, world.database.kill)))
        await asyncio.sleep(world.rand.uniform(0.1, 3.0))
        await asyncio.to_thread(world.database.start)
    return True


async def restart_cloud(world: World) -> bool:
    """kill -9 of the cloud's daemon; machines go on. It comes back with what it had written down."""
    async with world.cloud_down:
        running = daemon.status(world.cloud_home)
        if running is None or not world.owns_cloud:
            return False
        os.kill(running.pid, signal.SIGKILL)
        await asyncio.sleep(world.rand.uniform(0.1, 2.0))
        await asyncio.to_thread(daemon.start, world.cloud_home, world.scale.hypervisor, KNOBS)
    return True


def on_the_wire(kind: str, **settings: Any) -> Fault:
    """The next call of some method goes wrong in this way."""

    async def act(world: World) -> bool:
        await world.fault({"kind": kind, "method": world.rand.choice(CALLS), "times": 1, **settings})
        return True

    return act


async def late_reply(world: World) -> bool:
    seconds = round(world.rand.uniform(0.1, 12.0), 1)
    await world.fault({"kind": "delay", "method": world.rand.choice(CALLS), "times": 1, "seconds": seconds})
    return True


async def outage(world: World) -> bool:
    """For a while OpenNebula answers nobody, in one of the ways in which it does not."""
    how = world.rand.choice(("hang", "reset", "http_error", "garbage"))
    await world.fault({"kind": "outage", "how": how, "seconds": round(world.rand.uniform(0.5, 4.0), 1)})
    return True


async def drop_connections(world: World) -> bool:
    """Every SSH connection to every machine drops."""
    await world.fault({"kind": "drop_connections", "vm": "all"})
    return True


async def crash_machine(world: World) -> bool:
    """A machine goes off under its process, which may be run again in another."""
    found = await world.task_at(Stage.EXECUTING)
    if found is None:
        return False
    vms = [vm for vm in await world.house.store.vms.of_task(found[0].id) if vm.attempt == found[0].attempt]
    if not vms or vms[-1].cloud_id is None:
        return False
    world.harmed.add(vms[-1].cloud_id)
    await world.fault({"kind": "power_off", "vm": vms[-1].cloud_id})
    return True


async def fall_back(world: World) -> bool:
    """An accepted terminate comes to nothing."""
    await world.fault({"kind": "fall_back", "method": "terminate-hard", "times": 1})
    return True


async def stick(world: World) -> bool:
    """A terminated VM stays in SHUTDOWN until an administrator's recover."""
    await world.fault({"kind": "stick", "method": "terminate-hard", "times": 1})
    return True


async def stall_scheduler(world: World) -> bool:
    await world.fault({"kind": "stall_scheduler", "stalled": True})
    await asyncio.sleep(world.rand.uniform(0.5, 3.0))
    await world.fault({"kind": "stall_scheduler", "stalled": False})
    return True


STAGES = {f"kill -9 of a runner, {stage}": kill_runner_at(stage) for stage in Stage}

SIMULATED_FAULTS: dict[str, tuple[int, Fault]] = {
    **{name: (6, fault) for name, fault in STAGES.items()},
    "kill -9 of a scheduler": (8, kill_scheduler),
    "a runner frozen past its lease": (3, freeze_runner),
    "SIGTERM, and a second one": (3, drain_runner),
    "a wall clock jumps": (5, jump_clock),
    "the database's clock jumps": (2, jump_database_clock),
    "the database restarts": (3, restart_database),
    "kill -9 of the cloud's daemon": (2, restart_cloud),
    "a reply is lost": (10, on_the_wire("lose_reply")),
    "a reply is late": (5, late_reply),
    "a call is done twice": (8, on_the_wire("execute_twice")),
    "a connection to OpenNebula drops": (8, on_the_wire("drop_connection")),
    "OpenNebula says 500": (6, on_the_wire("http_error", status=500)),
    "OpenNebula refuses: internal error": (6, on_the_wire("fail", code=8192, text="[one] Internal error.")),
    "OpenNebula refuses: quota": (
        4,
        on_the_wire("fail", code=512, text=QUOTA),
    ),
    "a reply is garbage": (4, on_the_wire("garble", how="cut")),
    "OpenNebula is gone": (4, outage),
    "SSH connections drop": (10, drop_connections),
    "a machine goes off under its process": (4, crash_machine),
    "terminate falls back": (4, fall_back),
    "a VM sticks in SHUTDOWN": (2, stick),
    "OpenNebula's scheduler stalls": (2, stall_scheduler),
}
"""Name → how often it is drawn, relative to the others, and the fault."""

REAL_FAULTS: dict[str, tuple[int, Fault]] = {
    **{name: (4, fault) for name, fault in STAGES.items()},
    "kill -9 of a scheduler": (2, kill_scheduler),
    "a runner frozen past its lease": (2, freeze_runner),
    "a wall clock jumps": (2, jump_clock),
    "the database restarts": (2, restart_database),
}
