"""What the house has to do meanwhile: tasks of every kind, made from a seed, and what is expected of each."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from sqlalchemy.exc import SQLAlchemyError

from orchestrator.domain.errors import MayflyError
from orchestrator.domain.task import Delivery, TaskSpec, Terms
from orchestrator.store import Store, TaskRow

FRONTENDS = ("left", "right")
ENOUGH_ATTEMPTS = 1000
TROUBLE = (MayflyError, SQLAlchemyError, OSError)


@dataclass(frozen=True)
class Wanted:
    """One task: what it was asked to do, and whether somebody took that back."""

    task_id: str
    delivery: Delivery
    frontend: str
    stdout: bytes
    depends_on: tuple[str, ...] = ()
    cancel_after: float | None = None


@dataclass
class Load:
    """Keeps `in_flight` tasks going. `seconds`: the longest that a process sleeps."""

    store: Store
    rand: random.Random
    pool: str
    in_flight: int
    seconds: float
    wanted: dict[str, Wanted] = field(default_factory=dict)
    _to_cancel: deque[tuple[datetime, str]] = field(default_factory=deque)
    _made: int = 0

    async def top_up(self) -> None:
        """Submit until so many are in flight, and cancel what is due."""
        open_now = sum(count for (_, state), count in (await self.store.tasks.counts()).items() if not state.over)
        for _ in range(max(0, self.in_flight - open_now)):
            await self.submit_one()
        now = datetime.now(UTC)
        while self._to_cancel and self._to_cancel[0][0] <= now:
            await self.store.tasks.request_cancel(self._to_cancel.popleft()[1], now=self.store.clock.now())

    async def submit_one(self) -> TaskRow:
        self._made += 1
        token = f"token-{self._made}"
        delivery = self.rand.choice((*[Delivery.AT_LEAST_ONCE] * 3, Delivery.AT_MOST_ONCE))
        seconds = round(self.rand.uniform(0.1, 1.0) * self.seconds, 2)
        script = f"echo begin {token}; sleep {seconds}; echo result > result.txt; echo end {token}"
        frontend = self.rand.choice(FRONTENDS)
        depends_on = self._something_to_wait_for(frontend) if self.rand.random() < 0.1 else ()
        spec = TaskSpec(
            pool=self.pool,
            command=("sh", "-c", script),
            outputs=("result.txt",),
            name=token,
            terms=Terms(
                priority=self.rand.choice((0, 0, 0, 5)),
                depends_on=depends_on,
                delivery=delivery,
                max_attempts=ENOUGH_ATTEMPTS,
            ),
        )
        now = self.store.clock.now()
        task = await self.store.tasks.submit(
            spec,
            now=now,
            deadline_at=now + timedelta(days=1),
            frontend=frontend,
            idempotency_key=token,
        )
        cancel_after = self.rand.uniform(0, 3 * self.seconds) if self.rand.random() < 0.08 else None
        if cancel_after is not None:
            self._to_cancel.append((datetime.now(UTC) + timedelta(seconds=cancel_after), task.id))
        said = f"begin {token}\nend {token}\n".encode()
        self.wanted[task.id] = Wanted(task.id, delivery, frontend, said, depends_on, cancel_after)
        return task

    def _something_to_wait_for(self, frontend: str) -> tuple[str, ...]:
        """A task that will be FINISHED, whatever happens: one of the last that may be tried again and stays wanted."""
        for each in reversed(self.wanted.values()):
            sure = each.delivery is Delivery.AT_LEAST_ONCE and each.cancel_after is None and not each.depends_on
            if sure and each.frontend == frontend:
                return (each.task_id,)
        return ()
