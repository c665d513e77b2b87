"""Prometheus metrics, as verbs. Names and units follow https://prometheus.io/docs/practices/naming/.

A label's value is never made of what came from outside: pools and images are those of the inventory, everything else is
an enum's or our own code's; what is neither is counted as OTHER. No metric is by task.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.core import Metric

from orchestrator import __version__
from orchestrator.domain.errors import PlatformError, UserError
from orchestrator.domain.outcome import Reason
from orchestrator.domain.pool import Pool
from orchestrator.telemetry.ended import REQUEUED, Ended
from orchestrator.telemetry.look import Look, Looked

OTHER = "other"
BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Seconds."""

REQUEST_RESULTS = frozenset({"ok", "unreachable", "denied", "quota", "locked", "missing", "wrong_state", "failed"})
LEAKED_KINDS = ("orphan", "abandoned")
METHODS_AT_MOST = 64
"""More calls of OpenNebula's than we know of: whatever happens, there are no more values than these."""


class _Registry(CollectorRegistry):
    """Without the instants at which each series began: nobody asks for them, and they are as many series again."""

    def collect(self) -> Iterator[Metric]:
        for family in super().collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


class Metrics:
    """What one process counts. Every verb is cheap, raises nothing and may be called from any thread.

    pools: those of the inventory, by name; the mapping may be renewed in place. exposed: somebody may read them.
    """

    def __init__(self, pools: Mapping[str, Pool] | None = None) -> None:
        self.pools: Mapping[str, Pool] = {} if pools is None else pools
        self.exposed = False
        self.registry = _Registry()
        self._methods: set[str] = set()
        self._lock = threading.Lock()
        self._launches = self._seconds("launch", "From asking for a VM until it is ready.", "pool", "image", "result")
        self._stages = self._seconds("stage", "A stage of an attempt, once that is over.", "pool", "stage")
        self._waits = self._seconds("wait", "From being ready to be claimed until the claim.", "pool")
        self._starts = self._seconds("start", "From the claim until the process is started.", "pool", "start")
        self._requests = self._seconds("opennebula_request", "One request to OpenNebula.", "method", "result")
        self._chores = self._seconds("chore", "One round of a chore.", "chore", "result")
        self._claims = self._count("claims", "Attempts begun, with a ready VM or without.", "pool", "start")
        self._adoptions = self._count("adoptions", "Attempts that another runner had begun.", "pool")
        self._ends = self._count("attempts_ended", "Attempts that are over.", "pool", "result", "reason")
        self._expiries = self._count("lease_expiries", "Attempts whose runner was silent for too long.", "then")
        self._leaked = self._count("leaked_vms", "VMs destroyed that nobody answered for.", "kind")
        self._held = self._gauge("runner_ready_vms", "VMs that stand ready for this runner.", "pool")
        self._chore_at = self._gauge(
            "chore_last_success_timestamp_seconds", "When a chore's last good round ended.", "chore"
        )
        self._leads = self._gauge("scheduler_leads", "Whether this scheduler leads.")
        self._looked = Looked(lambda: tuple(self.pools), self._pool)
        self.registry.register(self._looked)
        Info("mayfly_build", "The version of Mayfly.", registry=self.registry).info({"version": __version__})
        ProcessCollector(registry=self.registry)
        for kind in LEAKED_KINDS:
            self._leaked.labels(kind)
        for then in ("requeued", "ended"):
            self._expiries.labels(then)

    # -- runners

    def claimed(self, pool: str, *, warm: bool, waited_seconds: float | None) -> None:
        """A new attempt has begun. warm: with a ready VM. waited_seconds: since the task was ready to be claimed."""
        self._claims.labels(self._pool(pool), _start(warm)).inc()
        if waited_seconds is not None:
            self._waits.labels(self._pool(pool)).observe(max(0.0, waited_seconds))

    def adopted(self, pool: str) -> None:
        """An attempt that another runner had begun is ours."""
        self._adoptions.labels(self._pool(pool)).inc()

    def launched(self, pool: str, image: str, seconds: float, failure: BaseException | None = None) -> None:
        """A VM of the base image is ready, so many seconds after it was to be asked for, or never will be."""
        known = any(image == each.image for each in tuple(self.pools.values()))
        labels = self._pool(pool), image if known else OTHER, launch_result(failure)
        self._launches.labels(*labels).observe(max(0.0, seconds))

    def ready(self, pool: str, count: int) -> None:
        """So many VMs stand ready for this runner now."""
        self._held.labels(self._pool(pool)).set(count)

    def ended(self, attempt: Ended) -> None:
        """An attempt is over."""
        pool = self._pool(attempt.pool)
        reason = "none" if attempt.reason is None else attempt.reason.value
        self._ends.labels(pool, attempt.result, reason).inc()
        for stage, (begun, over) in attempt.stages.items():
            self._stages.labels(pool, stage.value).observe(max(0.0, (over - begun).total_seconds()))
        if attempt.start_seconds is not None:
            self._starts.labels(pool, _start(attempt.warm)).observe(max(0.0, attempt.start_seconds))

    # -- everybody who talks with OpenNebula

    def request(self, method: str, result: str, seconds: float) -> None:
        """One request: "vm.info", one of REQUEST_RESULTS."""
        with self._lock:
            if len(self._methods) < METHODS_AT_MOST:
                self._methods.add(method)
            named = method if method in self._methods else OTHER
        told = result if result in REQUEST_RESULTS else "failed"
        self._requests.labels(named, told).observe(max(0.0, seconds))

    # -- schedulers

    def lease_expired(self, *, requeued: bool) -> None:
        """An attempt whose runner was silent for too long was ended."""
        self._expiries.labels(REQUEUED if requeued else "ended").inc()

    def leaked(self, *, orphan: bool) -> None:
        """A VM that nobody answered for is destroyed. orphan: no row of ours knew it."""
        self._leaked.labels(LEAKED_KINDS[0] if orphan else LEAKED_KINDS[1]).inc()

    def chore(self, name: str, seconds: float, *, ok: bool) -> None:
        """One round of a chore is over."""
        self._chores.labels(name, "ok" if ok else "failed").observe(max(0.0, seconds))
        if ok:
            self._chore_at.labels(name).set_to_current_time()

    def chores(self, names: Iterable[str]) -> None:
        """There are these: they are shown before their first round, too."""
        for name in names:
            for result in ("ok", "failed"):
                self._chores.labels(name, result)

    def leads(self, now: bool) -> None:
        """Whether this scheduler does. One that does not says nothing of the database: another one does."""
        self._leads.set(int(now))
        if not now:
            self.forget()
            self._looked.overdue = None

    def saw(self, look: Look) -> None:
        """The database says so now."""
        self._looked.last = look

    def overdue(self, count: int) -> None:
        """Of so many VMs the deadline has passed."""
        self._looked.overdue = count

    def forget(self) -> None:
        """Nobody knows what the database says now."""
        self._looked.last = None

    def _pool(self, name: str) -> str:
        return name if name in self.pools else OTHER

    def _seconds(self, name: str, words: str, *labels: str) -> Histogram:
        return Histogram(f"mayfly_{name}_seconds", words, labels, buckets=BUCKETS, registry=self.registry)

    def _count(self, name: str, words: str, *labels: str) -> Counter:
        return Counter(f"mayfly_{name}", words, labels, registry=self.registry)

    def _gauge(self, name: str, words: str, *labels: str) -> Gauge:
        return Gauge(f"mayfly_{name}", words, labels, registry=self.registry)


def launch_result(failure: BaseException | None) -> str:
    """The class of how a launch went.

    >>> launch_result(None), launch_result(TimeoutError())
    ('ok', 'internal')
    """
    match failure:
        case None:
            return "ok"
        case PlatformError():
            return failure.reason.value
        case UserError():
            return "refused"
        case asyncio.CancelledError():
            return Reason.CANCELED.value
        case _:
            return Reason.INTERNAL.value


def _start(warm: bool) -> str:
    return "warm" if warm else "cold"
