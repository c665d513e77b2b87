"""What an attempt does with its machine, one verb a stage: connect, prepare, seal, stage in, execute, stage out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from orchestrator.decide.entrypoint import argv_of
from orchestrator.decide.outputs import match
from orchestrator.domain.errors import Unreachable
from orchestrator.domain.outcome import Lost, Outcome
from orchestrator.domain.pool import Pool
from orchestrator.domain.task import TaskSpec
from orchestrator.guest import (
    TRACE_PATH,
    Guest,
    Launch,
    OutputEntry,
    OutputKind,
    OutputRefused,
    require,
    require_sealed,
)
from orchestrator.guest import connect as connect_guest
from orchestrator.runner.machine import Machine, ready
from orchestrator.runner.progress import Progress
from orchestrator.runner.tools import Tools
from orchestrator.store import TaskRow
from orchestrator.trace.command import traced


async def connect(machine: Machine, address: str, tools: Tools) -> Guest:
    """An SSH connection to the machine, which shows the host key that we made; else its console log is kept."""
    try:
        guest = await connect_guest(
            address,
            machine.pool.ssh_port,
            host_key=machine.host_key,
            client_key=tools.client_key.private,
            deadline=machine.pool.boot_timeout_seconds,
            vm_gone=machine.gone,
        )
    except Unreachable as failure:
        console = await tools.console(machine.cloud_id)
        raise Unreachable(str(failure), evidence=console or failure.evidence) from failure
    await ready(machine, tools, address)
    return guest


async def prepare(guest: Guest, tools: Tools, progress: Progress) -> None:
    """Check that the machine has what a task needs, and keep its facts."""
    facts = await guest.facts()
    await tools.store.attempts.record_environment(
        progress.lease,
        {
            "kernel": facts.kernel,
            "memory_bytes": facts.memory_bytes,
            "disk_free_bytes": facts.disk_free_bytes,
            "boot_seconds": facts.uptime_seconds,
        },
    )
    require(facts)


async def seal(guest: Guest, tools: Tools, progress: Progress) -> None:
    """See from inside that nothing can be reached, before any input goes in."""
    probes = await guest.probe_seal()
    await tools.store.attempts.record_environment(
        progress.lease,
        {"seal": [{"target": p.target, "reached": p.reached, "detail": p.detail} for p in probes]},
    )
    require_sealed(probes)


async def stage_in(guest: Guest, task: TaskRow, tools: Tools, progress: Progress) -> None:
    """Copy the inputs into /task/in."""
    entries = await asyncio.to_thread(tools.artifacts.entries, task.spec.inputs)
    await guest.stage_in(entries, lambda done, total: progress.transfer("in", done, total))


async def execute(guest: Guest, machine: Machine, task: TaskRow, tools: Tools, progress: Progress) -> Outcome:
    """Start the process, follow it to its end, stop it when it is canceled. How it ended is recorded at once."""
    await guest.start(launch_of(task.spec, machine.pool))
    logs = progress.logs
    async with _stopped_on_cancel(guest, machine.pool, progress):
        outcome, usage = await guest.follow(logs.stdout, logs.stderr, logs.trace)
    await tools.store.attempts.record_outcome(progress.lease, outcome, usage)
    return outcome


async def stage_out(guest: Guest, task: TaskRow, outcome: Outcome, tools: Tools, progress: Progress) -> tuple[str, ...]:
    """Copy out what the patterns match, and a manifest of it. Returns a line for each pattern that matched nothing.

    Of a process that did not end well, all that is there is taken: partial outputs are evidence.
    """
    if isinstance(outcome, Lost):
        return ()
    pool = tools.pools[task.spec.pool]
    found = {entry.path: entry for entry in await guest.list_outputs()}
    matched = match(
        task.spec.outputs, [path for path, entry in found.items() if entry.kind is not OutputKind.DIRECTORY]
    )
    wanted = [found[path] for path in matched.paths]
    _refuse_what_is_no_file(wanted)
    async with progress.logs.outputs() as sink:
        await guest.stage_out(
            wanted,
            sink,
            limit_bytes=pool.max_output_bytes,
            progress=lambda done, total: progress.transfer("out", done, total),
        )
    return matched.complaints


def launch_of(spec: TaskSpec, pool: Pool) -> Launch:
    """The process as the guest starts it: the task's limits where it has any, else the pool's."""
    limits = spec.limits
    return Launch(
        argv=argv_of(spec),
        environment=spec.environment,
        timeout_seconds=limits.timeout_seconds or pool.default_timeout_seconds,
        memory_bytes=limits.memory_bytes or pool.process_memory_bytes,
        processes=limits.processes or pool.max_processes,
        trace=traced(spec.trace, output=TRACE_PATH),
        kill_grace_seconds=pool.kill_grace_seconds,
        max_log_bytes=pool.max_log_bytes,
    )


def _refuse_what_is_no_file(entries: list[OutputEntry]) -> None:
    for entry in entries:
        if entry.kind is not OutputKind.FILE:
            raise OutputRefused(entry.path, f"it is a {entry.kind}, not a regular file, and is not followed or copied")


@asynccontextmanager
async def _stopped_on_cancel(guest: Guest, pool: Pool, progress: Progress) -> AsyncIterator[None]:
    """Inside the block, a cancel ends the process: SIGTERM, and SIGKILL after the pool's grace."""

    async def stop() -> None:
        await progress.hold.canceled.wait()
        await guest.stop(pool.kill_grace_seconds)

    stopping = asyncio.create_task(stop(), name="stop on cancel")
    try:
        yield
    finally:
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
