"""A machine, from nothing to an open connection: asked for, booted, reached. For an attempt, or for none yet.

Intent before act: the row is written first, its id goes into the VM's USER_TEMPLATE, and only then is the VM asked for.
A runner that dies between the two leaves something that can be found by its tag.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

from orchestrator.decide.quarantine import Quarantine
from orchestrator.domain.errors import (
    CloudDenied,
    CloudError,
    CloudUnreachable,
    GuestError,
    MayflyError,
    NotDestroyed,
    ProvisionFailed,
    Unreachable,
    UserError,
)
from orchestrator.domain.pool import Pool
from orchestrator.domain.proof import CloseProof
from orchestrator.domain.vm import VmState
from orchestrator.guest import Guest
from orchestrator.guest import connect as connect_guest
from orchestrator.guest.keys import KeyPair, make_key
from orchestrator.opennebula import ImageVersion, Sight
from orchestrator.opennebula import VmRequest as CloudRequest
from orchestrator.runner.lease import LeaseLost
from orchestrator.runner.machine import DESTROY_SECONDS, Machine, close, move
from orchestrator.runner.patience import back_off, persist, see_through
from orchestrator.runner.tools import Tools
from orchestrator.runner.versions import usable
from orchestrator.store import Lease, VmRequest, VmRow

MAKE_SECONDS = 10.0
"""How long a runner that is stopped at once waits for a VM that it has asked for, so as to destroy it."""

RECONNECT_SECONDS = 120.0
"""How long a connection that dropped, or that another runner had, may take to come back. A VM that is gone OpenNebula
tells of sooner; one that its network has lost may come back."""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class NoRoom(Exception):
    """The pool has as many machines as it may have, counted by the database."""


@dataclass(eq=False, slots=True)
class Order:
    """A machine that is wanted, and what has become of that: for the attempt `lease`, else as a spare. `avoid`: hosts
    to take only for want of another. `max_vms`: a spare is one of so many. `vm_id`: its row's, once that is written;
    `host`: where it is, once that is known; `seconds`: what it took until it was fit."""

    pool: Pool
    lease: Lease | None = None
    avoid: Collection[str] = ()
    max_vms: int | None = None
    vm_id: str = ""
    host: str = ""
    seconds: float | None = None
    began: float = field(default_factory=time.monotonic)

    @property
    def whose(self) -> str:
        """For whom it is, as its key is called."""
        return "spare" if self.lease is None else f"{self.lease.task_id}.{self.lease.attempt}"

    def is_fit(self) -> None:
        """It was reached and checked."""
        self.seconds = time.monotonic() - self.began


async def image_for(pool: Pool, tools: Tools, aside: Quarantine) -> ImageVersion:
    """The version of the pool's base image that a task gets now. Raises CloudUnreachable, NotFound."""
    return (await answered(lambda: usable(pool, tools, aside), within=pool.launch_timeout_seconds)).image


async def ask_for(order: Order, image: ImageVersion, tools: Tools, has: Callable[[Machine], None]) -> Machine:
    """Ask for a fresh VM; return when OpenNebula has taken it on. `has` is told as soon as there is one. Not given up
    in the middle: that would leave a VM. Raises LeaseLost when the order's attempt is not ours any more, NoRoom."""
    return await see_through(_make(order, image, tools, has), seconds=MAKE_SECONDS)


async def boot(machine: Machine, order: Order, tools: Tools) -> None:
    """Wait until OpenNebula says RUNNING; it has an address then, at which nothing answers yet."""
    pool = order.pool

    def placed(sight: Sight) -> None:
        machine.host = order.host = sight.host or machine.host

    await move(machine, VmState.BOOTING, tools, _in(tools, pool.launch_timeout_seconds + pool.boot_timeout_seconds))
    within = pool.launch_timeout_seconds
    running = await tools.cloud.wait_running(machine.cloud_id, within=within, on_change=placed)
    placed(running)
    if running.address is None:
        raise ProvisionFailed(f"VM {machine.cloud_id} has no NIC with an address: see the pool's network")
    machine.address = running.address


async def connect(machine: Machine, pool: Pool, tools: Tools) -> Guest:
    """An SSH connection to a machine that boots, which shows the host key that we made; else its console log is kept.
    Raises Unreachable, WrongHostKey."""
    try:
        return await reach(machine, pool, tools, within=pool.boot_timeout_seconds)
    except Unreachable as failure:
        console = await tools.console(machine.cloud_id)
        raise Unreachable(str(failure), evidence=console or failure.evidence) from failure


async def reach(machine: Machine, pool: Pool, tools: Tools, *, within: float) -> Guest:
    """An SSH connection, over which the machine shows its host key, `within` so many seconds."""
    return await connect_guest(
        machine.address,
        pool.ssh_port,
        host_key=machine.host_key,
        client_key=tools.client_key.private,
        deadline=within,
        vm_gone=machine.gone,
        reconnect_seconds=RECONNECT_SECONDS,
    )


def to_blame(failure: BaseException, order: Order) -> bool:
    """Whether the image version or the host may be to blame for a launch that failed: not for what was refused to the
    account, nor for what never came to a host."""
    match failure:
        case CloudUnreachable() | CloudDenied() | NotDestroyed():
            return False
        case ProvisionFailed():
            return bool(order.host)
        case CloudError() | GuestError():
            return True
        case _:
            return False


