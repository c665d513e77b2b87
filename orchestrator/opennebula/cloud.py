"""OpenNebula as a few verbs: make a VM of an image version, see it run, see it gone."""

from __future__ import annotations

import asyncio
import difflib
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType

from orchestrator.decide.admission import Capacity, QuotaRoom, stalled
from orchestrator.domain.errors import CloudMissing, NotFound, NotPossible
from orchestrator.domain.outside import OutsideView
from orchestrator.domain.proof import CloseProof
from orchestrator.opennebula.cache import Cache
from orchestrator.opennebula.capacity import Pending, PendingSince, host_rooms, read_pending, read_quotas
from orchestrator.opennebula.client import Client, OnRequest
from orchestrator.opennebula.ending import Ender
from orchestrator.opennebula.folders import Folders
from orchestrator.opennebula.making import Maker
from orchestrator.opennebula.objects import CloudVm, Host, ImageVersion, Network, VmRequest
from orchestrator.opennebula.outside import read_outside
from orchestrator.opennebula.render import Renderer
from orchestrator.opennebula.sights import Sight
from orchestrator.opennebula.states import Phase
from orchestrator.opennebula.stuck import StuckVm, suspects
from orchestrator.opennebula.waiting import until_gone, until_running
from orchestrator.opennebula.watch import Watch

log = logging.getLogger(__name__)

_ALL, _OWN = -2, -3
"""Filter flags of the pool calls: everything that the account may use; its own."""
_NOT_DONE, _ANY_STATE = -1, -2

_KEPT_SECONDS = 3.0
"""For how long hosts, networks, base images and quotas are taken to be as they were."""

_FREED_SECONDS = 0.5
"""The same of hosts and quotas once a VM of ours has given back what it had."""

_LOOKS_SHARE = 4.0
"""Looking at VMs takes at most one in so many of the requests that are allowed."""


