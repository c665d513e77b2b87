"""What was placed and is not shown by OpenNebula yet, where the account may place VMs itself.

OpenNebula's own scheduler takes 10 to 15 s for a lone VM with its default settings, and a burst of VMs can stop it
for good (measured on 7.2.0), so that VMs are placed by `one.vm.deploy` where that is allowed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from orchestrator.opennebula.objects import Host


@dataclass(eq=False, slots=True)
class Placement:
    """One VM that is given a host. `happened`: OpenNebula did it, or may have. `counted_from`: readings of the hosts
    that began after this time (monotonic clock) show it; None while the deployment is under way."""

    host_id: int
    cpus: float
    memory_bytes: int
    happened: bool = False
    counted_from: float | None = None


@dataclass(slots=True)
class Placements:
    """What we placed that a reading of the hosts does not show yet: readings are kept for some seconds, and many VMs
    are placed in that time."""

    _made: list[Placement] = field(default_factory=list)

    @contextmanager
    def counting(self, host: Host, *, cpus: float, memory_bytes: int) -> Iterator[Placement]:
        """Inside the block, and if it `happened` until a reading shows it, the host has that much less."""
        placement = Placement(host.id, cpus, memory_bytes)
        self._made.append(placement)
        try:
            yield placement
        finally:
            if placement.happened:
                placement.counted_from = time.monotonic()
            else:
                self._made.remove(placement)

    def after(self, hosts: Iterable[Host], read_at: float) -> list[Host]:
        """The hosts as they are with what was placed since they were read, `read_at`; forgets what that reading
        shows."""
        self._made = [made for made in self._made if made.counted_from is None or made.counted_from >= read_at]
        taken: dict[int, tuple[float, int]] = {}
        for made in self._made:
            cpus, memory = taken.get(made.host_id, (0.0, 0))
            taken[made.host_id] = cpus + made.cpus, memory + made.memory_bytes
        return [_less(host, *taken.get(host.id, (0.0, 0))) for host in hosts]


def _less(host: Host, cpus: float, memory_bytes: int) -> Host:
    return replace(host, cpu_free=host.cpu_free - cpus, memory_free_bytes=host.memory_free_bytes - memory_bytes)
