"""What the database said at one moment, as gauges. A scrape shows one look whole, or none at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from orchestrator.domain.vm import VmState

OPEN = tuple(state for state in VmState if state is not VmState.DESTROYED)


@dataclass(frozen=True, slots=True)
class Look:
    """By pool, where it is by anything; what is missing is 0. vms: by pool and state. ready: those of them that stand
    ready for no attempt yet. oldest_wait_seconds: of tasks that wait for nothing but room.
    quarantined: by kind, "version" or "host"."""

    vms: Mapping[tuple[str, VmState], int] = field(default_factory=dict)
    ready: Mapping[str, int] = field(default_factory=dict)
    waiting: Mapping[str, int] = field(default_factory=dict)
    held: Mapping[str, int] = field(default_factory=dict)
    oldest_wait_seconds: Mapping[str, float] = field(default_factory=dict)
    runners: Mapping[str, int] = field(default_factory=dict)
    quarantined: Mapping[str, int] = field(default_factory=dict)


class Looked(Collector):
    """The last look; none until there was one. pools: the values that the label may have beside that for all others,
    `fold` what a pool's name becomes."""

    def __init__(self, pools: Callable[[], Iterable[str]], fold: Callable[[str], str]) -> None:
        self.last: Look | None = None
        self.overdue: int | None = None
        """VMs whose deadline has passed, which is looked at by another chore, and as often as that comes."""
        self._pools = pools
        self._fold = fold

    def collect(self) -> Iterator[GaugeMetricFamily]:
        look, overdue = self.last, self.overdue
        if overdue is not None:
            yield GaugeMetricFamily("mayfly_overdue_vms", "VMs whose deadline has passed.", value=overdue)
        if look is None:
            return
        by_state: Counter[tuple[str, VmState]] = Counter()
        for (pool, state), count in look.vms.items():
            by_state[self._fold(pool), state] += count
        vms = GaugeMetricFamily("mayfly_vms", "VMs that are not destroyed.", labels=("pool", "state"))
        for pool in dict.fromkeys((*self._pools(), *(pool for pool, _ in by_state))):
            for state in OPEN:
                vms.add_metric((pool, state.value), by_state[pool, state])
        yield vms
        yield self._by_pool("ready_vms", "VMs that stand ready and are for no attempt yet.", look.ready)
        yield self._by_pool("tasks_waiting", "Tasks that are QUEUED.", look.waiting)
        yield self._by_pool("tasks_held", "Tasks that a runner holds.", look.held)
        longest = "How long the longest has waited of the tasks that wait for nothing but room."
        yield self._by_pool("oldest_wait_seconds", longest, look.oldest_wait_seconds, of=max)
        yield self._by_pool("runners", "Runners that are alive and take tasks of the pool.", look.runners)
        quarantined = GaugeMetricFamily(
            "mayfly_quarantined", "Image versions and hosts that are not used for now.", labels=("kind",)
        )
        for kind in ("version", "host"):
            quarantined.add_metric((kind,), look.quarantined.get(kind, 0))
        yield quarantined

    def _by_pool(
        self, name: str, words: str, values: Mapping[str, float], of: Callable[[list[float]], float] = sum
    ) -> GaugeMetricFamily:
        family = GaugeMetricFamily(f"mayfly_{name}", words, labels=("pool",))
        found: dict[str, list[float]] = {pool: [] for pool in self._pools()}
        for pool, value in values.items():
            found.setdefault(self._fold(pool), []).append(value)
        for pool, each in found.items():
            family.add_metric((pool,), of(each) if each else 0)
        return family
