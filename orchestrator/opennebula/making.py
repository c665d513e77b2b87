"""Making a VM: once, placed where the account may, and found again when OpenNebula's reply is lost."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace

from orchestrator.decide.admission import QuotaOf, QuotaRoom
from orchestrator.decide.placement import choose_host
from orchestrator.domain.errors import CloudDenied, CloudError, CloudLocked, CloudUnreachable, CloudWrongState
from orchestrator.opennebula.avoiding import Avoiding, requirements
from orchestrator.opennebula.client import Client
from orchestrator.opennebula.objects import CloudVm, Host, Network, VmRequest
from orchestrator.opennebula.placement import Placements
from orchestrator.opennebula.render import Renderer
from orchestrator.opennebula.transport import NeverSent

log = logging.getLogger(__name__)

_LOOK_AGAIN_SECONDS = 0.5
_ANY_TIME = float("-inf")
_DENIED_SECONDS = 600.0
"""For how long an account that may not place a VM, though it sees hosts, does not try to again."""
_REMEMBERED = 1000
"""So many VMs made are remembered until a reading shows them: far more than can be made in the seconds until then."""


class Maker:
    """Makes VMs. own_vms: the account's VMs that are not DONE, with their tags. hosts: those that it sees, and when
    they were read: not before the time it is given. patience: for how many seconds a VM is looked for that may have
    been made."""

    def __init__(
        self,
        client: Client,
        renderer: Renderer,
        own_vms: Callable[[], Awaitable[list[CloudVm]]],
        hosts: Callable[[float], Awaitable[tuple[list[Host], float]]],
        patience: float,
    ) -> None:
        self.patience = patience
        self._client = client
        self._renderer = renderer
        self._own_vms = own_vms
        self._hosts = hosts
        self.avoiding = Avoiding(client)
        self._placements = Placements()
        self._made: deque[tuple[float, dict[QuotaOf, int]]] = deque(maxlen=_REMEMBERED)
        self._one_at_a_time = asyncio.Lock()
        self._denied_until = float("-inf")

    async def make(self, template_id: int, request: VmRequest, network: Network) -> int:
        """See `Cloud.instantiate`."""
        places = bool((await self._hosts(_ANY_TIME))[0]) and time.monotonic() >= self._denied_until
        if not places and self.avoiding.wanted(request.avoid_hosts):
            vm_id = await self._avoiding(template_id, request, network)
        else:
            vm_id = await self._instantiate(template_id, request, places, self._extra(request, network))
        size = {QuotaOf.VMS: 1, QuotaOf.CPUS: request.cpus, QuotaOf.MEMORY: request.memory_bytes}
        self._made.append((time.monotonic(), size))
        if places:
            await self._place(vm_id, request, await self._host_for(request, network))
        return vm_id

    def _extra(self, request: VmRequest, network: Network, required: str = "") -> str:
        return self._renderer.render(
            "machine",
            cpus=request.cpus,
            memory_mb=-(-request.memory_bytes // 2**20),
            network_id=network.id,
            context=request.context,
            required=required,
            tags=request.tags,
        )

    async def _avoiding(self, template_id: int, request: VmRequest, network: Network) -> int:
        """A VM that OpenNebula's scheduler places, on none of the hosts to avoid if it can be."""
        present = await self.avoiding.present(template_id)
        extra = self._extra(request, network, requirements(present, request.avoid_hosts))
        try:
            vm_id = await self._instantiate(template_id, request, False, extra)
        except CloudDenied as error:
            if "SCHED_REQUIREMENTS" not in str(error):
                raise
            self.avoiding.refused()
            return await self._instantiate(template_id, request, False, self._extra(request, network))
        self.avoiding.made(vm_id, present)
        return vm_id

    def placed(self, hosts: list[Host], read_at: float) -> list[Host]:
        """The hosts, read `read_at` (monotonic clock), less what was placed since."""
        return self._placements.after(hosts, read_at)

    def used(self, quotas: tuple[QuotaRoom, ...], read_at: float) -> tuple[QuotaRoom, ...]:
        """What quotas leave, less what was made since they were read."""
        since = [size for made_at, size in self._made if made_at >= read_at]
        return tuple(replace(quota, left=quota.left - sum(size[quota.what] for size in since)) for quota in quotas)

    def made_since(self, moment: float) -> int:
        """How many VMs were made since then."""
        return sum(made_at >= moment for made_at, _ in self._made)

    async def _instantiate(self, template_id: int, request: VmRequest, hold: bool, extra: str) -> int:
        try:
            async with self._one_at_a_time:  # OpenNebula is slower with several at once
                return int(
                    await self._client.order("template.instantiate", template_id, request.name, hold, extra, False)
                )
        except NeverSent:
            raise
        except CloudUnreachable as error:
            log.warning("the reply to template.instantiate is lost: %s; looking for the VM by its tag", error)
            adopted = await self._look_for(request.tags["MAYFLY_VM"])
            if adopted is None:
                raise
            return adopted
        except CloudDenied as error:
            raise await self._denial(template_id, error) from error

    async def _denial(self, template_id: int, refused: CloudDenied) -> CloudDenied:
        """The same refusal, or that it is for a lock, of which OpenNebula's text says nothing."""
        if type(refused) is not CloudDenied:
            return refused
        try:
            template = await self._client.once("template.info", template_id)
        except CloudError:
            return refused
        if getattr(template, "LOCK", None) is None:
            return refused
        unlock = f"onetemplate unlock {template_id}"
        return CloudLocked(
            f"VM template {template_id} is locked: {refused} (to unlock it: {unlock})", code=refused.code
        )

    async def _look_for(self, tag: str) -> int | None:
        """The VM with this MAYFLY_VM tag, which may yet appear; None when none has within the patience. Of several (the
        request was done more than once) the oldest is kept, the others are ended."""
        give_up = time.monotonic() + self.patience
        while True:
            found = sorted(vm.id for vm in await self._own_vms() if vm.tags.get("MAYFLY_VM") == tag)
            if found:
                log.info("adopting VM %d, found by its tag among %s", found[0], found)
                await asyncio.gather(*(self._end_duplicate(vm_id) for vm_id in found[1:]))
                return found[0]
            if time.monotonic() >= give_up:
                return None
            await asyncio.sleep(min(_LOOK_AGAIN_SECONDS, self.patience / 10))

    async def _end_duplicate(self, vm_id: int) -> None:
        try:
            await self._client.ask("vm.action", "terminate-hard", vm_id)
        except CloudError as error:  # upkeep finds it by its tag
            log.warning("VM %d was made twice over and is left to upkeep: %s", vm_id, error)

    async def _host_for(self, request: VmRequest, network: Network) -> Host | None:
        """One with room, by what was read a moment ago; if none has, by what is so now: a VM may have ended since, and
        OpenNebula's scheduler, which is the way out, may take 15 s."""
        now = time.monotonic()
        for not_before in (_ANY_TIME, now):
            hosts, read_at = await self._hosts(not_before)
            host = choose_host(
                self._placements.after(hosts, read_at),
                network.cluster_ids,
                cpus=request.cpus,
                memory_bytes=request.memory_bytes,
                placement=request.placement,
                avoid=request.avoid_hosts,
            )
            if host is not None:
                return host
        return None

    async def _place(self, vm_id: int, request: VmRequest, host: Host | None) -> None:
        if host is not None:
            with self._placements.counting(host, cpus=request.cpus, memory_bytes=request.memory_bytes) as placement:
                try:
                    await self._client.ask("vm.deploy", vm_id, host.id, True, -1, "")
                    placement.happened = True
                    return
                except (CloudDenied, CloudWrongState) as error:
                    if (await self._state_name(vm_id)) != "HOLD":
                        placement.happened = True  # a repeated call: the first one did it
                        return
                    if type(error) is CloudDenied:
                        self._denied_until = time.monotonic() + _DENIED_SECONDS
                    log.info("VM %d is left to OpenNebula's scheduler: %s", vm_id, error)
                except CloudUnreachable:
                    placement.happened = True  # perhaps
                    raise
                except CloudError as error:
                    log.info("VM %d is left to OpenNebula's scheduler: %s", vm_id, error)
        await self._release(vm_id)

    async def _release(self, vm_id: int) -> None:
        try:
            await self._client.ask("vm.action", "release", vm_id)
        except CloudWrongState:
            if (await self._state_name(vm_id)) == "HOLD":
                raise

    async def _state_name(self, vm_id: int) -> str:
        return CloudVm.read(await self._client.ask("vm.info", vm_id)).state_name
