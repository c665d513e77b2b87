"""May this be seen? What came out of a machine is withheld until somebody has released it, where the pool says so."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from orchestrator.bootstrap import House, load_pools
from orchestrator.cli import output
from orchestrator.cli.who import me
from orchestrator.decide.disclosure import in_force, why_not_by, withheld
from orchestrator.domain.errors import InvalidPool, NotPossible
from orchestrator.domain.pool import Disclosure
from orchestrator.store import TaskRow

Unreleased = Annotated[
    bool, typer.Option("--unreleased", help="Look before anybody has released it; who did is in the event log.")
]

_CHUNK = 1 << 20


async def disclosure_of(house: House, task: TaskRow) -> Disclosure:
    """The stricter of what held when it last ran and what its pool says now."""
    attempts = await house.store.attempts.of_task(task.id)
    recorded = attempts[-1].environment.get("disclosure") if attempts else None
    try:
        pool = (await load_pools(house.settings)).get(task.spec.pool)
    except InvalidPool as problem:
        output.note(f"the inventory cannot be read: {problem}")
        pool = None
    return in_force(None if recorded is None else Disclosure(recorded), None if pool is None else pool.disclosure)


async def why_withheld(house: House, task: TaskRow) -> str:
    """Why nothing of what came out of its machines is to be seen; "" when it is."""
    review = await house.store.reviews.get(task.id)
    return withheld(await disclosure_of(house, task), None if review is None else review.decision.value)


async def require_disclosed(house: House, task: TaskRow, *, unreleased: bool, what: str) -> None:
    """Raise NotPossible, with sizes and counts, unless `what` may be seen. `unreleased`: it is looked at all the same,
    by somebody who may, and that is written down before."""
    why = await why_withheld(house, task)
    if not why:
        return
    if not unreleased:
        told = await asyncio.to_thread(sizes, house, task)
        remedy = f"mayfly release {task.id}" if task.state.over else "wait for its end, and for a release"
        raise NotPossible("results", f"those of task {task.id} are withheld: {why}; {told}", remedy)
    by = me()
    problem = why_not_by(await disclosure_of(house, task), submitted_by=task.submitted_by, by=by)
    if problem:
        raise NotPossible("unreleased", f"task {task.id}: {problem}", "ask somebody else")
    message = f"{by} looked at {what}, which nobody has released"
    now = house.store.clock.now()
    attempt = task.attempt or None
    await house.store.events.append(message, now=now, task_id=task.id, attempt=attempt, data={"by": by, "what": what})


def sizes(house: House, task: TaskRow) -> str:
    """How much there is, in words. Blocking."""
    told = []
    for name in ("stdout", "stderr"):
        size, lines = _counted(house, task, name)
        told.append(f"{name} has {size} B in {lines} lines")
    outputs = house.artifacts.outputs(task.id, task.attempt)
    if outputs is not None:
        told.append(f"{len(outputs.files)} outputs have {output.size(outputs.size)}")
    return ", ".join(told)


def _counted(house: House, task: TaskRow, stream: str) -> tuple[int, int]:
    """Bytes and lines of what was kept of a stream."""
    log = house.artifacts.log(task.id, task.attempt, stream)
    size = lines = 0
    while chunk := log.read(size, _CHUNK):
        size += len(chunk)
        lines += chunk.count(b"\n")
    return size, lines