class Cloud:
    """The client of one OpenNebula for one account, in one event loop. Use as `async with`, or call `close`.

    endpoint: `http://HOST:2633/RPC2`, or `https://`. session: `user:password`, see `auth.read_session`. timeout,
    patience, connections, requests_per_second, burst, on_request: see `Client`. poll_seconds, tick_seconds: how often
    VMs are looked at, all that anybody waits for in one call: while somebody waits for a start or an end, and while
    they are only kept an eye on. events: `tcp://HOST:2101`, where OpenNebula publishes what happens to VMs; they are
    looked at when it does, and less often otherwise; events_once: the address is a guess, and given up when nobody
    answers. stuck_seconds: see `Ender`.

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
        tick_seconds: float = 1.0,
        requests_per_second: float = 28.0,
        burst: int = 60,
        stuck_seconds: float = 20.0,
        events: str | None = None,
        events_once: bool = False,
        on_request: OnRequest | None = None,
    ) -> None:
        self.client = Client(
            endpoint,
            session,
            timeout=timeout,
            patience=patience,
            connections=connections,
            requests_per_second=requests_per_second,
            burst=burst,
            on_request=on_request,
        )
        self.renderer = Renderer()
        self.poll_seconds = poll_seconds
        fastest = max(poll_seconds, _LOOKS_SHARE / requests_per_second)
        self._watch = Watch(
            self.client, fastest=fastest, tick=max(tick_seconds, fastest), events=events, events_once=events_once
        )
        self._ender = Ender(self.client, self._watch, stuck_seconds, Folders(self.client))
        self._maker = Maker(self.client, self.renderer, self.vms, self._recent_hosts, patience)
        self._pending_since = PendingSince()
        self._kept_hosts = Cache[None, list[Host]](lambda _: self.hosts(), _KEPT_SECONDS)
        self._kept_networks = Cache[None, list[Network]](lambda _: self.networks(), _KEPT_SECONDS)
        self._kept_promoted = Cache[str, ImageVersion](self._find_promoted, _KEPT_SECONDS)
        self._kept_quotas = Cache[None, tuple[QuotaRoom, ...]](lambda _: read_quotas(self.client), _KEPT_SECONDS)
        self._kept_pending = Cache[None, Pending](
            lambda _: read_pending(self.client, self._pending_since), _KEPT_SECONDS
        )
        self._freed_at = float("-inf")
        self._stall_told = False
        self._user_id: int | None = None

    @property
    def patience(self) -> float:
        """For how many seconds something is looked for that a call may have made whose reply was lost."""
        return self._maker.patience

    @patience.setter
    def patience(self, seconds: float) -> None:
        self._maker.patience = seconds

    async def __aenter__(self) -> Cloud:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Start no further call."""
        self._watch.close()
        self.client.close()

    async def version(self) -> str:
        """OpenNebula's version. Asked once only, so that a wrong address or password is told at once."""
        return str(await self.client.once("system.version"))

    @property
    def events_address(self) -> str | None:
        """Where OpenNebula's events are looked for; None: nowhere."""
        return self._watch.stream.address if self._watch.stream else None

    async def events_come(self, within: float) -> bool:
        """Whether OpenNebula publishes where its events are looked for, asked for so many seconds at most."""
        return self._watch.stream is not None and await self._watch.stream.reached(within)

    def forget(self) -> None:
        """Ask again for hosts, networks, base images and quotas when they are needed next."""
        for kept in (self._kept_hosts, self._kept_networks, self._kept_promoted):
            kept.forget()
        self._kept_quotas.forget()
        self._kept_pending.forget()

    async def promoted(self, image: str) -> ImageVersion:
        """The promoted version of the base image of this name: found by its tags, the newest if there are several.

        Only versions that belong to this account or to OpenNebula's administrator count: tags are anybody's to set. As
        it was a few seconds ago at most. Raises NotFound, with what there is instead.
        """
        return (await self._kept_promoted.get(image))[0]

    async def _find_promoted(self, image: str) -> ImageVersion:
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

    async def networks(self) -> list[Network]:
        """The virtual networks that the account may use."""
        pool = await self.client.ask("vnpool.info", _ALL, -1, -1)
        return [Network.read(network) for network in pool.VNET]

    async def network(self, name: str) -> Network:
        """The virtual network of this name, whoever owns it. OpenNebula's own lookup by name knows only the caller's.

        As it was a few seconds ago at most. Raises NotFound; NotPossible when several share the name and not just one
        is this account's or the administrator's.
        """
        networks, _ = await self._kept_networks.get(None)
        if not any(network.name == name for network in networks):
            self._kept_networks.forget()
            networks, _ = await self._kept_networks.get(None)
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

    async def administers(self) -> bool:
        """Whether the account is of OpenNebula's group `oneadmin`, which may place VMs, and recover them."""
        user = await self.client.ask("user.info", -1)
        return 0 in {int(user.GID), *(int(group) for group in user.GROUPS.ID)}

    async def _recent_hosts(self, not_before: float) -> tuple[list[Host], float]:
        return await self._kept_hosts.get(None, not_before=not_before)

    async def capacity(self) -> Capacity:
        """What OpenNebula has left for this account, as it was a few seconds ago at most (half a second, if a VM was
        ended here since), less what was asked for since. It counts no VM of which `instantiate` has not returned yet.

        A scheduler that places nothing any more is told to the log, once.
        """
        freed_at = min(self._freed_at, time.monotonic() - _FREED_SECONDS)
        (
            (hosts, hosts_read_at),
            (networks, _),
            (quotas, quotas_read_at),
            (pending, pending_read_at),
        ) = await asyncio.gather(
            self._kept_hosts.get(None, not_before=freed_at),
            self._kept_networks.get(None),
            self._kept_quotas.get(None, not_before=freed_at),
            self._kept_pending.get(None),
        )
        names = [network.name for network in networks]
        capacity = Capacity(
            hosts=host_rooms(self._maker.placed(hosts, hosts_read_at)) if hosts else None,
            networks={network.name: network.cluster_ids for network in networks if names.count(network.name) == 1},
            quotas=self._maker.used(quotas, quotas_read_at),
            pending=pending.count + (0 if hosts else self._maker.made_since(pending_read_at)),
            oldest_pending_seconds=pending.unexplained_seconds,
            sched_message=pending.sched_message,
        )
        words = stalled(capacity)
        if words and not self._stall_told:
            log.warning("OpenNebula's scheduler places nothing: %s", words)
        self._stall_told = bool(words)
        return capacity

    async def instantiate(self, template_id: int, request: VmRequest) -> int:
        """Make a VM of a template and see that it is placed; return its id at once.

        An account that may place VMs itself does so (`hold`, then `one.vm.deploy`); else, or when no host has room,
        OpenNebula's scheduler does, which is told the hosts to avoid. When the reply is lost, the VM is looked for by
        its tag MAYFLY_VM and adopted (if the request was done twice, all but one are ended); CloudUnreachable means
        that there may be one all the same, which the tag will tell. Raises QuotaExceeded, CloudLocked.
        """
        return await self._maker.make(template_id, request, await self.network(request.network))

    async def vm(self, vm_id: int) -> CloudVm:
        """One VM, also when it is DONE. Raises CloudMissing for an id that never was."""
        began = time.monotonic()
        vm = CloudVm.read(await self.client.ask("vm.info", vm_id))
        self._watch.note(Sight.of(vm), began)
        return vm

    async def outside_view(self, vm_id: int) -> OutsideView:
        """What OpenNebula says of the VM's NICs and of the rules of their security groups, now; one request. Raises
        CloudMissing when the VM is DONE or unknown, CloudError when what is said cannot be read or names no NIC."""
        return read_outside(await self.client.ask("vm.info", vm_id), vm_id, datetime.now(UTC))

    async def vms(self, installation: str | None = None, *, done: bool = False) -> list[CloudVm]:
        """The account's own VMs, in one call, newest first: those tagged with this MAYFLY_INSTALLATION, or all.

        The short bodies of `one.vmpool.info` would be cheaper, but their USER_TEMPLATE lacks the tags.
        """
        pool = await self.client.ask("vmpool.infoextended", _OWN, -1, -1, _ANY_STATE if done else _NOT_DONE)
        read = [CloudVm.read(vm) for vm in pool.VM]
        return [vm for vm in read if installation is None or vm.tags.get("MAYFLY_INSTALLATION") == installation]

    async def wait_running(
        self, vm_id: int, *, within: float, on_change: Callable[[Sight], None] | None = None
    ) -> Sight:
        """The VM once OpenNebula says RUNNING, which is long before its guest answers.

        `on_change` is told each new state that is seen. Raises ProvisionFailed, with the reason that OpenNebula gives,
        when the VM fails, goes off or is terminated, and when it is not RUNNING after `within` seconds.
        """
        lift = self._maker.avoiding.lift
        return await until_running(self.client, self._watch, vm_id, within, on_change, lift)

    async def until_gone(self, vm_id: int) -> Sight:
        """The VM once it is off (a machine that crashed is), failed or DONE; DONE also if OpenNebula knows no such VM.

        It has no deadline and is to be canceled; an OpenNebula that does not answer is waited for.
        """
        return await until_gone(self._watch, vm_id)

    async def terminate(self, vm_id: int, *, within: float) -> CloseProof:
        """Return once the VM is DONE (or OpenNebula knows no such VM), with how that is known.

        How it is brought about, whatever OpenNebula does with the first request, is told in `ending`. Raises
        NotDestroyed, with the state, when the VM is not DONE after `within` seconds: from some states only an
        administrator's `onevm recover` helps, and the VM must not be forgotten. Raises CloudDenied at once, CloudLocked
        when that is for a lock.
        """
        proof = await self._ender.terminate(vm_id, within)
        self._freed_at = time.monotonic()
        return proof

    async def ended(self, vm_id: int) -> CloseProof | None:
        """How it is known that the VM is DONE, or unknown to OpenNebula; None when it is there."""
        try:
            vm = await self.vm(vm_id)
        except CloudMissing:
            return await self._ender.proof(vm_id, None)
        return await self._ender.proof(vm_id, Sight.of(vm)) if vm.phase is Phase.DONE else None

    async def recover_delete(self, vm_id: int) -> None:
        """Ask OpenNebula to delete the VM from whatever state it is in. Raises CloudDenied for an account that is no
        administrator's."""
        await self._ender.recover_delete(vm_id)

    async def stuck(self, installation: str | None = None, *, apart: float = 5.0) -> list[StuckVm]:
        """The account's VMs (with this MAYFLY_INSTALLATION) that do not get on by themselves: in the same passing state
        in two looks, `apart` seconds apart; UNKNOWN; or RUNNING on a host that does not report."""
        failed = {host.name for host in await self.hosts() if host.failed}
        first = suspects(await self.vms(installation), failed)
        if not first:
            return []
        await asyncio.sleep(apart)
        second = suspects(await self.vms(installation), failed)
        return [vm for vm in second if vm in first]

    async def _me(self) -> int:
        """The account's id, which never changes."""
        if self._user_id is None:
            self._user_id = int((await self.client.ask("user.info", -1)).ID)
        return self._user_id
