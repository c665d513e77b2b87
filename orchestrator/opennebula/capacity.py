"""What OpenNebula has left for this account: on its hosts, in its quotas, and in the patience of its scheduler."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from xml.etree import ElementTree

from orchestrator.decide.admission import HostRoom, QuotaOf, QuotaRoom
from orchestrator.domain.errors import CloudDenied, CloudError
from orchestrator.opennebula.client import Client
from orchestrator.opennebula.objects import Host

_OWN, _PENDING = -3, 1
_DEFAULT, _MB = -1, 2**20
_LIMITS = (
    ("VMS", QuotaOf.VMS, 1, ""),
    ("CPU", QuotaOf.CPUS, 1, ""),
    ("MEMORY", QuotaOf.MEMORY, _MB, ""),
    ("RUNNING_VMS", QuotaOf.VMS, 1, ", running"),
    ("RUNNING_CPU", QuotaOf.CPUS, 1, ", running"),
    ("RUNNING_MEMORY", QuotaOf.MEMORY, _MB, ", running"),
)


@dataclass(frozen=True, slots=True)
class Pending:
    """The account's VMs without a host. unexplained_seconds: how long the one waits already that waits longest and of
    which the scheduler says nothing; sched_message: what it says of the newest of the others."""

    count: int
    unexplained_seconds: float
    sched_message: str


@dataclass(slots=True)
class PendingSince:
    """Since when each pending VM is known to be so. The VM's own time of creation is believed only when it is seen for
    the first time: afterwards our monotonic clock counts, which does not jump."""

    _since: dict[int, float] = field(default_factory=dict)

    def read(self, body: str) -> Pending:
        """From the VM_POOL of `one.vmpool.infoextended`. Raises CloudError when it is no such thing."""
        now = time.monotonic()
        vms = list(_parse(body, "VM_POOL").iterfind("VM"))
        since: dict[int, float] = {}
        message, oldest = "", now
        for vm in vms:
            vm_id = int(vm.findtext("ID") or 0)
            created = float(vm.findtext("STIME") or 0)
            since[vm_id] = self._since.get(vm_id, now - max(0.0, time.time() - created))
            said = vm.findtext("USER_TEMPLATE/SCHED_MESSAGE") or ""
            message = message or said
            if not said:
                oldest = min(oldest, since[vm_id])
        self._since = since
        return Pending(len(vms), now - oldest, message)


async def read_pending(client: Client, known: PendingSince) -> Pending:
    """One call: the account's own VMs in PENDING."""
    return known.read(await client.ask_raw("vmpool.infoextended", _OWN, -1, -1, _PENDING))


async def read_quotas(client: Client) -> tuple[QuotaRoom, ...]:
    """What the quotas of the account and of its group leave; only those that limit it. Two calls.

    OpenNebula's administrator and the administrators' group have no quotas, whatever is shown of them.
    """
    user = _parse(await client.ask_raw("user.info", -1), "USER")
    rooms: list[QuotaRoom] = []
    if user.findtext("ID") != "0":
        rooms += quota_rooms(user, f"user {user.findtext('NAME')}", "DEFAULT_USER_QUOTAS")
    group_id = int(user.findtext("GID") or 0)
    if group_id != 0:
        try:
            group = _parse(await client.ask_raw("group.info", group_id), "GROUP")
        except CloudDenied:
            return tuple(rooms)  # it will be told by the refusal then
        rooms += quota_rooms(group, f"group {group.findtext('NAME')}", "DEFAULT_GROUP_QUOTAS")
    return tuple(rooms)


def quota_rooms(owner: ElementTree.Element, whose: str, defaults: str) -> Iterator[QuotaRoom]:
    """From a USER or GROUP. A limit of -1 stands for the default, any other below 0 for none; of quotas for single
    clusters (7.0 on) nothing is said here."""
    quota = _of_all_clusters(owner.iterfind("VM_QUOTA/VM"))
    default = _of_all_clusters(owner.iterfind(f"{defaults}/VM_QUOTA/VM"))
    for name, what, unit, which in _LIMITS:
        limit = _number(quota, name, _DEFAULT)
        if limit == _DEFAULT:
            limit = _number(default, name, _DEFAULT)
        if limit >= 0:
            yield QuotaRoom(f"{whose}{which}", what, (limit - _number(quota, f"{name}_USED", 0)) * unit)


def host_rooms(hosts: Iterable[Host]) -> tuple[HostRoom, ...]:
    """Of those that take VMs."""
    return tuple(
        HostRoom(host.name, host.cpu_free, host.memory_free_bytes, frozenset({host.cluster_id}))
        for host in hosts
        if host.usable
    )


def _of_all_clusters(quotas: Iterator[ElementTree.Element]) -> ElementTree.Element | None:
    return next((quota for quota in quotas if not quota.findtext("CLUSTER_IDS")), None)


def _number(quota: ElementTree.Element | None, name: str, otherwise: float) -> float:
    text = quota.findtext(name) if quota is not None else None
    return float(text) if text else otherwise


def _parse(body: str, tag: str) -> ElementTree.Element:
    try:
        found = ElementTree.fromstring(body)  # noqa: S314  of the OpenNebula that we obey anyway
    except ElementTree.ParseError as error:
        raise CloudError(f"OpenNebula answered with what is not XML: {error}") from error
    if found.tag != tag:
        raise CloudError(f"OpenNebula answered with a {found.tag} instead of a {tag}")
    return found
