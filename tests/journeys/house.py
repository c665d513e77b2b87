"""A whole Mayfly in one process: the local cloud without machines, guests that answer over SSH, a store, runners.

Nothing of ours is replaced. What goes wrong goes wrong on the far side of the wire: in the cloud (`house.far.faults`),
in its hypervisor (`house.hypervisor`), in a task's guest (`house.guests.behave`), or in the process, whose command says
how (`localcloud.hypervisors.ssh_scenario`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from orchestrator import bootstrap
from orchestrator.artifacts import Artifacts
from orchestrator.decide import deadlines
from orchestrator.domain.pool import Pool
from orchestrator.domain.task import InputSpec, Limits, Stage, TaskSpec, Terms
from orchestrator.guest.keys import KeyPair
from orchestrator.localcloud.hypervisors import MachineSpec
from orchestrator.localcloud.hypervisors.simulated import Closeable, SimulatedHypervisor
from orchestrator.localcloud.hypervisors.ssh_guest import Answer, SimulatedGuest, start_guest
from orchestrator.localcloud.knobs import CloudSettings
from orchestrator.localcloud.server import LocalCloud
from orchestrator.opennebula import Cloud, Images
from orchestrator.provisioning.ports import CloudObject, VersionTemplate
from orchestrator.reports.task import Report, report_of
from orchestrator.runner.loop import claim, registered, work_on
from orchestrator.runner.tools import Tools
from orchestrator.scheduler.admit import Admit
from orchestrator.scheduler.reap import Reap
from orchestrator.scheduler.upkeep import Chore, Upkeep
from orchestrator.settings import LEASE_SECONDS, Settings
from orchestrator.store import Store, TaskRow

DEADLINE = 120.0
ON_A_SMALL_DISK = """
set -eu
mkdir -p "$1/artifacts"
mount -t tmpfs -o size=1m tmpfs "$1/artifacts"
exec "$2" -c "$3" "$1"
"""
"""For `sh -c`: HOME PYTHON SCRIPT; runs the script where the artifact store has 1 MiB. Needs a mount namespace."""
KNOBS = CloudSettings(
    scheduler_interval=0.01,
    visible_delay=(0.001, 0.003),
    passing_time=0.001,
    monitor_interval=0.02,
    figures_interval=5.0,
    crash_visible_after=0.05,
    shutdown_timeout=0.5,
    shutdown_poll=0.01,
)
POOL = Pool(
    name="small",
    image="small",
    memory_bytes=256 * 2**20,
    ssh_port=KNOBS.guest_ssh_port,
    max_vms=20,
    launch_timeout_seconds=30.0,
    boot_timeout_seconds=30.0,
    kill_grace_seconds=0.2,
    max_attempts=1,
    retry_backoff_seconds=0.02,
)
"""Its tasks are tried once: see `with_pool`."""


async def until(what: str, condition: Callable[[], Awaitable[Any]]) -> Any:
    """Poll until `condition` gives something true, and return that; fail, naming `what`, at a deadline."""
    give_up = time.monotonic() + DEADLINE
    while time.monotonic() < give_up:
        if found := await condition():
            return found
        await asyncio.sleep(0.01)
    raise AssertionError(f"never: {what}")


@dataclass(frozen=True)
class Behaviour:
    """How a task's machine differs from a sound one. boots: the boot lasts until then. listens: SSH answers.
    host_key: it shows this one. answers: see `start_guest`. far: starts what listens in the place of a sound guest."""

    boots: threading.Event | None = None
    listens: bool = True
    host_key: KeyPair | None = None
    answers: Mapping[str, Answer] = field(default_factory=dict)
    far: Callable[[MachineSpec], Closeable] | None = None


class Guests:
    """Starts a guest at each boot. `of` has those of each task, or of each machine that is for none; `requests`, what
    all of them were asked."""

    def __init__(self) -> None:
        self.of: dict[str, list[SimulatedGuest]] = {}
        self.power_off: Callable[[int], None] = lambda vm_id: None
        self._behaviours: dict[str, Behaviour] = {}
        self._spares = Behaviour()

    def behave(self, task: TaskRow, **how: Any) -> None:
        """How the machines of this task will be: see Behaviour."""
        self._behaviours[task.id] = Behaviour(**how)

    def spares_behave(self, **how: Any) -> None:
        """How machines that are made for no task will be: see Behaviour."""
        self._spares = Behaviour(**how)

    def asked(self, task: TaskRow) -> list[str]:
        """The verbs that the task's guests were asked, in order, without mayfly-."""
        return self.asked_of(task.id)

    def asked_of(self, owner: str) -> list[str]:
        """The same of a task by its id, or of a machine that was made for none, by its row's."""
        return [verb.removeprefix("mayfly-") for guest in self.of.get(owner, ()) for verb in guest.asked]

    def let_go(self) -> None:
        """Let every boot end that waits."""
        for behaviour in (self._spares, *self._behaviours.values()):
            if behaviour.boots:
                behaviour.boots.set()

    def __call__(self, spec: MachineSpec) -> Closeable | None:
        # mayfly-TASK-ATTEMPT, or mayfly-VM of one that is for no task
        owner, *attempt = spec.context["SET_HOSTNAME"].split("-")[1:]
        behaviour = self._behaviours.get(owner, Behaviour()) if attempt else self._spares
        if behaviour.boots:
            behaviour.boots.wait()
        if not behaviour.listens:
            return None
        if behaviour.far:
            return behaviour.far(spec)
        if behaviour.host_key:
            context = {**spec.context, "MAYFLY_HOST_KEY_BASE64": behaviour.host_key.private_base64}
            spec = dataclasses.replace(spec, context=context)
        guest = start_guest(spec, lambda: self.power_off(spec.vm_id), behaviour.answers)
        self.of.setdefault(owner, []).append(guest)
        return guest