async def record(order: Order, tools: Tools, failure: BaseException | None = None) -> None:
    """Count a launch, and write down how it went where that says something of image or host."""
    seconds = time.monotonic() - order.began if order.seconds is None else order.seconds
    tools.telemetry.metrics.launched(order.pool.name, order.pool.image, seconds, failure)
    if order.vm_id and (failure is None or to_blame(failure, order)):
        vms, clock = tools.store.vms, tools.store.clock
        ok, message = failure is None, "" if failure is None else str(failure)
        await persist(
            lambda: vms.record_launch(
                order.vm_id, ok=ok, message=message, seconds=seconds, host=order.host, now=clock.now()
            ),
            "how the launch went",
        )
        if failure is not None:
            tools.launches.forget()


async def _make(order: Order, image: ImageVersion, tools: Tools, has: Callable[[Machine], None]) -> Machine:
    key = make_key(order.whose)
    row = await _row_of(order, image, key, tools)
    order.vm_id = row.id
    try:
        cloud_id = await tools.cloud.instantiate(image.template_id, _request(order, tools, row.id, key))
    except CloudUnreachable:
        raise  # it may exist or not: the row stays open, and upkeep settles it by the tag
    except (CloudError, UserError) as refusal:
        await _close_refused(row.id, tools, refusal, has)
        raise
    machine = Machine(row.id, cloud_id, key.public)
    has(machine)
    if not await _known(machine, tools):
        await _settle(machine, tools)
    _log.info("vm %s is OpenNebula's %d", row.id, machine.cloud_id)
    return machine


async def _row_of(order: Order, image: ImageVersion, key: KeyPair, tools: Tools) -> VmRow:
    vms, clock, lease = tools.store.vms, tools.store.clock, order.lease
    wanted = VmRequest(
        pool=order.pool.name,
        image_version=image.template_name,
        runner_id=tools.runner_id,
        deadline_at=_in(tools, order.pool.launch_timeout_seconds),
        lease=lease,
        host_key=key.fingerprint,
        host_public_key=key.public,
    )
    row = await persist(lambda: vms.request(wanted, now=clock.now(), max_vms=order.max_vms), "the VM's row")
    if row is not None:
        return row
    if lease is None:
        raise NoRoom
    rows = await persist(lambda: vms.of_task(lease.task_id), "reading the VM's row")
    written = [row for row in rows if row.host_public_key == key.public and row.state is VmState.REQUESTED]
    if not written:
        raise LeaseLost
    return written[0]  # the acknowledgement was lost


async def _known(machine: Machine, tools: Tools) -> bool:
    """Write down OpenNebula's id of it. False: the row has another, or is closed."""
    vms, clock = tools.store.vms, tools.store.clock
    return await persist(lambda: vms.set_cloud_id(machine.vm_id, machine.cloud_id, now=clock.now()), "the VM's id")


async def _settle(machine: Machine, tools: Tools) -> None:
    """Upkeep has settled the row while OpenNebula made the VM. If it found another with our tag, that one it is, and
    ours is an orphan; if it gave the row up, ours is ended, for it is for nobody any more."""
    row = await persist(lambda: tools.store.vms.get(machine.vm_id), "reading the VM's row")
    if row is not None and row.state is not VmState.DESTROYED and row.cloud_id is not None:
        machine.cloud_id = row.cloud_id
        return
    await tools.cloud.terminate(machine.cloud_id, within=DESTROY_SECONDS)
    raise LeaseLost


async def _close_refused(vm_id: str, tools: Tools, refusal: MayflyError, has: Callable[[Machine], None]) -> None:
    """Close the row of a VM that OpenNebula would not make. What it made before it refused (to place it, say) is found
    by its tag, and is a machine to be ended; what cannot be told now, upkeep will find."""
    try:
        ours = await tools.cloud.vms(tools.store.installation_id)
    except CloudError as trouble:
        _log.warning("whether there is a VM %s all the same cannot be asked: %s", vm_id, trouble)
        return
    made = [vm.id for vm in ours if vm.tags.get("MAYFLY_VM") == vm_id]
    if not made:
        await close(vm_id, tools, CloseProof(f"OpenNebula lists no VM tagged so, and refused to make it: {refusal}"))
        return
    machine = Machine(vm_id, made[0], "")
    await _known(machine, tools)
    has(machine)


def _request(order: Order, tools: Tools, vm_id: str, key: KeyPair) -> CloudRequest:
    pool, lease = order.pool, order.lease
    tags = {"MAYFLY_INSTALLATION": tools.store.installation_id, "MAYFLY_VM": vm_id}
    name = f"mayfly-{vm_id}"
    if lease is not None:
        name = f"mayfly-{lease.task_id}-{lease.attempt}"
        tags |= {"MAYFLY_TASK": lease.task_id, "MAYFLY_ATTEMPT": str(lease.attempt)}
    context = {
        "NETWORK": "YES",
        "SET_HOSTNAME": name,
        "SSH_PUBLIC_KEY": tools.client_key.public,
        "MAYFLY_HOST_KEY_BASE64": key.private_base64,
    }
    return CloudRequest(
        name=name,
        cpus=pool.cpus,
        memory_bytes=pool.memory_bytes,
        network=pool.network,
        context=context,
        tags=tags,
        avoid_hosts=order.avoid,
        placement=pool.placement,
    )


async def answered(ask: Callable[[], Awaitable[_T]], *, within: float) -> _T:
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


def _in(tools: Tools, seconds: float) -> datetime:
    return tools.store.clock.now() + timedelta(seconds=seconds)
