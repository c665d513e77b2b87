"""Which host a new VM goes to, where the account may say so. Pure.

OpenNebula's own scheduler takes 10 to 15 s for a lone VM with its default settings, and a burst of VMs can stop it
for good (measured on 7.2.0), so that VMs are placed by `one.vm.deploy` where that is allowed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from orchestrator.opennebula.objects import Host


def choose_host(hosts: Iterable[Host], clusters: Collection[int], *, cpus: float, memory_bytes: int) -> Host | None:
    """The usable host of these clusters with room for the VM that has the most memory left; None when none has room.

    `clusters`: ids of the clusters that reach the VM's network.
    """
    fitting = [
        host
        for host in hosts
        if host.usable
        and host.cluster_id in clusters
        and host.cpu_free >= cpus
        and host.memory_free_bytes >= memory_bytes
    ]
    return max(fitting, key=lambda host: (host.memory_free_bytes, host.cpu_free, -host.id), default=None)
