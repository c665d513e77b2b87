"""A machine of ours: watched, moved from state to state, and destroyed until OpenNebula says DONE.

It is ended by us only if its row says that it is ours: whoever adopts an attempt takes the row.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from orchestrator.domain.errors import ConnectionLost
from orchestrator.domain.proof import CloseProof
from orchestrator.domain.vm import VmState
from orchestrator.runner.beside import beside
from orchestrator.runner.lease import LeaseLost
from orchestrator.runner.patience import persist
from orchestrator.runner.tools import Tools
from orchestrator.store import Lease, VmMoved
from orchestrator.trouble import TROUBLE

DESTROY_SECONDS = 120.0
"""How long DONE is waited for. What is not gone by then stays DESTROYING, and upkeep goes on with it."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Machine:
    """A VM of ours: `vm_id` is the row's, `cloud_id` OpenNebula's; `host_key` the public line that it must show; `host`
    where it runs, once that is known; `gone` is set when OpenNebula says that it is off, failed or gone."""

    vm_id: str
    cloud_id: int
    host_key: str
    address: str = ""
    host: str = ""
    gone: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def watched(machine: Machine, tools: Tools) -> AsyncIterator[None]:
    """Inside the block OpenNebula is asked about the machine: it may know of its end before SSH does."""

    async def watch() -> None:
        seen = await tools.cloud.until_gone(machine.cloud_id)
        _log.warning("OpenNebula says of VM %d: %s", machine.cloud_id, seen.state_name)
        machine.gone.set()

    async with beside(watch(), "watch the machine"):
        yield


async def adopted(lease: Lease, tools: Tools) -> Machine:
    """The machine of an attempt that we took over. Raises ConnectionLost when there is none to be reached."""
    rows = await persist(lambda: tools.store.vms.of_task(lease.task_id), "reading the VM's row")
    for row in rows:
        if row.attempt == lease.attempt and row.runner_id == tools.runner_id and row.cloud_id is not None:
            return Machine(row.id, row.cloud_id, row.host_public_key or "", row.address or "", row.host or "")
    raise ConnectionLost("the attempt has no machine any more")


async def move(
    machine: Machine, state: VmState, tools: Tools, deadline_at: datetime, *, address: str | None = None
) -> None:
    """Raises LeaseLost when the row has moved on without us: the machine is not ours to use."""
    moved = VmMoved(machine.vm_id, state, tools.runner_id, deadline_at=deadline_at, address=address)
    if not await persist(lambda: tools.store.vms.move(moved, now=tools.store.clock.now()), f"the VM as {state}"):
        row = await persist(lambda: tools.store.vms.get(machine.vm_id), "reading the VM's row")
        if row is None or row.state is not state or row.runner_id != tools.runner_id:
            _log.warning("vm %s could not become %s: its row has moved on", machine.vm_id, state)
            raise LeaseLost


async def destroy(machine: Machine, tools: Tools, *, because: str = "", if_spare: bool = False) -> bool:
    """End the VM and close its row on proof. False: it is not gone yet, and upkeep goes on with it; or it is not ours
    to end. if_spare: only if it is for no attempt. Raises nothing that an outage makes."""
    clock = tools.store.clock
    until = clock.now() + timedelta(seconds=DESTROY_SECONDS)
    moved = VmMoved(
        machine.vm_id, VmState.DESTROYING, tools.runner_id, deadline_at=until, because=because, if_spare=if_spare
    )
    if not await persist(lambda: tools.store.vms.move(moved, now=clock.now()), "the VM's end"):
        row = await persist(lambda: tools.store.vms.get(machine.vm_id), "reading the VM's row")
        if row is None or row.state is VmState.DESTROYED:
            return True
        if row.runner_id != tools.runner_id or row.state is not VmState.DESTROYING:
            _log.warning("VM %d is for somebody else now, and is left alone", machine.cloud_id)
            return False
    try:
        proof = await tools.cloud.terminate(machine.cloud_id, within=DESTROY_SECONDS)
    except TROUBLE as trouble:
        _log.warning("VM %d is not gone yet, upkeep goes on with it: %s", machine.cloud_id, trouble)
        return False
    return await close(machine.vm_id, tools, proof)


async def close(vm_id: str, tools: Tools, proof: CloseProof) -> bool:
    """Write down that a VM is gone. False: its row is not closed."""
    moved = VmMoved(vm_id, VmState.DESTROYED, tools.runner_id, close_proof=proof.encode(), because=proof.text)
    if await persist(lambda: tools.store.vms.move(moved, now=tools.store.clock.now()), "that the VM is gone"):
        return True
    row = await persist(lambda: tools.store.vms.get(vm_id), "reading the VM's row")
    return row is None or row.state is VmState.DESTROYED
