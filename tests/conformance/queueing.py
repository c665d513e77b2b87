"""What the store's tests ask for again and again, with what they do not care about filled in."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta

from orchestrator.domain.outcome import Reason
from orchestrator.domain.task import TaskSpec, Terms
from orchestrator.store import Claim, Lease, Requeued, RunnerRow, Store, TaskRow

T0 = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
DAY = timedelta(days=1)
PLENTY = 1_000_000
_names = itertools.count(1)


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def spec(pool: str = "small", name: str = "", terms: Terms | None = None) -> TaskSpec:
    return TaskSpec(pool=pool, command=("true",), name=name, terms=terms or Terms())


async def submit(
    store: Store,
    wanted: TaskSpec,
    *,
    now: datetime,
    deadline_at: datetime | None = None,
    frontend: str = "local",
    hold: bool = False,
) -> TaskRow:
    return await store.tasks.submit(wanted, now=now, deadline_at=deadline_at or now + DAY, frontend=frontend, hold=hold)


async def take(
    store: Store,
    runner_id: str,
    pools: Collection[str],
    *,
    now: datetime,
    up_to: int,
    lease_seconds: float = 30,
    only: str | None = None,
    max_vms: Mapping[str, int] | None = None,
) -> tuple[Claim, ...]:
    return await store.tasks.claim(
        runner_id,
        dict.fromkeys(pools, PLENTY),
        max_vms=max_vms or {},
        lease_seconds=lease_seconds,
        now=now,
        up_to=up_to,
        only=only,
        deadline=lambda _: now + DAY,
    )


async def take_one(
    store: Store,
    runner_id: str,
    pools: Collection[str],
    *,
    now: datetime,
    lease_seconds: float = 30,
    only: str | None = None,
    max_vms: Mapping[str, int] | None = None,
) -> Claim | None:
    """The next one, if there is one."""
    claims = await take(
        store, runner_id, pools, now=now, up_to=1, lease_seconds=lease_seconds, only=only, max_vms=max_vms
    )
    assert len(claims) <= 1
    return claims[0] if claims else None


async def register(
    store: Store, *, now: datetime, host: str = "here", pid: int = 1, pools: Collection[str] = ("small",)
) -> RunnerRow:
    return await store.runners.register(name=f"runner {next(_names)}", host=host, pid=pid, pools=pools, now=now)


async def runner(store: Store, *pools: str) -> str:
    return (await register(store, pools=pools or ("small",), now=T0)).id


async def claimed(store: Store, runner_id: str | None = None, *, pool: str = "small") -> Claim:
    """A new task, held at at(1) until at(31)."""
    runner_id = runner_id or await runner(store)
    task = await submit(store, spec(pool), now=T0)
    taken = await take_one(store, runner_id, [pool], now=at(1), only=task.id)
    assert taken is not None
    return taken


def retried(lease: Lease, reason: Reason, message: str = "") -> Requeued:
    """To be tried again at once."""
    return Requeued(lease, reason, message, not_before=None, deadline_at=T0 + DAY)


async def kinds(store: Store, task_id: str) -> list[str]:
    return [event.kind for event in await store.events.list(task_id=task_id)]
