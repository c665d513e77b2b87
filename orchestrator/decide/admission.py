"""May this task start now? The answer is a reason, not a boolean: people are told that same reason."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.domain.outcome import Reason
from orchestrator.domain.pool import Pool


@dataclass(frozen=True, slots=True)
class Room:
    """What is taken and what is left. open_vms: VMs of the pool that are not destroyed.

    free_cpus, free_memory_bytes: of the roomiest host of the cloud; None when the cloud does not tell.
    """

    open_vms: int
    free_cpus: float | None = None
    free_memory_bytes: int | None = None


def why_not_start(pool: Pool, room: Room) -> Reason | None:
    """Why one more task of `pool` cannot start now; None: it can.

    >>> why_not_start(Pool(name="small", image="debian-12", max_vms=2), Room(open_vms=2))
    <Reason.NO_CAPACITY: 'no_capacity'>
    """
    if room.open_vms >= pool.max_vms:
        return Reason.NO_CAPACITY
    if room.free_cpus is not None and room.free_cpus < pool.cpus:
        return Reason.NO_CAPACITY
    if room.free_memory_bytes is not None and room.free_memory_bytes < pool.memory_bytes:
        return Reason.NO_CAPACITY
    return None
