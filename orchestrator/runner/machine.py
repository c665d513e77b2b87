"""The attempt's machine: asked for, booted, and destroyed until OpenNebula says DONE.

Intent before act: the row is written first, its id goes into the VM's USER_TEMPLATE, and only then is the VM asked for.
A runner that dies between the two leaves something that can be found by its tag. A machine is ended by us only if its
row says that it is ours: whoever adopts an attempt takes the row.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

from orchestrator.domain.errors import (
    CloudError,
    CloudUnreachable,
    ConnectionLost,
    MayflyError,
    ProvisionFailed,
    UserError,
)
from orchestrator.domain.task import Stage
from orchestrator.domain.vm import VmState
from orchestrator.guest.keys import KeyPair, make_key
from orchestrator.opennebula import ImageVersion
from orchestrator.opennebula import VmRequest as CloudRequest
from orchestrator.runner.beside import beside
from orchestrator.runner.lease import LeaseLost
from orchestrator.runner.patience import TROUBLE, back_off, persist, see_through
from orchestrator.runner.progress import Progress
from orchestrator.runner.tools import Tools
from orchestrator.store import VmMoved, VmRequest, VmRow

DESTROY_SECONDS = 120.0
"""How long one attempt waits for DONE. What is not gone by then stays DESTROYING, and upkeep goes on with it."""

MAKE_SECONDS = 10.0
"""How long a runner that is stopped at once waits for a VM that it has asked for, so as to destroy it."""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


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


async def provision(tools: Tools, progress: Progress, has: Callable[[Machine], None]) -> Machine:
    """Ask for a fresh VM; return when OpenNebula has taken it on. `has` is told as soon as there is one. Not given up
    in the middle: that would leave a VM."""
    image = await progress.during(Stage.PROVISIONING, _image(tools, progress))
    return await see_through(_make(image, tools, progress, has), seconds=MAKE_SECONDS)


async def _image(tools: Tools, progress: Progress) -> ImageVersion:
    pool = progress.pool
    return await _answered(lambda: tools.cloud.promoted(pool.image), within=pool.launch_timeout_seconds)


async def _make(image: ImageVersion, tools: Tools, progress: Progress, has: Callable[[Machine], None]) -> Machine:
    key = make_key(f"{progress.lease.task_id}.{progress.lease.attempt}")
    row = await _row_of(image, key, tools, progress)
    try:
        cloud_id = await tools.cloud.instantiate(image.template_id, _request(tools, progress, row.id, key))
    except CloudUnreachable:
        raise  # it may exist or not: the row stays open, and upkeep settles it by the tag
    except (CloudError, UserError) as refusal:
        await _close_refused(row.id, tools, progress, refusal, has)
        raise
    machine = Machine(row.id, cloud_id, key.public)
    progress.placed = True
    has(machine)
    if not await persist(lambda: tools.store.vms.set_cloud_id(row.id, cloud_id, now=progress.now()), "the VM's id"):
        await _settle(machine, tools)
    _log.info("vm %s is OpenNebula's %d", row.id, machine.cloud_id)
    return machine


async def _row_of(image: ImageVersion, key: KeyPair, tools: Tools, progress: Progress) -> VmRow:
    wanted = VmRequest(
        pool=progress.pool.name,
        image_version=image.template_name,
        runner_id=tools.runner_id,
        deadline_at=_in(progress, progress.pool.launch_timeout_seconds),
        lease=progress.lease,
        host_key=key.fingerprint,
        host_public_key=key.public,
    )
    row = await persist(lambda: tools.store.vms.request(wanted, now=progress.now()), "the VM's row")
    if row is not None:
        return row
    rows = await persist(lambda: tools.store.vms.of_task(progress.lease.task_id), "reading the VM's row")
    written = [row for row in rows if row.host_public_key == key.public and row.state is VmState.REQUESTED]
    if not written:
        raise LeaseLost
    return written[0]  # the acknowledgement was lost


async def _settle(machine: Machine, tools: Tools) -> None:
    """Upkeep has settled the row while OpenNebula made the VM. If it found another with our tag, that one it is, and
    ours is an orphan; if it gave the row up, ours is ended, for the attempt is not ours any more."""
    row = await persist(lambda: tools.store.vms.get(machine.vm_id), "reading the VM's row")
    if row is not None and row.state is not VmState.DESTROYED and row.cloud_id is not None:
        machine.cloud_id = row.cloud_id
        return
    await tools.cloud.terminate(machine.cloud_id, within=DESTROY_SECONDS)
    raise LeaseLost


async def boot(machine: Machine, tools: Tools, progress: Progress) -> None:
    """Wait until OpenNebula says RUNNING; it has an address then, at which nothing answers yet."""
    pool = progress.pool
    await _move(
        machine,
        tools,
        progress,
        VmState.BOOTING,
        _in(progress, pool.launch_timeout_seconds + pool.boot_timeout_seconds),
    )
    running = await tools.cloud.wait_running(machine.cloud_id, within=pool.launch_timeout_seconds)
    if running.host:
        machine.host = running.host
        await progress.record_host(running.host)
    if running.address is None:
        raise ProvisionFailed(f"VM {machine.cloud_id} has no NIC with an address: see the pool's network")
    machine.address = running.address


@asynccontextmanager
async def watched(machine: Machine, tools: Tools) -> AsyncIterator[None]:
    """Inside the block OpenNebula is asked about the machine: it may know of its end before SSH does."""

    async def watch() -> None:
        seen = await tools.cloud.until_gone(machine.cloud_id)
        _log.warning("OpenNebula says of VM %d: %s", machine.cloud_id, seen.state_name)
        machine.gone.set()

    async with beside(watch(), "watch the machine"):
        yield


async def ready(machine: Machine, tools: Tools, progress: Progress) -> None:
    """It was reached and is fit: from here on it is this attempt's, and will never be anybody else's."""
    await _move(machine, tools, progress, VmState.READY, _in(progress, 60), address=machine.address)
    await _move(machine, tools, progress, VmState.IN_USE, progress.ends_at)


async def adopted(tools: Tools, progress: Progress) -> Machine:
    """The machine of an attempt that we took over. Raises ConnectionLost when there is none to be reached."""
    lease = progress.lease
    rows = await persist(lambda: tools.store.vms.of_task(lease.task_id), "reading the VM's row")
    for row in rows:
        if row.attempt == lease.attempt and row.runner_id == tools.runner_id and row.cloud_id is not None:
            return Machine(row.id, row.cloud_id, row.host_public_key or "", row.address or "", row.host or "")
    raise ConnectionLost("the attempt has no machine any more")


async def destroy(machine: Machine, tools: Tools, progress: Progress) -> bool:
    """End the VM and close its row on proof. False: it is not gone yet, and upkeep goes on with it; or it is not ours
    to end. Raises nothing that an outage makes."""
    with suppress(LeaseLost):  # whether the machine is ours, its own row says
        await progress.enter(Stage.DESTROYING)
    moved = VmMoved(machine.vm_id, VmState.DESTROYING, tools.runner_id, deadline_at=_in(progress, DESTROY_SECONDS))
    if not await persist(lambda: tools.store.vms.move(moved, now=progress.now()), "the VM's end"):
        row = await persist(lambda: tools.store.vms.get(machine.vm_id), "reading the VM's row")
        if row is None or row.state is VmState.DESTROYED:
            return True
        if row.runner_id != tools.runner_id or row.state is not VmState.DESTROYING:
            _log.warning("VM %d is another runner's now, and is left alone", machine.cloud_id)
            return False
    try:
        await tools.cloud.terminate(machine.cloud_id, within=DESTROY_SECONDS)
    except TROUBLE as trouble:
        _log.warning("VM %d is not gone yet, upkeep goes on with it: %s", machine.cloud_id, trouble)
        return False
    return await _close(tools, progress, machine.vm_id, f"OpenNebula says DONE of VM {machine.cloud_id}")


async def _close_refused(
    vm_id: str, tools: Tools, progress: Progress, refusal: MayflyError, has: Callable[[Machine], None]
) -> None:
    """Close the row of a VM that OpenNebula would not make. What it made before it refused (to place it, say) is found
    by its tag, and is a machine to be ended; what cannot be told now, upkeep will find."""
    try:
        ours = await tools.cloud.vms(tools.store.installation_id)
    except CloudError as trouble:
        _log.warning("whether there is a VM %s all the same cannot be asked: %s", vm_id, trouble)
        return
    made = [vm.id for vm in ours if vm.tags.get("MAYFLY_VM") == vm_id]
    if not made:
        proof = f"OpenNebula lists no VM tagged so, and refused to make it: {refusal}"
        await _close(tools, progress, vm_id, proof)
        return
    await persist(lambda: tools.store.vms.set_cloud_id(vm_id, made[0], now=progress.now()), "the VM's id")
    has(Machine(vm_id, made[0], ""))


def _request(tools: Tools, progress: Progress, vm_id: str, key: KeyPair) -> CloudRequest:
    pool = progress.pool
    name = f"mayfly-{progress.lease.task_id}-{progress.lease.attempt}"
    return CloudRequest(
        name=name,
        cpus=pool.cpus,
        memory_bytes=pool.memory_bytes,
        network=pool.network,
        context={
            "NETWORK": "YES",
            "SET_HOSTNAME": name,
            "SSH_PUBLIC_KEY": tools.client_key.public,
            "MAYFLY_HOST_KEY_BASE64": key.private_base64,
        },
        tags={
            "MAYFLY_INSTALLATION": tools.store.installation_id,
            "MAYFLY_VM": vm_id,
            "MAYFLY_TASK": progress.lease.task_id,
            "MAYFLY_ATTEMPT": str(progress.lease.attempt),
        },
        avoid_hosts=progress.task.avoid,
    )


async def _move(
    machine: Machine,
    tools: Tools,
    progress: Progress,
    state: VmState,
    deadline_at: datetime,
    *,
    address: str | None = None,
) -> None:
    """Raises LeaseLost when the row has moved on without us: the machine is not ours to use."""
    moved = VmMoved(machine.vm_id, state, tools.runner_id, deadline_at=deadline_at, address=address)
    if not await persist(lambda: tools.store.vms.move(moved, now=progress.now()), f"the VM as {state}"):
        row = await persist(lambda: tools.store.vms.get(machine.vm_id), "reading the VM's row")
        if row is None or row.state is not state or row.runner_id != tools.runner_id:
            _log.warning("vm %s could not become %s: its row has moved on", machine.vm_id, state)
            raise LeaseLost


async def _close(tools: Tools, progress: Progress, vm_id: str, proof: str) -> bool:
    moved = VmMoved(vm_id, VmState.DESTROYED, tools.runner_id, close_proof=proof)
    if await persist(lambda: tools.store.vms.move(moved, now=progress.now()), "that the VM is gone"):
        return True
    row = await persist(lambda: tools.store.vms.get(vm_id), "reading the VM's row")
    return row is None or row.state is VmState.DESTROYED


async def _answered(ask: Callable[[], Awaitable[_T]], *, within: float) -> _T:
    """OpenNebula's answer, asked again with back-off while there is none. Raises CloudUnreachable after `within`."""
    loop = asyncio.get_running_loop()
    until = loop.time() + within
    for pause in back_off():
        try:
            return await ask()
        except CloudUnreachable as trouble:
            if loop.time() + pause > until:
                raise
            _log.info("OpenNebula is asked again: %s", trouble)
        await asyncio.sleep(pause)
    raise AssertionError("back_off never ends")


def _in(progress: Progress, seconds: float) -> datetime:
    return progress.now() + timedelta(seconds=seconds)
