"""The scheduler: APScheduler with a table of chore and interval, nothing else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.domain.errors import MayflyError
from orchestrator.opennebula import Cloud
from orchestrator.scheduler.reap import Reap
from orchestrator.store import Store

_log = logging.getLogger(__name__)


class Chore(Protocol):
    """One periodic upkeep job."""

    interval_seconds: float

    async def run_once(self, store: Store, cloud: Cloud) -> list[str]:
        """Do what is due now; a line for each thing done."""


CHORES: dict[str, Callable[[], Chore]] = {"reap": Reap}


async def serve(store: Store, cloud: Cloud, stop: asyncio.Event) -> None:
    """Run every chore at its interval until `stop`. A chore that fails is logged, and comes again."""
    scheduler = AsyncIOScheduler(timezone=UTC)
    for name, make in CHORES.items():
        chore = make()
        scheduler.add_job(
            _run,
            "interval",
            seconds=chore.interval_seconds,
            args=(name, chore, store, cloud),
            id=name,
            max_instances=1,
            coalesce=True,
            misfire_grace_time=None,
            next_run_time=datetime.now(UTC),
        )
    scheduler.start()
    try:
        await stop.wait()
    finally:
        scheduler.shutdown(wait=False)


async def _run(name: str, chore: Chore, store: Store, cloud: Cloud) -> None:
    try:
        for line in await chore.run_once(store, cloud):
            _log.info("chore %s: %s", name, line)
    except (MayflyError, SQLAlchemyError, OSError) as trouble:
        _log.warning("chore %s failed, and comes again: %s", name, trouble)
