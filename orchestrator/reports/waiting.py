"""Why tasks wait, how many are before them, and how long that may take: the facts are the database's, the one reason is
`decide.waiting`'s. Every reader is told the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.decide.admission import Room
from orchestrator.decide.waiting import LayerWait, Situation, Waiting, estimate_seconds, position, why
from orchestrator.domain.outcome import Reason
from orchestrator.domain.pool import Pool
from orchestrator.domain.task import TaskState
from orchestrator.store import QueueRow, Store, TaskRow, Throughput

_MOVES = frozenset({Reason.IN_LINE, Reason.NO_CAPACITY, Reason.MAX_VMS, Reason.QUOTA})
"""What passes as other tasks end. Until somebody resumes a queue or starts a runner, nobody can say how long."""


@dataclass(frozen=True, slots=True)
class Standing:
    """position: 1 is next; None of a task that is not in line yet. estimate_seconds: until its turn, at the pace of the
    last hour; None where nothing is known of that, or the line does not move."""

    waiting: Waiting
    position: int | None = None
    estimate_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class _Pace:
    throughput: Throughput
    running: int


class Line:
    """One look at the queues: what tasks share is read once. `pools`: as the inventory has them now."""

    def __init__(self, store: Store, pools: Mapping[str, Pool]) -> None:
        self._store = store
        self._pools = pools
        self._now = store.clock.now()
        self._queues: dict[str, QueueRow] | None = None
        self._open_vms: Counter[str] = Counter()
        self._served: dict[str, bool] = {}
        self._pace: dict[str, _Pace] = {}

    async def standing(self, task: TaskRow) -> Standing | None:
        """Why the task waits and where it stands; None: it does not wait."""
        if task.state not in (TaskState.NEW, TaskState.QUEUED):
            return None
        pool = task.spec.pool
        queue = await self._queue(pool)
        rank = await self._rank(task)
        blocked = None
        if queue is not None and queue.blocked_reason is not None:
            blocked = Room(0, queue.blocked_reason, queue.blocked_message)
        unfinished = () if task.admitted_at is not None else await self._store.tasks.unfinished(task.id)
        layer = await self._unlaid(task)
        waiting = why(
            Situation(
                state=task.state,
                pool=self._pools.get(pool),
                pool_name=pool,
                now=self._now,
                admitted=task.admitted_at is not None,
                not_before=task.not_before,
                unfinished=[each for each in unfinished if layer is None or each != layer.builder],
                layer=layer,
                attempt=task.attempt,
                last_reason=task.reason,
                last_message=task.message,
                paused=queue is not None and queue.paused_at is not None,
                paused_because="" if queue is None else queue.paused_because,
                served=await self._is_served(pool),
                blocked=blocked,
                open_vms=self._open_vms[pool],
                ahead=None if rank is None else rank - 1,
            )
        )
        if waiting is None:
            return None
        if rank is None or waiting.reason not in _MOVES:
            return Standing(waiting, rank)
        return Standing(waiting, rank, await self._estimate(pool, rank))

    async def _unlaid(self, task: TaskRow) -> LayerWait | None:
        """Of a task whose packages are not installed yet."""
        if task.admitted_at is not None or not task.spec.packages:
            return None
        layer = None if task.layer is None else await self._store.layers.get(task.layer)
        if layer is not None and layer.ready_at is not None:
            return None
        return LayerWait(None if layer is None else layer.task_id)

    async def _queue(self, pool: str) -> QueueRow | None:
        if self._queues is None:
            self._queues = {queue.pool: queue for queue in await self._store.queues.list()}
            self._open_vms = Counter(await self._store.vms.open_by_pool())
        return self._queues.get(pool)

    async def _rank(self, task: TaskRow) -> int | None:
        if task.state is not TaskState.QUEUED or task.admitted_at is None:
            return None
        place = await self._store.tasks.ahead_of(task.id)
        return None if place is None else position(place)

    async def _is_served(self, pool: str) -> bool:
        if pool not in self._served:
            self._served[pool] = await self._store.runners.serving(pool, now=self._now)
        return self._served[pool]

    async def _estimate(self, pool: str, rank: int) -> float | None:
        if pool not in self._pace:
            held = (TaskState.RUNNING, TaskState.WAITING)
            running = await self._store.tasks.list(states=held, pool=pool, limit=10_000)
            self._pace[pool] = _Pace(await self._store.tasks.throughput(pool, now=self._now), len(running))
        pace = self._pace[pool]
        return estimate_seconds(rank, pace.throughput, running=pace.running)


def standing_json(standing: Standing | None) -> dict[str, object] | None:
    """As reports and listings have it."""
    if standing is None:
        return None
    return {
        "reason": standing.waiting.reason,
        "message": standing.waiting.message,
        "position": standing.position,
        "estimate_seconds": standing.estimate_seconds,
    }


def is_canceling(task: TaskRow, machines_left: bool) -> bool:
    """Whether the end that somebody asked for is not complete: until OpenNebula says that the machine is gone."""
    return task.cancel_requested_at is not None and (not task.state.over or machines_left)
