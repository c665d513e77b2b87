"""`mayfly queue`: the queues, one for each pool."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from orchestrator.bootstrap import House, load_pools, open_house
from orchestrator.cli import output
from orchestrator.cli.because import Because, require_plain
from orchestrator.cli.entry import perform
from orchestrator.cli.submission import AsJson
from orchestrator.domain.errors import NotFound, NotPossible
from orchestrator.domain.outcome import Reason
from orchestrator.settings import Settings

app = typer.Typer(no_args_is_help=True, help="The queues of tasks, one for each pool.")
PoolName = Annotated[str, typer.Argument(metavar="POOL", help="The pool whose queue it is.")]


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """How many tasks wait and run in each, and what keeps them."""
    settings = Settings.from_environment()

    async def work() -> None:
        async with open_house(settings) as house:
            pools = await load_pools(settings)
            queues = {queue.pool: queue for queue in await house.store.queues.list()}
            now = await house.store.clock.sync()
            served = {name: await house.store.runners.serving(name, now=now) for name in {*pools, *queues}}
        rows: list[dict[str, Any]] = []
        for name in sorted({*pools, *queues}):
            queue = queues.get(name)
            rows.append(
                {
                    "pool": name,
                    "waiting": 0 if queue is None else queue.waiting,
                    "running": 0 if queue is None else queue.held,
                    "paused_at": None if queue is None else queue.paused_at,
                    "paused_because": None if queue is None else queue.paused_because,
                    "blocked_reason": None if queue is None else queue.blocked_reason,
                    "blocked_message": None if queue is None else queue.blocked_message,
                    "served": served[name],
                }
            )
        if as_json:
            output.as_json(rows)
            return
        output.table(
            ("pool", "waiting", "running", "because"),
            ((row["pool"], row["waiting"], row["running"], _because(row)) for row in rows),
            empty="the inventory has no pool: see inventories/local",
        )

    perform(work())


def _because(row: dict[str, Any]) -> str:
    """The reason that must go first, as `decide.waiting` has them."""
    if row["blocked_reason"] is Reason.NO_SUCH_POOL:
        return str(row["blocked_message"])
    if row["paused_at"]:
        return f"paused: {row['paused_because']}" if row["paused_because"] else "paused"
    if row["waiting"] and not row["served"]:
        return "no runner is alive for it"
    return str(row["blocked_message"] or "")


@app.command()
def pause(
    pool: PoolName,
    because: Because = "",
    as_json: AsJson = False,
) -> None:
    """Start no more tasks of a pool; those that run come to their end. Again is fine."""
    settings = Settings.from_environment()

    async def work() -> None:
        require_plain(because)
        async with open_house(settings) as house:
            await _known(house, pool)
            await house.store.queues.pause(pool, because, now=house.store.clock.now())
        _say(pool, "paused", as_json)

    perform(work())


@app.command()
def resume(pool: PoolName, as_json: AsJson = False) -> None:
    """Start tasks of a pool again. Again is fine."""
    settings = Settings.from_environment()

    async def work() -> None:
        async with open_house(settings) as house:
            await _known(house, pool)
            await house.store.queues.resume(pool, now=house.store.clock.now())
        _say(pool, "resumed", as_json)

    perform(work())


@app.command()
def delete(
    pool: PoolName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Cancel every task of a pool: those that wait at once, those that run as by mayfly cancel."""
    settings = Settings.from_environment()

    async def work() -> None:
        async with open_house(settings) as house:
            await _known(house, pool)
            if not yes and not _confirmed(pool):
                raise NotPossible("queue", f"{pool} is left as it is", "say --yes")
            count = await house.store.queues.delete(pool, now=house.store.clock.now())
        if as_json:
            output.as_json({"pool": pool, "canceled": count})
        else:
            output.say(f"{count} tasks of {pool} are canceled, or are being canceled")

    perform(work())


def _confirmed(pool: str) -> bool:
    return bool(output.err.is_terminal and typer.confirm(f"Cancel every task of pool {pool}?", err=True))


async def _known(house: House, pool: str) -> None:
    """Raise NotFound unless the inventory or the database knows of it."""
    pools = await load_pools(house.settings)
    if pool not in pools and pool not in {queue.pool for queue in await house.store.queues.list(counts=False)}:
        raise NotFound("pool", f"no queue {pool!r}", f"there is {', '.join(sorted(pools))}")


def _say(pool: str, what: str, as_json: bool) -> None:
    if as_json:
        output.as_json({"pool": pool, "state": what})
    else:
        output.say(f"the queue of {pool} is {what}")
