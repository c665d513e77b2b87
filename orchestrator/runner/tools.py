"""What a runner works with: the doors, wired by bootstrap, the same for every attempt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.artifacts import Artifacts
from orchestrator.domain.pool import Pool
from orchestrator.guest.keys import KeyPair
from orchestrator.opennebula import Cloud
from orchestrator.receipts import Keys
from orchestrator.runner.launches import RecentLaunches
from orchestrator.settings import LEASE_SECONDS
from orchestrator.store import Store
from orchestrator.telemetry import Telemetry


class Console(Protocol):
    """The text that a VM (OpenNebula's id) wrote to its serial console so far; "" where the cloud does not tell."""

    async def __call__(self, vm_id: int) -> str: ...


@dataclass(frozen=True, slots=True)
class Tools:
    """`client_key` is what every VM lets in as root; `console` reads a machine's serial console.
    `pools`: those served, as the inventory has them now. `forbidden`: TCP addresses and ports (the cloud's endpoint)
    that answer here and that no machine may reach. `lease_seconds`: for how long we may be silent. `launches`: how
    those of all runners went lately. `keys`: what signs receipts; None: nothing does."""

    runner_id: str
    store: Store
    artifacts: Artifacts
    cloud: Cloud
    pools: Mapping[str, Pool]
    client_key: KeyPair
    console: Console
    forbidden: tuple[tuple[str, int], ...] = ()
    lease_seconds: float = LEASE_SECONDS
    launches: RecentLaunches = field(default_factory=RecentLaunches)
    telemetry: Telemetry = field(default_factory=Telemetry)
    keys: Keys | None = None