@dataclass(frozen=True)
class House:
    """`far`: the local cloud; `cloud`: our client of it. `tools` are those of a runner that is registered."""

    settings: Settings
    far: LocalCloud
    hypervisor: SimulatedHypervisor
    guests: Guests
    store: Store
    artifacts: Artifacts
    cloud: Cloud
    tools: Tools

    def with_pool(self, **changes: Any) -> Tools:
        """The runner's tools, the pool being otherwise."""
        pool = dataclasses.replace(self.tools.pools[POOL.name], **changes)
        return dataclasses.replace(self.tools, pools={POOL.name: pool})

    async def submit(
        self,
        *command: str,
        outputs: tuple[str, ...] = (),
        inputs: tuple[Path, ...] = (),
        timeout: float | None = None,
        pool: Pool = POOL,
        **terms: Any,
    ) -> TaskRow:
        """Queue a task. A single word of command is a script; `terms`: see Terms."""
        argv = command if len(command) > 1 else ("sh", "-c", *command)
        kept = tuple(InputSpec(str(path), path.name, self.artifacts.read_tree(path)) for path in inputs)
        spec = TaskSpec(
            pool=pool.name,
            command=argv,
            outputs=outputs,
            inputs=kept,
            limits=Limits(timeout_seconds=timeout),
            terms=Terms(**terms),
        )
        now = self.store.clock.now()
        return await self.store.tasks.submit(spec, now=now, deadline_at=deadlines.of_queued(spec.terms, pool, now))

    async def run(self, task: TaskRow, tools: Tools | None = None) -> TaskRow:
        """Claim it and work on it to its end; the task as it is then."""
        tools = tools or self.tools
        claimed = await claim(tools, only=task.id)
        assert claimed is not None
        await work_on(claimed, tools)
        return await self.store.tasks.get(task.id)

    @asynccontextmanager
    async def running(self, task: TaskRow, tools: Tools | None = None) -> AsyncIterator[asyncio.Task[TaskRow]]:
        """The task is worked on beside the block, which may await its end."""
        run = asyncio.create_task(self.run(task, tools))
        try:
            yield run
            await asyncio.wait_for(run, DEADLINE)
        finally:
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)

    async def at(self, task: TaskRow, stage: Stage) -> TaskRow:
        """Wait until the attempt is at `stage`."""

        async def reached() -> TaskRow | None:
            now = await self.store.tasks.get(task.id)
            assert now.stage is stage or not now.state.over, f"over before {stage}: {now.message}"
            return now if now.stage is stage else None

        return await until(f"{task.id} at {stage}", reached)

    async def printed(self, task: TaskRow, text: bytes) -> None:
        """Wait until the process has printed `text`."""

        async def there() -> bool:
            return text in self.log(task, "stdout")

        await until(f"{text!r} in stdout", there)

    def now(self) -> datetime:
        return self.store.clock.now()

    async def over(self, task: TaskRow) -> TaskRow:
        """Wait for the task's end; the task as it is then."""

        async def ended() -> TaskRow | None:
            now = await self.store.tasks.get(task.id)
            return now if now.state.over else None

        return await until(f"{task.id} is over", ended)

    async def expired(self, task: TaskRow) -> bool:
        """Whether its runner has let the lease run out."""
        return task.id in {row.id for row in await self.store.tasks.expired(now=self.now())}

    async def report(self, task: TaskRow) -> Report:
        return await report_of(self.store, self.artifacts, await self.store.tasks.get(task.id))

    def log(self, task: TaskRow, name: str, attempt: int = 1) -> bytes:
        """A whole log."""
        return self.artifacts.log(task.id, attempt, name).read(limit=1 << 30)

    def outputs(self, task: TaskRow, attempt: int = 1) -> list[str]:
        """The paths of the outputs that were kept."""
        tree = self.artifacts.outputs(task.id, attempt)
        return [] if tree is None else [entry.path for entry in tree.files]

    async def stages(self, task: TaskRow) -> list[Stage]:
        """The stages that the last attempt went through, as the event log has them."""
        events = await self.store.events.list(task_id=task.id)
        return [Stage(event.data["stage"]) for event in events if event.kind == "task.stage"]

    async def notes(self, task: TaskRow) -> list[str]:
        """What the event log says of the task in words."""
        events = await self.store.events.list(task_id=task.id)
        return [event.data["message"] for event in events if event.kind == "note"]

    async def let_lease_expire(self, task: TaskRow) -> None:
        """As when the runner's last heartbeat was an hour ago."""
        lease = (await self.store.tasks.get(task.id)).lease
        assert lease is not None
        ago = datetime.now(UTC) - timedelta(hours=1)
        assert await self.store.tasks.heartbeat(lease, lease_seconds=60, now=ago) is not None

    def upkeep(self, lease_seconds: float = LEASE_SECONDS, **pool: Any) -> Upkeep:
        """What chores work with."""
        pools = dict(self.with_pool(**pool).pools)

        async def read_pools() -> Mapping[str, Pool]:
            return pools

        return Upkeep(self.store, self.artifacts, self.cloud, pools, read_pools, lease_seconds)

    async def reap(self, rounds: int = 2) -> list[str]:
        """So many rounds of upkeep; what was done."""
        chore = Reap(self.upkeep())
        return [line for _ in range(rounds) for line in await chore.run_once()]

    @asynccontextmanager
    async def kept_up(self, lease_seconds: float = LEASE_SECONDS, **pool: Any) -> AsyncIterator[None]:
        """Upkeep, for as long as the block runs."""
        upkeep = self.upkeep(lease_seconds, **pool)

        async def rounds(chore: Chore, seconds: float) -> None:
            while True:
                await chore.run_once()
                await asyncio.sleep(seconds)

        going = [
            asyncio.create_task(rounds(Admit(upkeep), 0.02)),
            asyncio.create_task(rounds(Reap(upkeep), min(0.5, lease_seconds / 3))),
        ]
        try:
            yield
            assert not any(each.done() for each in going), [each for each in going if each.done()]
        finally:
            for each in going:
                each.cancel()
            await asyncio.gather(*going, return_exceptions=True)

    async def left(self) -> list[str]:
        """What is still there: rows that are not closed, VMs that are not DONE, machines that run."""
        rows = [f"row {vm.id} is {vm.state}" for vm in await self.store.vms.open()]
        vms = [f"VM {vm.id} is {vm.state_name}" for vm in await self.cloud.vms()]
        return rows + vms + [f"machine {vm_id} runs" for vm_id in self.hypervisor.machines()]


