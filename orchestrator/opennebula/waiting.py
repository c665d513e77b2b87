"""Waiting for a VM: until it runs, until it is gone. Fed by the watch, see `watch`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import assert_never

from orchestrator.domain.errors import CloudError, CloudMissing, ProvisionFailed
from orchestrator.opennebula.avoiding import LIFTED_AFTER_SECONDS
from orchestrator.opennebula.client import Client
from orchestrator.opennebula.objects import CloudVm
from orchestrator.opennebula.sights import Sight
from orchestrator.opennebula.states import LcmState, Phase, State
from orchestrator.opennebula.watch import Watch

log = logging.getLogger(__name__)

_NOBODY_COULD_ASK = "in a state that nobody could ask for"
_PAUSE_SECONDS = 5.0
"""How long a wait sleeps at most without looking at what it has."""
_LOOK_SECONDS = 5.0
"""How long a reason may be asked for once the wait is over."""


async def until_running(
    client: Client,
    watch: Watch,
    vm_id: int,
    within: float,
    on_change: Callable[[Sight], None] | None,
    lift: Callable[[int], Awaitable[None]],
) -> Sight:
    """See `Cloud.wait_running`. lift: called once when the VM has no host yet after as long as a scheduler needs."""
    deadline = time.monotonic() + within
    lift_at = time.monotonic() + LIFTED_AFTER_SECONDS
    told = ""
    with watch.waiting(vm_id, urgent=True) as waiter:
        while True:
            if waiter.denied is not None:
                raise waiter.denied
            if waiter.latest is not None:
                sight = waiter.latest.sight
                if sight is None:
                    raise CloudMissing(f"OpenNebula knows no VM {vm_id}")
                if on_change and sight.state_name != told:
                    on_change(sight)
                told = sight.state_name
                match sight.phase:
                    case Phase.RUNNING:
                        return sight if sight.address else Sight.of(await _whole(client, vm_id))
                    case Phase.FAILED | Phase.OFF | Phase.DONE:
                        why, error = await _why(client, vm_id, sight)
                        raise ProvisionFailed(f"VM {vm_id} will not run, it is {why}", evidence=error)
                    case Phase.WAITING if time.monotonic() >= lift_at:
                        lift_at = float("inf")
                        await lift(vm_id)
                    case Phase.WAITING | Phase.STARTING | Phase.BUSY | Phase.STOPPING | Phase.UNKNOWN:
                        pass
                    case _:
                        assert_never(sight.phase)
            left = deadline - time.monotonic()
            if left <= 0:
                why = await _late(client, vm_id, waiter.latest.sight if waiter.latest else None)
                raise ProvisionFailed(f"VM {vm_id} is not RUNNING after {within:g} s, it is {why}")
            await waiter.changed(min(left, _PAUSE_SECONDS))


async def until_gone(watch: Watch, vm_id: int) -> Sight:
    """See `Cloud.until_gone`."""
    with watch.waiting(vm_id, urgent=False, recent=True) as waiter:
        while True:
            if waiter.latest is not None:
                sight = waiter.latest.sight
                if sight is None:
                    return Sight(vm_id, "", State.DONE, LcmState.LCM_INIT, None, None)
                if sight.phase in (Phase.OFF, Phase.FAILED, Phase.DONE):
                    return sight
            await waiter.changed(_PAUSE_SECONDS)


async def _whole(client: Client, vm_id: int) -> CloudVm:
    return CloudVm.read(await client.ask("vm.info", vm_id))


async def _why(client: Client, vm_id: int, sight: Sight) -> tuple[str, str]:
    """The state with OpenNebula's reason for it, which only the whole body has; and its error text alone."""
    try:
        async with asyncio.timeout(_LOOK_SECONDS):
            vm = CloudVm.read(await client.once("vm.info", vm_id))
    except (CloudError, TimeoutError) as trouble:
        log.warning("VM %d is %s; why cannot be asked: %s", vm_id, sight.state_name, trouble)
        return sight.state_name, ""
    return vm.why, vm.error


async def _late(client: Client, vm_id: int, sight: Sight | None) -> str:
    """What to say of a VM that did not come to run in time."""
    if sight is None:
        return _NOBODY_COULD_ASK
    return (await _why(client, vm_id, sight))[0]
