"""How many more machines of a pool can be made now, and if none, why: people are told that same reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import assert_never

from orchestrator.domain.outcome import Reason
from orchestrator.domain.pool import Pool

STALL_SECONDS = 120.0
"""OpenNebula 7.2.0 with its default settings places a lone VM within 15 s, tries again every 60 s, and needs 43 s for a
burst of 100. A scheduler that left a VM without a host for longer, and did not say why, has stopped."""


class QuotaOf(StrEnum):
    VMS = "VMs"
    CPUS = "CPUs"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class HostRoom:
    """What a hypervisor host that takes VMs has left. clusters: ids of those that it belongs to."""

    name: str
    cpus_free: float
    memory_free_bytes: int
    clusters: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class QuotaRoom:
    """What a quota leaves: VMs, CPUs or bytes. whose: "user mayfly", "group users"."""

    whose: str
    what: QuotaOf
    left: float


@dataclass(frozen=True, slots=True)
class Capacity:
    """What OpenNebula had left when it was asked.

    hosts: None when the account does not see them. networks: the clusters that reach each, where that is known.
    pending: VMs of ours that have no host yet. oldest_pending_seconds: how long the one has waited that waits the
    longest without a word of the scheduler. sched_message: its last word on why one of ours has no host.

    >>> pool = Pool(name="small", image="debian-12", cpus=2)
    >>> Capacity((HostRoom("h", 8, 2**33),)).less(pool, 3).hosts[0].cpus_free
    2
    """

    hosts: tuple[HostRoom, ...] | None = None
    networks: Mapping[str, frozenset[int]] = field(default_factory=dict)
    quotas: tuple[QuotaRoom, ...] = ()
    pending: int = 0
    oldest_pending_seconds: float = 0.0
    sched_message: str = ""

    def less(self, pool: Pool, count: int) -> Capacity:
        """As it will be when `count` more VMs of `pool` are asked for, each on the host with the most memory left."""
        hosts = self.hosts
        for _ in range(count if hosts is not None else 0):
            hosts = _placed(pool, self, hosts or ())
        quotas = tuple(replace(quota, left=quota.left - count * _needs(pool, quota.what)) for quota in self.quotas)
        return replace(self, hosts=hosts, quotas=quotas, pending=self.pending + (count if hosts is None else 0))


@dataclass(frozen=True, slots=True)
class Room:
    """How many more. reason and message say why there is none."""

    count: int
    reason: Reason | None = None
    message: str = ""


def room_for(pool: Pool, capacity: Capacity, *, open_vms: int, pending_vms: int = 0) -> Room:
    """How many more machines of `pool` can be made now.

    open_vms: those of the pool, of all runners, that are not destroyed. pending_vms: asked for since `capacity` was
    read, and without a host, where `Capacity.less` does not account for them.

    >>> room_for(Pool(name="small", image="debian-12", max_vms=2), Capacity(), open_vms=2)
    Room(count=0, reason=<Reason.MAX_VMS: 'max_vms'>, message='pool small may have 2 machines, and has 2')
    """
    rooms = list(_rooms(pool, capacity, open_vms, pending_vms))
    count = min(room.count for room in rooms)
    if count > 0:
        return Room(count)
    return next(replace(room, count=0) for room in rooms if room.count <= 0)


def stalled(capacity: Capacity) -> str:
    """In words, that OpenNebula's scheduler has stopped; "" when it has not, or nothing waits for it."""
    if capacity.oldest_pending_seconds <= STALL_SECONDS:
        return ""
    seconds = f"{capacity.oldest_pending_seconds:.0f}"
    return f"OpenNebula's scheduler seems to have stopped: a VM has had no host for {seconds} s, and no reason is given"


def _rooms(pool: Pool, capacity: Capacity, open_vms: int, pending_vms: int) -> Iterator[Room]:
    """What each limit alone leaves, with what to say when it leaves nothing."""
    limit = f"pool {pool.name} may have {pool.max_vms} machines, and has {open_vms}"
    yield Room(pool.max_vms - open_vms, Reason.MAX_VMS, limit)
    if words := stalled(capacity):
        yield Room(0, Reason.NO_CAPACITY, words)
    for quota in capacity.quotas:
        yield Room(_times(quota.left, _needs(pool, quota.what)), Reason.QUOTA, _short(quota))
    if capacity.hosts is not None:
        yield _on_hosts(pool, capacity, capacity.hosts)
    elif capacity.sched_message:
        yield Room(0, Reason.NO_CAPACITY, f"OpenNebula has no host for another VM: {capacity.sched_message}")
    pending = capacity.pending + pending_vms
    waiting = f"OpenNebula has yet to place {pending} VMs, and pool {pool.name} allows for {pool.max_pending_vms}"
    yield Room(pool.max_pending_vms - pending, Reason.NO_CAPACITY, waiting)


def _on_hosts(pool: Pool, capacity: Capacity, hosts: tuple[HostRoom, ...]) -> Room:
    if not hosts:
        return Room(0, Reason.NO_CAPACITY, "OpenNebula has no host that takes VMs")
    reaching = _reaching(pool, capacity, hosts)
    if not reaching:
        return Room(0, Reason.NO_CAPACITY, f"no host that takes VMs reaches the network {pool.network}")
    count = sum(_fit(pool, host) for host in reaching)
    size = f"{pool.cpus} CPUs and {pool.memory_bytes // 2**20} MiB"
    roomiest = max(reaching, key=_roominess)
    left = f"{roomiest.cpus_free:g} CPUs and {roomiest.memory_free_bytes // 2**20} MiB"
    return Room(count, Reason.NO_CAPACITY, f"no host has {size} left; the roomiest, {roomiest.name}, has {left}")


def _reaching(pool: Pool, capacity: Capacity, hosts: tuple[HostRoom, ...]) -> list[HostRoom]:
    clusters = capacity.networks.get(pool.network)
    return [host for host in hosts if clusters is None or clusters & host.clusters]


def _fit(pool: Pool, host: HostRoom) -> int:
    return max(0, min(_times(host.cpus_free, pool.cpus), _times(host.memory_free_bytes, pool.memory_bytes)))


def _times(left: float, each: float) -> int:
    return int(left // each)


def _placed(pool: Pool, capacity: Capacity, hosts: tuple[HostRoom, ...]) -> tuple[HostRoom, ...]:
    """With one more VM on the roomiest of those where it fits."""
    fitting = [host for host in _reaching(pool, capacity, hosts) if _fit(pool, host)]
    if not fitting:
        return hosts
    chosen = max(fitting, key=_roominess)
    cpus, memory = chosen.cpus_free - pool.cpus, chosen.memory_free_bytes - pool.memory_bytes
    fuller = replace(chosen, cpus_free=cpus, memory_free_bytes=memory)
    return tuple(fuller if host is chosen else host for host in hosts)


def _roominess(host: HostRoom) -> tuple[int, float]:
    return host.memory_free_bytes, host.cpus_free


def _needs(pool: Pool, what: QuotaOf) -> float:
    match what:
        case QuotaOf.VMS:
            return 1
        case QuotaOf.CPUS:
            return pool.cpus
        case QuotaOf.MEMORY:
            return pool.memory_bytes
        case _:
            assert_never(what)


def _short(quota: QuotaRoom) -> str:
    match quota.what:
        case QuotaOf.VMS | QuotaOf.CPUS:
            left = f"{max(quota.left, 0):g} {quota.what}"
        case QuotaOf.MEMORY:
            left = f"{int(max(quota.left, 0)) // 2**20} MiB of memory"
        case _:
            assert_never(quota.what)
    return f"the quota of {quota.whose} leaves {left}"
