"""What an attempt does with its machine, one verb a stage: connect, prepare, seal, stage in, execute, stage out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from orchestrator.decide.entrypoint import argv_of
from orchestrator.decide.outputs import match
from orchestrator.domain.errors import PlatformError, Unreachable
from orchestrator.domain.outcome import Exited, Lost, Outcome
from orchestrator.domain.pool import Pool
from orchestrator.domain.task import TaskSpec
from orchestrator.guest import (
    TRACE_PATH,
    Guest,
    Launch,
    OutputKind,
    require,
    require_sealed,
)
from orchestrator.guest import connect as connect_guest
from orchestrator.runner.machine import Machine, ready
from orchestrator.runner.progress import Progress
from orchestrator.runner.tools import Tools
from orchestrator.store import TaskRow
from orchestrator.trace.command import traced

CANCELED_OUTPUTS_SECONDS = 30.0
"""How long the outputs of a canceled task may take to come out."""

RECONNECT_SECONDS = 30.0
"""How long a connection that dropped may take to come back."""


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
            reconnect_seconds=RECONNECT_SECONDS,
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
    probes = await guest.probe_seal(extra=tools.forbidden)
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
    async with _on_cancel(progress, lambda: guest.stop(machine.pool.kill_grace_seconds)):
        outcome, usage = await guest.follow(logs.stdout, logs.stderr, logs.trace)
    await tools.store.attempts.record_outcome(progress.lease, outcome, usage)
    if guest.cut:
        await tools.store.attempts.record_environment(progress.lease, {"cut": list(guest.cut)})
    for name, stream in (("stdout", logs.stdout), ("stderr", logs.stderr), ("trace", logs.trace)):
        if name in guest.cut:
            await stream.mark_cut()
    return outcome


async def stage_out(guest: Guest, task: TaskRow, outcome: Outcome, tools: Tools, progress: Progress) -> tuple[str, ...]:
    """Copy out what the patterns match, and a manifest of it. Returns a line for each pattern that matched nothing.

    Of a process that did not end well, or was canceled, what can be had is taken: these outputs are evidence, and what
    keeps them from coming out does not stand in for how the process ended.
    """
    if isinstance(outcome, Lost):
        return ()

    async def hurry() -> None:
        limit.reschedule(asyncio.get_running_loop().time() + CANCELED_OUTPUTS_SECONDS)

    try:
        async with asyncio.timeout(None) as limit, _on_cancel(progress, hurry):
            return await _take_outputs(guest, task, tools, progress, whole=outcome == Exited(0))
    except (PlatformError, TimeoutError) as failure:
        if outcome == Exited(0) and not progress.cancel_requested:
            raise
        why = str(failure) or f"not within {CANCELED_OUTPUTS_SECONDS:g} s of the cancel"
        await progress.note(f"not all of the outputs were taken: {why}")
        return ()


async def _take_outputs(
    guest: Guest, task: TaskRow, tools: Tools, progress: Progress, *, whole: bool
) -> tuple[str, ...]:
    """`whole`: all that is wanted must be takeable; else what is not is left behind, with a note."""
    pool = tools.pools[task.spec.pool]
    # nobody asked for outputs: then what is there, however much or odd, is no reason for anything
    found = {entry.path: entry for entry in await guest.list_outputs()} if task.spec.outputs else {}
    matched = match(
        task.spec.outputs, [path for path, entry in found.items() if entry.kind is not OutputKind.DIRECTORY]
    )
    wanted = [found[path] for path in matched.paths]
    if not whole and (refused := [entry for entry in wanted if entry.kind is not OutputKind.FILE]):
        await progress.note(f"not regular files, and not taken: {', '.join(repr(entry.path) for entry in refused)}")
        wanted = [entry for entry in wanted if entry.kind is OutputKind.FILE]
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


@asynccontextmanager
async def _on_cancel(progress: Progress, act: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Inside the block, a cancel calls `act`. What goes wrong in it is not told: the block's own work will tell."""

    async def heed() -> None:
        await progress.hold.canceled.wait()
        await act()

    heeding = asyncio.create_task(heed(), name="heed a cancel")
    try:
        yield
    finally:
        heeding.cancel()
        await asyncio.gather(heeding, return_exceptions=True)
