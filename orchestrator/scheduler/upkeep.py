"""What the chores work with: the doors, wired by bootstrap, and the pools as the inventory has them now."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.artifacts import Artifacts
from orchestrator.domain.pool import Pool
from orchestrator.opennebula import Cloud
from orchestrator.receipts import Keys
from orchestrator.settings import LEASE_SECONDS
from orchestrator.store import Store
from orchestrator.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class Upkeep:
    """`pools` is renewed in place by the chore that reads the inventory, with `read_pools` (raises InvalidPool).
    `lease_seconds`: how long a runner may be silent before others take over. `keys`: what signs receipts; None: nothing
    does."""

    store: Store
    artifacts: Artifacts
    cloud: Cloud
    pools: dict[str, Pool]
    read_pools: Callable[[], Awaitable[Mapping[str, Pool]]]
    lease_seconds: float = LEASE_SECONDS
    telemetry: Telemetry = field(default_factory=Telemetry)
    keys: Keys | None = None


class Chore(Protocol):
    """One periodic upkeep job, made anew whenever its scheduler begins to lead: what it remembers is from that time."""

    @property
    def interval_seconds(self) -> float:
        """How long from one round to the next."""

    @property
    def looks_twice(self) -> bool:
        """What it touches, it has seen in the round before: one round alone does little."""

    async def run_once(self) -> list[str]:
        """Do what is due now; a line for each thing done."""