@asynccontextmanager
async def make_house(home: Path, database_url: str = "") -> AsyncIterator[House]:
    """A house with the promoted version 1 of the base image `small`; empty when it is left, or AssertionError.
    database_url: SQLite in the home unless given."""
    settings = Settings.from_environment({"MAYFLY_HOME": str(home), "MAYFLY_DATABASE_URL": database_url})
    guests = Guests()
    hypervisor = SimulatedHypervisor(guest=guests)
    guests.power_off = hypervisor.power_off
    async with AsyncExitStack() as opened:
        far_side = ExitStack()
        opened.push_async_callback(asyncio.to_thread, far_side.close)
        far = await asyncio.to_thread(far_side.enter_context, _closing(settings, hypervisor, guests))
        house = await opened.enter_async_context(bootstrap.open_house(settings))
        cloud = Cloud(far.url, far.session, timeout=10, patience=3, poll_seconds=0.01, events=far.events)
        await opened.enter_async_context(cloud)
        await promote(cloud, home)
        runner_id = await opened.enter_async_context(registered(house.store, [POOL.name], name=home.name))
        tools = Tools(
            runner_id=runner_id,
            store=house.store,
            artifacts=house.artifacts,
            cloud=cloud,
            pools={POOL.name: POOL},
            client_key=bootstrap.client_key(settings),
            console=bootstrap.console_reader(settings),
        )
        made = House(settings, far, hypervisor, guests, house.store, house.artifacts, cloud, tools)
        yield made
        guests.let_go()
        assert await made.left() == []


