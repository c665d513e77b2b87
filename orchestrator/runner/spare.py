"""A machine that is for no task yet: launched, reached, checked, sealed, armed, and held with its connection open."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from orchestrator.decide.warm import Ready, build_of
from orchestrator.domain.pool import STEPS_SECONDS, Pool
from orchestrator.domain.task import TraceProfile
from orchestrator.domain.vm import VmState
from orchestrator.guest import TRACE_PATH, Arming, Guest, require, require_sealed
from orchestrator.opennebula import ImageVersion
from orchestrator.runner.launching import Order, ask_for, boot, connect
from orchestrator.runner.machine import Machine, move, watched
from orchestrator.runner.sealing import look_again, look_from_outside, require_holds, told_of_profile
from orchestrator.runner.tellable import probed, told_by, told_of_image
from orchestrator.runner.tools import Tools
from orchestrator.trace.command import traced

_numbers = itertools.count(1)


@dataclass(eq=False, slots=True)
class Spare:
    """One of ours. `order`: what was asked for; `machine`: as soon as there may be one. `guest`: its connection, once
    it is ready, since `ready_at`; `told`: what people are told of it then. `around`: what goes on beside it. `busy`:
    it is being checked, or offered to a claim. `name`: while it has no id."""

    order: Order
    image_version: str
    asked_at: datetime
    name: str = field(default_factory=lambda: f"launch-{next(_numbers)}")
    machine: Machine | None = None
    guest: Guest | None = None
    ready_at: datetime | None = None
    told: dict[str, Any] = field(default_factory=dict)
    around: AsyncExitStack = field(default_factory=AsyncExitStack)
    work: asyncio.Task[None] | None = None
    busy: bool = False
    doubtful: bool = False
    leaving: str = ""

    @property
    def is_fit(self) -> bool:
        """A task may have it."""
        if self.machine is None or self.guest is None or self.ready_at is None or self.machine.gone.is_set():
            return False
        return self.guest.armed and self.guest.connected and not (self.busy or self.doubtful or self.leaving)

    @property
    def pool(self) -> Pool:
        """As it was when it was asked for."""
        return self.order.pool

    @property
    def id(self) -> str:
        """Its row's id, once there is a row."""
        return self.order.vm_id or self.name

    def facts(self) -> Ready:
        """As `decide.warm` sees it."""
        return Ready(
            self.id,
            self.image_version,
            since=self.ready_at or self.asked_at,
            host=self.order.host,
            build=build_of(self.pool),
            asked_at=self.asked_at,
        )

    def has(self, machine: Machine) -> None:
        """There may be a machine now."""
        self.machine = machine


async def make_ready(spare: Spare, image: ImageVersion, tools: Tools) -> None:
    """From nothing to READY. What goes on beside it is in `spare.around`, also when this fails. Raises what the cloud
    and the guest do, NoRoom, LeaseLost."""
    order, pool = spare.order, spare.pool
    machine = await ask_for(order, image, tools, spare.has)
    await boot(machine, order, tools)
    await spare.around.enter_async_context(watched(machine, tools))
    guest = await connect(machine, pool, tools)
    spare.around.push_async_callback(guest.close)
    facts, probes = await guest.make_ready(arming_of(pool), extra=tools.forbidden)
    now = tools.store.clock.now()
    spare.told = told_of_image(image) | told_by(facts) | probed(probes, at=now) | told_of_profile(pool.seal)
    require(facts)
    require_sealed(probes)
    if pool.seal.closed:
        spare.told |= await look_from_outside(pool.seal, machine, pool, tools)
        require_holds(spare.told)
    order.is_fit()
    await move(machine, VmState.READY, tools, now + timedelta(seconds=_stays(pool)), address=machine.address)
    spare.guest, spare.ready_at = guest, now
    spare.told |= {"ready": True, "ready_since": now.isoformat(), "launch_seconds": round(order.seconds or 0.0, 3)}


async def probe_again(spare: Spare, tools: Tools) -> None:
    """See that it is still sealed, from inside and from outside: what opens its network may reach machines that run.
    Raises what the guest does, and CloudError."""
    if spare.guest is None or spare.machine is None:
        raise AssertionError("a machine was probed that is not ready")
    if not spare.pool.seal.closed:
        return
    outside = await look_again(spare.pool.seal, spare.machine, spare.pool, tools)
    spare.told |= outside
    require_holds(outside)
    probes = await spare.guest.probe_seal(tools.forbidden)
    spare.told |= probed(probes, at=tools.store.clock.now())
    require_sealed(probes)


def arming_of(pool: Pool) -> Arming:
    """What the pool's tasks run in, unless they say otherwise."""
    return Arming(
        memory_bytes=pool.process_memory_bytes,
        processes=pool.max_processes,
        trace=traced(TraceProfile.AUDIT, output=TRACE_PATH),
        kill_grace_seconds=pool.kill_grace_seconds,
        seal=pool.seal,
        output_bytes=pool.max_output_bytes,
        scratch_bytes=pool.max_scratch_bytes,
    )


def _stays(pool: Pool) -> float:
    """How long upkeep leaves it alone: until it is too old, and another had time to come up in its place."""
    launch = pool.launch_timeout_seconds + pool.boot_timeout_seconds + 2 * STEPS_SECONDS
    return pool.warm.max_ready_age_seconds + launch
