"""The attempt's machine: asked for, booted, and destroyed until OpenNebula says DONE.

Intent before act: the row is written first, its id goes into the VM's USER_TEMPLATE, and only then is the VM asked for.
A runner that dies between the two leaves something that can be found by its tag.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from sqlalchemy.exc import SQLAlchemyError

from orchestrator.domain.errors import CloudError, CloudUnreachable, MayflyError, ProvisionFailed, UserError
from orchestrator.domain.pool import Pool
from orchestrator.domain.task import Stage
from orchestrator.domain.vm import VmState
from orchestrator.guest.keys import KeyPair, make_key
from orchestrator.opennebula import Phase
from orchestrator.opennebula import VmRequest as CloudRequest
from orchestrator.runner.beside import beside
from orchestrator.runner.lease import LeaseLost
from orchestrator.runner.progress import Progress
from orchestrator.runner.tools import Tools
from orchestrator.store import VmMoved, VmRequest

DESTROY_SECONDS = 120.0
"""How long one attempt waits for DONE. What is not gone by then stays DESTROYING, and upkeep goes on with it."""

WATCH_SECONDS = 2.0
"""How often OpenNebula is asked about a machine that we talk to anyway."""

_TROUBLE = (MayflyError, SQLAlchemyError, OSError)

_GONE = frozenset({Phase.OFF, Phase.FAILED, Phase.DONE})

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Machine:
    """A VM of ours: `vm_id` is the row's, `cloud_id` OpenNebula's; `host_key` the public line that it must
    show; `gone` is set when OpenNebula says that it is off, failed or gone."""

    vm_id: str
    cloud_id: int
    pool: Pool
    host_key: str
    gone: asyncio.Event = field(default_factory=asyncio.Event)


async def provision(tools: Tools, pool: Pool, progress: Progress) -> Machine:
    """Ask for a fresh VM; return when OpenNebula has taken it on. Not given up in the middle: that would leave a VM."""
    await progress.enter(Stage.PROVISIONING)
    image = await tools.cloud.promoted(pool.image)
    key = make_key(f"{progress.lease.task_id}.{progress.lease.attempt}")
    row = await tools.store.vms.request(
        VmRequest(
            pool=pool.name,
            image_version=image.template_name,
            runner_id=tools.runner_id,
            deadline_at=_in(pool.launch_timeout_seconds),
            lease=progress.lease,
            host_key=key.fingerprint,
        ),
        now=datetime.now(UTC),
    )
    if row is None:
        raise LeaseLost
    try:
        cloud_id = await tools.cloud.instantiate(image.template_id, _request(tools, pool, progress, row.id, key))
    except CloudUnreachable:
        raise  # it may exist or not: the row stays open, and upkeep settles it by the tag
    except (CloudError, UserError) as refusal:
        await _close_refused(row.id, tools, pool, progress, refusal)
        raise
    await tools.store.vms.set_cloud_id(row.id, cloud_id, now=datetime.now(UTC))
    _log.info("vm %s is OpenNebula's %d", row.id, cloud_id)
    return Machine(row.id, cloud_id, pool, key.public)


async def boot(machine: Machine, tools: Tools) -> str:
    """Wait until OpenNebula says RUNNING; return the address, at which nothing answers yet."""
    await _move(
        machine, tools, VmState.BOOTING, machine.pool.launch_timeout_seconds + machine.pool.boot_timeout_seconds
    )
    running = await tools.cloud.wait_running(machine.cloud_id, within=machine.pool.launch_timeout_seconds)
    if running.address is None:
        raise ProvisionFailed(f"VM {machine.cloud_id} has no NIC with an address: see the pool's network")
    return running.address


@asynccontextmanager
async def watched(machine: Machine, tools: Tools) -> AsyncIterator[None]:
    """Inside the block OpenNebula is asked about the machine: it may know of its end before SSH does."""

    async def watch() -> None:
        while not machine.gone.is_set():
            await asyncio.sleep(WATCH_SECONDS)
            try:
                seen = await tools.cloud.vm(machine.cloud_id)
            except CloudError as trouble:
                _log.info("cannot ask about VM %d: %s", machine.cloud_id, trouble)
                continue
            if seen.phase in _GONE:
                _log.warning("OpenNebula says of VM %d: %s", machine.cloud_id, seen.why)
                machine.gone.set()

    async with beside(watch(), "watch the machine"):
        yield


async def ready(machine: Machine, tools: Tools, address: str) -> None:
    """It was reached and is fit: from here on it is this attempt's, and will never be anybody else's."""
    await _move(machine, tools, VmState.READY, 60, address=address)
    await _move(machine, tools, VmState.IN_USE, machine.pool.max_timeout_seconds + machine.pool.boot_timeout_seconds)


async def destroy(machine: Machine, tools: Tools, progress: Progress) -> None:
    """End the VM and close its row on proof. Called on every way out; never raises: what fails is left to upkeep."""
    try:
        with suppress(LeaseLost):  # the machine is ours to destroy all the same
            if not progress.hold.lost.is_set():
                await progress.enter(Stage.DESTROYING)
        await _move(machine, tools, VmState.DESTROYING, DESTROY_SECONDS)
    except _TROUBLE as trouble:
        _log.warning("VM %d is destroyed, though that could not be written down: %s", machine.cloud_id, trouble)
    try:
        await tools.cloud.terminate(machine.cloud_id, within=DESTROY_SECONDS)
        await _close(tools, machine.vm_id, f"OpenNebula says DONE of VM {machine.cloud_id}")
    except _TROUBLE as trouble:
        _log.warning("VM %d is not gone yet, upkeep goes on with it: %s", machine.cloud_id, trouble)


async def _close_refused(vm_id: str, tools: Tools, pool: Pool, progress: Progress, refusal: MayflyError) -> None:
    """Close the row of a VM that OpenNebula would not make. What it made before it refused (to place it, say) is found
    by its tag, and destroyed; what cannot be told now, upkeep will find."""
    try:
        ours = await tools.cloud.vms(tools.store.installation_id)
    except CloudError as trouble:
        _log.warning("whether there is a VM %s all the same cannot be asked: %s", vm_id, trouble)
        return
    made = [vm.id for vm in ours if vm.tags.get("MAYFLY_VM") == vm_id]
    if not made:
        await _close(tools, vm_id, f"OpenNebula lists no VM tagged so, and refused to make it: {refusal}")
        return
    await tools.store.vms.set_cloud_id(vm_id, made[0], now=datetime.now(UTC))
    await destroy(Machine(vm_id, made[0], pool, ""), tools, progress)


def _request(tools: Tools, pool: Pool, progress: Progress, vm_id: str, key: KeyPair) -> CloudRequest:
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
    )


async def _move(machine: Machine, tools: Tools, state: VmState, seconds: float, address: str | None = None) -> None:
    moved = VmMoved(machine.vm_id, state, tools.runner_id, deadline_at=_in(seconds), address=address)
    if not await tools.store.vms.move(moved, now=datetime.now(UTC)):
        _log.warning("vm %s could not become %s: its row has moved on", machine.vm_id, state)


async def _close(tools: Tools, vm_id: str, proof: str) -> None:
    await tools.store.vms.move(
        VmMoved(vm_id, VmState.DESTROYED, tools.runner_id, close_proof=proof), now=datetime.now(UTC)
    )


def _in(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)