@contextmanager
def _closing(settings: Settings, hypervisor: SimulatedHypervisor, guests: Guests) -> Iterator[LocalCloud]:
    with LocalCloud(settings.cloud_home, hypervisor=hypervisor, knobs=KNOBS) as far:
        try:
            yield far
        finally:
            guests.let_go()
            hypervisor.close()


async def promote(cloud: Cloud, folder: Path, name: str = "small", version: int = 1) -> int:
    """Make a version of a base image, promoted in place of the one before; the id of its template."""
    images = Images(cloud, CloudObject)
    ids = []
    for kind in ("OS", "KERNEL", "RAMDISK"):
        file = folder / f"{name}-{version}-{kind}"
        file.write_bytes(b"QFI\xfb" + bytes(508) if kind == "OS" else b"kernel")
        tags = {"MAYFLY_IMAGE": name}
        ids.append(await images.register_image(f"{name}-{version}-{kind}", file, kind, tags, within=DEADLINE))
    for each in await cloud.image_versions():
        if each.image == name and each.state == "promoted":
            await images.tag_template(each.template_id, {"MAYFLY_STATE": "previous"})
    tags = {"MAYFLY_IMAGE": name, "MAYFLY_VERSION": str(version), "MAYFLY_STATE": "promoted"}
    made = await images.register_template(VersionTemplate(f"{name}-{version}", *ids, "console=ttyS0", tags))
    cloud.forget()
    return int(made)


def event_log(home: Path) -> str:
    """The events of a house's database, a line each, read from its file."""
    with sqlite3.connect(f"file:{home / 'mayfly.db'}?mode=ro", uri=True) as database:
        rows = database.execute("SELECT number, at, kind, task_id, vm_id, data FROM events ORDER BY number")
        return "\n".join(" ".join(str(value) for value in row if value is not None) for row in rows)
