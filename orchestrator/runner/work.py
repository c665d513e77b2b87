"""What an attempt does with its machine, one verb a stage: provision, connect, prepare, seal, stage in, execute, stage
out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

from orchestrator.decide import layers
from orchestrator.decide.entrypoint import argv_of
from orchestrator.decide.outputs import match
from orchestrator.domain.errors import ConnectionLost, PlatformError, StagingFailed, Unreachable
from orchestrator.domain.outcome import Exited, Lost, Outcome
from orchestrator.domain.pool import Pool
from orchestrator.domain.task import Delivery, Stage, TaskSpec
from orchestrator.domain.vm import VmState
from orchestrator.guest import (
    MAX_ENTRIES,
    TRACE_PATH,
    Arming,
    Guest,
    Launch,
    OutputKind,
    Probe,
    Started,
    require,
    require_sealed,
)
from orchestrator.runner import launching
from orchestrator.runner.beside import meanwhile
from orchestrator.runner.launching import Order, ask_for, image_for, reach
from orchestrator.runner.layers import lay, require_version, version_for
from orchestrator.runner.lease import Canceled
from orchestrator.runner.machine import Machine, move
from orchestrator.runner.patience import persist
from orchestrator.runner.progress import Progress
from orchestrator.runner.sealing import look_from_outside, require_holds, seal_of, told_of_profile
from orchestrator.runner.spare import Spare
from orchestrator.runner.tellable import probed, told_by, told_of_image
from orchestrator.runner.tools import Tools
from orchestrator.runner.versions import put_aside
from orchestrator.store import Lease
from orchestrator.trace.command import traced

CANCELED_OUTPUTS_SECONDS = 30.0
"""How long the outputs of a canceled task may take to come out."""


async def provision(progress: Progress, tools: Tools, has: Callable[[Machine], None]) -> Machine:
    """Ask for a fresh VM. `has` is told as soon as there is one."""
    await progress.enter(Stage.PROVISIONING)
    aside = await persist(lambda: put_aside(tools), "how launches went")
    order = progress.order = Order(progress.pool, progress.lease, {*progress.task.avoid, *aside.hosts})
    image = await progress.during(Stage.PROVISIONING, version_for(progress.task, tools))
    if image is None:
        image = await progress.during(Stage.PROVISIONING, image_for(order.pool, tools, aside))
    progress.learn(told_of_image(image))
    machine = await ask_for(order, image, tools, has)
    progress.placed = True
    return machine


async def boot(machine: Machine, progress: Progress, tools: Tools) -> None:
    """Wait until it runs, and say where."""
    await launching.boot(machine, progress.order, tools)
    if machine.host:
        await progress.record_host(machine.host)


async def connect(machine: Machine, progress: Progress, tools: Tools) -> Guest:
    """An SSH connection. The machine is this attempt's from here on, and will never be anybody else's."""
    guest = await launching.connect(machine, progress.pool, tools)
    try:
        await move(machine, VmState.READY, tools, progress.now() + timedelta(seconds=60), address=machine.address)
        await move(machine, VmState.IN_USE, tools, progress.ends_at)
    except BaseException:
        await guest.close()
        raise
    return guest


@asynccontextmanager
async def taken(spare: Spare, progress: Progress, has: Callable[[Machine], None]) -> AsyncIterator[Guest]:
    """The connection to a machine that stood ready, and was taken with the task. Nothing is asked of anybody here."""
    async with spare.around:
        if spare.machine is None or spare.guest is None:
            raise AssertionError("a machine was taken that was not ready")
        has(spare.machine)
        require_version(progress.task, spare.image_version)
        progress.placed = True
        progress.learn(spare.told, host=spare.machine.host)
        yield spare.guest


async def see(spare: Spare, guest: Guest, progress: Progress, tools: Tools) -> None:
    """Of a machine that stood ready: seal it anew, if the task wants another profile than it was sealed with. See that
    it still answers, for a task that can be started only once: its end may not be known yet, and once it is told to
    start nobody can say whether it did."""
    if spare.machine and seal_of(progress.task.spec, progress.pool) != spare.pool.seal:
        probes = await progress.during(Stage.PREPARING, prepare(guest, progress, tools))
        await progress.during(Stage.SEALING, seal(probes, spare.machine, progress, tools))
    elif progress.task.spec.terms.delivery is Delivery.AT_MOST_ONCE:
        await progress.hold.while_held(guest.check())


async def reconnect(machine: Machine, progress: Progress, tools: Tools) -> Guest:
    """The connection to a machine that another runner had. It must show the same host key. Raises ConnectionLost."""
    if not machine.host_key or not machine.address:
        raise ConnectionLost(f"where VM {machine.cloud_id} answers, and with which key, was not written down")
    try:
        return await reach(machine, progress.pool, tools, within=launching.RECONNECT_SECONDS)
    except Unreachable as failure:
        raise ConnectionLost(f"the machine of the runner before us: {failure}", evidence=failure.evidence) from failure


async def prepare(guest: Guest, progress: Progress, tools: Tools) -> tuple[Probe, ...]:
    """Check that the machine has what a task needs, make everything that the process runs in but the process, and see
    from inside what can be reached: one request, for these go on beside each other."""
    launch = launch_of(progress.task.spec, progress.pool, progress.lease)
    facts, probes = await guest.make_ready(Arming.of(launch), extra=tools.forbidden)
    progress.learn(told_by(facts) | probed(probes, at=progress.now()) | told_of_profile(launch.seal))
    require(facts)
    return probes


async def seal(probes: tuple[Probe, ...], machine: Machine, progress: Progress, tools: Tools) -> None:
    """Nothing can be reached, and the cloud says the same, or no input goes in; unless the profile leaves it open."""
    profile = seal_of(progress.task.spec, progress.pool)
    if profile.closed:
        told = await look_from_outside(profile, machine, progress.pool, tools)
        progress.learn(told)
        require_sealed(probes)
        require_holds(told)
    progress.order.is_fit()


async def stage_in(guest: Guest, progress: Progress, tools: Tools) -> None:
    """Copy the inputs into /task/in, and what was installed for the task to where it finds it. Raises StagingFailed,
    also when that takes longer than the pool allows, LayerFailed."""
    entries = await asyncio.to_thread(tools.artifacts.entries, progress.task.spec.inputs)
    async with _within(progress.pool.staging_timeout_seconds, "the inputs did not go in"):
        await guest.stage_in(entries, lambda done, total: progress.transfer("in", done, total))
        arming = Arming.of(launch_of(progress.task.spec, progress.pool, progress.lease))
        await lay(guest, arming, progress, tools)


async def execute(guest: Guest, progress: Progress) -> Outcome:
    """Start the process, follow it to its end, stop it when it is canceled. How it ended is recorded at once; what is
    only told to people, while it runs."""
    if progress.cancel_requested:
        raise Canceled
    await guest.start(launch_of(progress.task.spec, progress.pool, progress.lease))
    async with meanwhile(progress.write_down(), "what was learned"):
        return await _follow(guest, progress)


async def take_up(guest: Guest, progress: Progress) -> Outcome:
    """Go on following a process that another runner started; start it if that one died before it did."""
    launch = launch_of(progress.task.spec, progress.pool, progress.lease)
    match await guest.resume(launch):
        case Started.NEVER:
            await guest.start(launch)
        case Started.RUNNING | Started.ENDED | Started.GONE:
            pass
    return await _follow(guest, progress)


async def _follow(guest: Guest, progress: Progress) -> Outcome:
    logs = progress.logs
    async with _on_cancel(progress, lambda: guest.stop(progress.pool.kill_grace_seconds)):
        outcome, usage = await guest.follow(logs.stdout, logs.stderr, logs.trace)
    await progress.record_outcome(outcome, usage)
    progress.learn({"trace": {"profile": progress.task.spec.trace, **guest.tracing.told()}})
    if guest.cut:
        progress.learn({"cut": list(guest.cut)})
    await progress.write_down()
    for name, stream in (("stdout", logs.stdout), ("stderr", logs.stderr), ("trace", logs.trace)):
        if name in guest.cut:
            await stream.mark_cut()
    return outcome


async def stage_out(guest: Guest, outcome: Outcome, progress: Progress) -> tuple[str, ...]:
    """Copy out what the patterns match, and a manifest of it. Returns a line for each pattern that matched nothing.

    Of a process that did not end well, or was canceled, what can be had is taken: these outputs are evidence, and what
    keeps them from coming out does not stand in for how the process ended.
    """
    if isinstance(outcome, Lost):
        return ()

    async def hurry() -> None:
        limit.reschedule(asyncio.get_running_loop().time() + CANCELED_OUTPUTS_SECONDS)

    try:
        seconds = progress.pool.staging_timeout_seconds
        async with _within(seconds, "the outputs did not come out") as limit, _on_cancel(progress, hurry):
            return await _take_outputs(guest, progress)
    except PlatformError as failure:
        if outcome == Exited(0) and not progress.cancel_requested:
            raise
        why = str(failure)
        if progress.cancel_requested and limit.expired():
            why = f"not within {CANCELED_OUTPUTS_SECONDS:g} s of the cancel"
        await progress.note(f"not all of the outputs were taken: {why}")
        return ()


async def _take_outputs(guest: Guest, progress: Progress) -> tuple[str, ...]:
    # nobody asked for outputs: then what is there, however much or odd, is no reason for anything
    wanted = progress.task.spec.outputs
    pool = progress.pool
    most = max(MAX_ENTRIES, pool.max_output_files)  # the others need not come out, and yet are there
    found = {entry.path: entry for entry in await guest.list_outputs(most)} if wanted else {}
    matched = match(wanted, [path for path, entry in found.items() if entry.kind is not OutputKind.DIRECTORY])
    takes = {"max_files": pool.max_output_files, "max_depth": pool.max_output_depth}
    async with progress.logs.outputs(**takes, max_bytes=pool.max_output_bytes) as sink:
        await guest.stage_out(
            [found[path] for path in matched.paths],
            sink,
            limit_bytes=pool.max_output_bytes,
            progress=lambda done, total: progress.transfer("out", done, total),
        )
    return matched.complaints


@asynccontextmanager
async def _within(seconds: float, what: str) -> AsyncIterator[asyncio.Timeout]:
    try:
        async with asyncio.timeout(seconds) as limit:
            yield limit
    except TimeoutError as error:
        raise StagingFailed(f"{what} within {seconds:g} s") from error


def launch_of(spec: TaskSpec, pool: Pool, lease: Lease) -> Launch:
    """The process as the guest starts it: the task's limits where it has any, else the pool's. Its token says which
    attempt it is, so that whoever adopts the attempt knows it again."""
    limits = spec.limits
    return Launch(
        argv=argv_of(spec),
        environment=layers.environment(spec.packages) | spec.environment,
        timeout_seconds=limits.timeout_seconds or pool.default_timeout_seconds,
        memory_bytes=limits.memory_bytes or pool.process_memory_bytes,
        processes=limits.processes or pool.max_processes,
        trace=traced(spec.trace, output=TRACE_PATH),
        kill_grace_seconds=pool.kill_grace_seconds,
        max_log_bytes=pool.max_log_bytes,
        seal=seal_of(spec, pool),
        open_files=limits.open_files or pool.max_open_files,
        output_bytes=limits.output_bytes or pool.max_output_bytes,
        scratch_bytes=limits.scratch_bytes or pool.max_scratch_bytes,
        token=f"{lease.task_id}.{lease.attempt}",
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
