"""Which host a new VM goes to, where the account may say so."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Protocol, TypeVar, assert_never

from orchestrator.domain.pool import Placement


class Host(Protocol):
    """A hypervisor host. usable: it takes VMs. cpu_free, memory_free_bytes: what is not promised to a VM."""

    @property
    def id(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def cluster_id(self) -> int: ...
    @property
    def usable(self) -> bool: ...
    @property
    def cpu_free(self) -> float: ...
    @property
    def memory_free_bytes(self) -> int: ...


_Host = TypeVar("_Host", bound=Host)


def choose_host(
    hosts: Iterable[_Host],
    clusters: Collection[int],
    *,
    cpus: float,
    memory_bytes: int,
    placement: Placement = Placement.SPREAD,
    avoid: Collection[str] = (),
) -> _Host | None:
    """Of the usable hosts of these clusters with room for the VM, the one with the most memory left where VMs are to be
    spread, with the least where they are to be packed. None when none has room.

    clusters: ids of those that reach the VM's network. avoid: names of hosts to take only for want of another.
    """
    fitting = [
        host
        for host in hosts
        if host.usable
        and host.cluster_id in clusters
        and host.cpu_free >= cpus
        and host.memory_free_bytes >= memory_bytes
    ]

    def by_rank(host: _Host) -> tuple[bool, float, float, int]:
        match placement:
            case Placement.SPREAD:
                sign = -1
            case Placement.PACK:
                sign = 1
            case _:
                assert_never(placement)
        return host.name in avoid, sign * host.memory_free_bytes, sign * host.cpu_free, host.id

    return min(fitting, key=by_rank, default=None)
