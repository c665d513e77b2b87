"""`mayfly submit`: put a task into the queue and come back at once."""

from __future__ import annotations

from datetime import UTC, datetime

from orchestrator.bootstrap import load_pools, open_house
from orchestrator.cli import output, submission
from orchestrator.cli.entry import perform
from orchestrator.decide.deadlines import of_queued
from orchestrator.domain.task import Entrypoint, TraceProfile
from orchestrator.settings import Settings


def submit(
    command: submission.Command = None,
    pool: submission.PoolName = "default",
    inputs: submission.Inputs = None,
    outputs: submission.Outputs = None,
    environment: submission.Environment = None,
    timeout: submission.Timeout = None,
    memory: submission.Memory = None,
    entrypoint: submission.EntrypointName = Entrypoint.COMMAND,
    trace: submission.Trace = TraceProfile.AUDIT,
    name: submission.Name = "",
    as_json: submission.AsJson = False,
) -> None:
    """Queue a task; a runner (mayfly up, mayfly runner) will take it. Prints its id."""
    settings = Settings.from_environment()

    async def work() -> None:
        async with open_house(settings) as house:
            spec = await submission.prepare(
                house,
                pool=pool,
                command=command,
                inputs=inputs,
                outputs=outputs,
                environment=environment,
                seconds=timeout,
                memory=memory,
                entrypoint=entrypoint,
                trace=trace,
                name=name,
            )
            now = house.store.clock.now()
            deadline_at = of_queued(spec.terms, (await load_pools(house.settings))[pool], now)
            task = await house.store.tasks.submit(spec, now=now, deadline_at=deadline_at)
            runners = await house.store.runners.alive(now=datetime.now(UTC))
        if as_json:
            output.as_json({"id": task.id, "state": task.state})
        else:
            output.say(task.id)
            if not any(pool in runner.pools for runner in runners):
                output.note("no runner is alive for this pool: start one with mayfly up")

    perform(work())
