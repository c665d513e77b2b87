"""A pool: a named kind of machine, from an inventory file; also a queue of tasks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pool:
    """One host of the inventory group `pools`, its variables checked.

    Sizes are in bytes, times in seconds. `network` and `security_groups` are names in OpenNebula; `ssh_port` is the
    port on which the NIC's address answers (Ansible's `ansible_port`).

    >>> Pool(name="small", image="debian-12").cpus
    1
    """

    name: str
    image: str
    cpus: int = 1
    memory_bytes: int = 512 * 2**20
    network: str = "sealed"
    ssh_port: int = 22
    max_vms: int = 2
    default_timeout_seconds: float = 3600.0
    max_timeout_seconds: float = 86400.0
    task_memory_bytes: int | None = None
    max_processes: int = 512
    boot_timeout_seconds: float = 300.0
    launch_timeout_seconds: float = 120.0
    kill_grace_seconds: float = 5.0
    max_output_bytes: int = 10 * 2**30
    max_log_bytes: int = 1 * 2**30

    @property
    def process_memory_bytes(self) -> int:
        """The most that a process may use: what the pool says, else the machine's memory less what its system and the
        tracer need, a quarter of it and at least 96 MiB.

        >>> Pool(name="small", image="debian-12").process_memory_bytes // 2**20
        384
        """
        return self.task_memory_bytes or self.memory_bytes - max(96 * 2**20, self.memory_bytes // 4)
