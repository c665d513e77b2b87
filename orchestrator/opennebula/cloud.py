"""OpenNebula as a few verbs: make a VM of an image version, see it run, see it gone."""

from __future__ import annotations

import asyncio
import difflib
import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import assert_never

from orchestrator.domain.errors import (
    CloudDenied,
    CloudError,
    CloudMissing,
    CloudUnreachable,
    CloudWrongState,
    NotDestroyed,
    NotFound,
    NotPossible,
    ProvisionFailed,
)
from orchestrator.opennebula.client import Client
from orchestrator.opennebula.objects import CloudVm, Host, ImageVersion, Network, VmRequest
from orchestrator.opennebula.placement import choose_host
from orchestrator.opennebula.render import Renderer
from orchestrator.opennebula.states import Phase, ending
from orchestrator.opennebula.transport import NeverSent

log = logging.getLogger(__name__)

_ALL, _OWN = -2, -3
"""Filter flags of the pool calls: everything that the account may use; its own."""
_NOT_DONE, _ANY_STATE = -1, -2

_SETTLE_SECONDS = 2.0
"""For how long after an action was accepted its effect may not be visible yet (20 to 60 ms were seen)."""


class Cloud:
    """The client of one OpenNebula for one account. Use as `async with`, or call `close`.

    endpoint: `http://HOST:2633/RPC2`, or `https://`. session: `user:password`, see `auth.read_session`. timeout,
    patience, connections: see `Client`. poll_seconds: how often a wait looks.

    Every verb raises a `domain.errors.CloudError` when OpenNebula refuses, fails or does not answer: CloudUnreachable,
    CloudDenied, CloudMissing, CloudWrongState or CloudError itself, with OpenNebula's own text and code.
    """

    def __init__(
        self,
        endpoint: str,
        session: str,
        *,
        timeout: float = 30.0,
        patience: float = 10.0,
        connections: int = 12,
        poll_seconds: float = 0.25,
    ) -> None:
        self.client = Client(endpoint, session, timeout=timeout, patience=patience, connections=connections)
        self.renderer = Renderer()
        self.poll_seconds = poll_seconds
        self.patience = patience
        self._instantiating = asyncio.Lock()
        self._user_id: int | None = None

    async def __aenter__(self) -> Cloud:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Start no further call."""
        self.client.close()

    async def version(self) -> str:
        """OpenNebula's version. Asked once only, so that a wrong address or password is told at once."""
        return str(await self.client.once("system.version"))

    async def promoted(self, image: str) -> ImageVersion:
        """The promoted version of the base image of this name: found by its tags, the newest if there are several.

        Only versions that belong to this account or to OpenNebula's administrator count: tags are anybody's to set.
        Raises NotFound, with what there is instead.
        """
        versions = await self.image_versions()
        mine = [version for version in versions if version.image == image]
        promoted = [version for version in mine if version.state == "promoted"]
        if promoted:
            return max(promoted, key=lambda version: version.version)
        remedy = f"mayfly image build {image}"
        if mine:
            known = ", ".join(f"{version.version} ({version.state or 'no state'})" for version in mine)
            raise NotFound("image", f"no version of {image!r} is promoted; there are {known}", remedy)
        names = sorted({version.image for version in versions})
        near = difflib.get_close_matches(image, names, cutoff=0.5) or names
        hint = f"; there are {', '.join(near)}" if near else ""
        raise NotFound("image", f"OpenNebula has no base image {image!r}{hint}", remedy)

    async def image_versions(self) -> list[ImageVersion]:
        """Every version of every base image that belongs to this account or to the administrator, newest first."""
        pool = await self.client.ask("templatepool.info", _ALL, -1, -1)
        trusted = {0, await self._me()}
        read = [ImageVersion.read(template) for template in pool.VMTEMPLATE if int(template.UID) in trusted]
        return sorted((version for version in read if version), key=lambda version: -version.version)

    async def network(self, name: str) -> Network:
        """The virtual network of this name, whoever owns it. OpenNebula's own lookup by name knows only the caller's.

        Raises NotFound; NotPossible when several share the name and not just one is this account's or the
        administrator's.
        """
        pool = await self.client.ask("vnpool.info", _ALL, -1, -1)
        networks = [Network.read(network) for network in pool.VNET]
        found = [network for network in networks if network.name == name]
        if len(found) > 1:
            trusted = {0, await self._me()}
            found = [network for network in found if network.owner_id in trusted] or found
        match found:
            case [network]:
                return network
            case []:
                names = sorted({network.name for network in networks})
                near = difflib.get_close_matches(name, names, cutoff=0.5) or names
                there = f"there are {', '.join(near)}" if near else "this account may use none"
                raise NotFound("network", f"OpenNebula has no virtual network {name!r}; {there}", "name another one")
            case _:
                several = ", ".join(f"{network.id} of {network.owner}" for network in found)
                raise NotPossible(
                    "network", f"several virtual networks are called {name!r}: {several}", "rename all but one"
                )

    async def hosts(self) -> list[Host]:
        """The hosts that the account may see: none for an ordinary user."""
        pool = await self.client.ask("hostpool.info")
        return [Host.read(host) for host in pool.HOST]

    async def instantiate(self, template_id: int, request: VmRequest) -> int:
        """Make a VM of a template and see that it is placed; return its id at once.

        An account that may place VMs itself does so (`hold`, then `one.vm.deploy`); else, or when no host has room,
        OpenNebula's scheduler does. When the reply is lost, the VM is looked for by its tag MAYFLY_VM and adopted;
        CloudUnreachable means that there may be one all the same, which the tag will tell.
        """
        network = await self.network(request.network)
        hosts = await self.hosts()
        memory_mb = -(-request.memory_bytes // 2**20)
        extra = self.renderer.render(
            "machine",
            cpus=request.cpus,
            memory_mb=memory_mb,
            network_id=network.id,
            context=request.context,
            tags=request.tags,
        )
        hold = bool(hosts)
        vm_id = await self._instantiate_once(template_id, request, hold, extra)
        if hold:
            await self._place(vm_id, request, hosts, network)
        return vm_id

    async def _instantiate_once(self, template_id: int, request: VmRequest, hold: bool, extra: str) -> int:
        try:
            async with self._instantiating:  # OpenNebula is slower with several at once
                return int(
                    await self.client.order("template.instantiate", template_id, request.name, hold, extra, False)
                )
        except NeverSent:
            raise
        except CloudUnreachable as error:
            log.warning("the reply to template.instantiate is lost: %s; looking for the VM by its tag", error)
            adopted = await self._look_for(request.tags["MAYFLY_VM"])
            if adopted is None:
                raise
            return adopted

    async def _look_for(self, tag: str) -> int | None:
        """The VM with this MAYFLY_VM tag, which may yet appear; None when none has within the patience."""
        give_up = time.monotonic() + self.patience
        while True:
            found = sorted(vm.id for vm in await self.vms() if vm.tags.get("MAYFLY_VM") == tag)
            if found:
                log.info("adopting VM %d, found by its tag among %s", found[0], found)
                return found[0]
            if time.monotonic() >= give_up:
                return None
            await asyncio.sleep(self.poll_seconds)

    async def _place(self, vm_id: int, request: VmRequest, hosts: list[Host], network: Network) -> None:
        host = choose_host(hosts, network.cluster_ids, cpus=request.cpus, memory_bytes=request.memory_bytes)
        try:
            if host is not None:
                await self.client.ask("vm.deploy", vm_id, host.id, True, -1, "")
                return
        except (CloudDenied, CloudWrongState) as error:
            if (await self.vm(vm_id)).state_name != "HOLD":
                return  # a repeated call: the first one did it
            log.info("VM %d is left to OpenNebula's scheduler: %s", vm_id, error)
        except CloudUnreachable:
            raise
        except CloudError as error:
            log.info("VM %d is left to OpenNebula's scheduler: %s", vm_id, error)
        await self._release(vm_id)

    async def _release(self, vm_id: int) -> None:
        try:
            await self.client.ask("vm.action", "release", vm_id)
        except CloudWrongState:
            if (await self.vm(vm_id)).state_name == "HOLD":
                raise

    async def vm(self, vm_id: int) -> CloudVm:
        """One VM, also when it is DONE. Raises CloudMissing for an id that never was."""
        return CloudVm.read(await self.client.ask("vm.info", vm_id))

    async def vms(self, installation: str | None = None, *, done: bool = False) -> list[CloudVm]:
        """The account's own VMs, in one call, newest first: those tagged with this MAYFLY_INSTALLATION, or all.

        The short bodies of `one.vmpool.info` would be cheaper, but their USER_TEMPLATE lacks the tags.
        """
        pool = await self.client.ask("vmpool.infoextended", _OWN, -1, -1, _ANY_STATE if done else _NOT_DONE)
        read = [CloudVm.read(vm) for vm in pool.VM]
        return [vm for vm in read if installation is None or vm.tags.get("MAYFLY_INSTALLATION") == installation]

    async def wait_running(
        self, vm_id: int, *, within: float, on_change: Callable[[CloudVm], None] | None = None
    ) -> CloudVm:
        """The VM once OpenNebula says RUNNING, which is long before its guest answers.

        `on_change` is told each new state. Raises ProvisionFailed, with the reason that OpenNebula gives, when the VM
        fails, goes off or is terminated, and when it is not RUNNING after `within` seconds.
        """
        deadline = time.monotonic() + within
        seen, why = "", "in a state that nobody could ask for"
        while True:
            vm = await self._look(vm_id, deadline)
            if vm is not None:
                if on_change and vm.state_name != seen:
                    on_change(vm)
                seen, why = vm.state_name, vm.why
                match vm.phase:
                    case Phase.RUNNING:
                        return vm
                    case Phase.FAILED | Phase.OFF | Phase.DONE:
                        raise ProvisionFailed(f"VM {vm_id} will not run, it is {why}", evidence=vm.error)
                    case Phase.WAITING | Phase.STARTING | Phase.BUSY | Phase.STOPPING | Phase.UNKNOWN:
                        pass
                    case _:
                        assert_never(vm.phase)
            if time.monotonic() >= deadline:
                raise ProvisionFailed(f"VM {vm_id} is not RUNNING after {within:g} s, it is {why}")
            await asyncio.sleep(self.poll_seconds)

    async def _look(self, vm_id: int, deadline: float) -> CloudVm | None:
        """The VM; None when OpenNebula does not answer now, or not by the deadline."""
        try:
            async with asyncio.timeout(max(deadline - time.monotonic(), self.poll_seconds)):
                return await self.vm(vm_id)
        except (CloudUnreachable, TimeoutError) as error:
            log.warning("VM %d cannot be looked at: %s", vm_id, error)
            return None

    async def terminate(self, vm_id: int, *, within: float) -> None:
        """Return once the VM is DONE (or OpenNebula knows no such VM).

        terminate-hard is asked for again while it is refused because the VM starts or is being worked on, and when the
        VM silently falls back into the state where it was. Raises NotDestroyed, with the state, when the VM is not DONE
        after `within` seconds: from some states only an administrator's `onevm recover` helps, and the VM must not be
        forgotten. Raises CloudDenied at once.
        """
        deadline = time.monotonic() + within
        ask_at, state, refused = 0.0, "in a state that nobody could ask for", ""
        while True:
            try:
                vm = await self._look(vm_id, deadline)
                if vm is not None:
                    state = vm.why
                    if vm.phase is Phase.DONE:
                        return
                    if ending(vm.state, vm.lcm_state):
                        ask_at = 0.0  # should it fall back, it is asked at once
                    elif time.monotonic() >= ask_at:
                        await self.client.once("vm.action", "terminate-hard", vm_id)
                        ask_at, refused = time.monotonic() + _SETTLE_SECONDS, ""
            except CloudMissing:
                return
            except (CloudWrongState, CloudUnreachable) as error:
                refused = str(error)
            if time.monotonic() >= deadline:
                raise NotDestroyed(vm_id, state, within, refused)
            await asyncio.sleep(self.poll_seconds)

    async def _me(self) -> int:
        """The account's id, which never changes."""
        if self._user_id is None:
            self._user_id = int((await self.client.ask("user.info", -1)).ID)
        return self._user_id
