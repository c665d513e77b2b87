"""The whole of it, in real processes: a database server, the local cloud, runners and schedulers, each to be broken."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator import bootstrap
from orchestrator.domain.task import Stage, TaskState
from orchestrator.localcloud import daemon
from orchestrator.localcloud.knobs import CloudSettings
from orchestrator.opennebula import Cloud
from orchestrator.settings import Settings
from orchestrator.store import TaskRow
from tests.chaos.clocks import Clock, build
from tests.chaos.processes import Service
from tests.journeys.house import promote
from tests.postgres import Postgres, running_server

POOL = "small"
LEASE_SECONDS = 4.0
KNOBS = CloudSettings(
    scheduler_interval=0.02,
    visible_delay=(0.005, 0.02),
    passing_time=0.005,
    monitor_interval=0.2,
    crash_visible_after=0.5,
    shutdown_timeout=1.0,
    shutdown_poll=0.05,
    unknown_after=0.5,
    hosts=2,
)
_INVENTORY = """\
pools:
  hosts:
    {pool}:
      mayfly_image: {image}
      mayfly_memory: {memory}
      mayfly_network: sealed
      ansible_port: 2222
      mayfly_max_vms: {max_vms}
      mayfly_max_attempts: 1000
      mayfly_retry_backoff: {backoff}
      mayfly_retry_backoff_max: {backoff_max}
      mayfly_launch_timeout: {launch}
      mayfly_boot_timeout: {boot}
      mayfly_kill_grace: 0.5s
"""


@dataclass(frozen=True)
class Scale:
    """How large the world is, and how fast it turns. Seconds."""

    hypervisor: str
    image: str
    memory: str
    runners: int
    schedulers: int
    limit: int
    max_vms: int
    process_seconds: float
    launch: str
    boot: str
    lease: float = LEASE_SECONDS
    backoff: str = "0.2s"
    backoff_max: str = "2s"

    def inventory(self) -> str:
        return _INVENTORY.format(
            pool=POOL,
            image=self.image,
            memory=self.memory,
            max_vms=self.max_vms,
            backoff=self.backoff,
            backoff_max=self.backoff_max,
            launch=self.launch,
            boot=self.boot,
        )


SIMULATED = Scale("simulated", "small", "128M", 3, 2, 6, 12, 2.0, "20s", "8s")
REAL = Scale("qemu", "debian-12", "256M", 2, 1, 1, 2, 8.0, "60s", "120s", lease=8.0)


@dataclass
class World:
    """`cloud_home`: of the local cloud. `harmed`: ids of VMs that a fault destroyed under their process."""

    scale: Scale
    settings: Settings
    house: bootstrap.House
    cloud: Cloud
    cloud_home: Path
    database: Postgres
    database_clock: Clock
    runners: list[Service]
    schedulers: list[Service]
    rand: random.Random
    harmed: set[int] = field(default_factory=set)
    owns_cloud: bool = True
    database_down: asyncio.Lock = field(default_factory=asyncio.Lock)
    cloud_down: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def services(self) -> list[Service]:
        return self.runners + self.schedulers

    async def task_at(self, stage: Stage) -> tuple[TaskRow, Service] | None:
        """A task that is at this stage now, and the process that runs it."""
        held = await self.house.store.tasks.list(states=(TaskState.RUNNING,), limit=50)
        by_pid = {service.pid: service for service in self.runners if service.pid is not None}
        at = [task for task in held if task.stage is stage and task.runner_id is not None]
        self.rand.shuffle(at)
        for task in at:
            runner = await self.house.store.runners.get(task.runner_id or "")
            if runner is not None and runner.pid in by_pid:
                return task, by_pid[runner.pid]
        return None

    async def fault(self, order: dict[str, Any]) -> None:
        """Inject a fault into the cloud."""
        await asyncio.to_thread(daemon.fault, self.cloud_home, order)

    def keep_going(self) -> None:
        """Start again what has died."""
        for service in self.services:
            if service.pid is None:
                service.start()

    def heal(self) -> None:
        """Everything runs, at the right time."""
        self.database_clock.jump(0)
        for service in self.services:
            service.clock.jump(0)
            service.send(signal.SIGCONT)
        self.keep_going()


@contextlib.asynccontextmanager
async def make_world(
    folder: Path, scale: Scale, seed: int, *, cloud: tuple[str, Path, Path] | None = None, start: bool = True
) -> AsyncIterator[World]:
    """Start it all; end every process at the end.

    cloud: URL, session file and home of one that runs already and has the image; else one is started. start false:
    runners and schedulers are left to the caller.
    """
    library = build(folder)
    inventory = folder / "inventory"
    inventory.mkdir()
    (inventory / "hosts.yml").write_text(scale.inventory())
    async with contextlib.AsyncExitStack() as opened:
        database_clock = Clock.make(library, folder / "database.clock")
        server = running_server(folder / "postgres", environment=database_clock.environment)
        database = await asyncio.to_thread(opened.enter_context, server)
        database_url = await asyncio.to_thread(database.create, "mayfly")
        if cloud is None:
            cloud_home = folder / "home" / "cloud"
            endpoint = await asyncio.to_thread(daemon.start, cloud_home, scale.hypervisor, KNOBS)
            opened.callback(daemon.end_machines, cloud_home)
            opened.callback(daemon.stop, cloud_home)
            url, auth = endpoint.url, endpoint.auth_path
        else:
            url, auth, cloud_home = cloud
        environment = {
            "MAYFLY_HOME": str(folder / "home"),
            "MAYFLY_DATABASE_URL": database_url,
            "MAYFLY_INVENTORY": str(inventory),
            "MAYFLY_LEASE_SECONDS": str(scale.lease),
            "ONE_XMLRPC": url,
            "ONE_AUTH": str(auth),
        }
        settings = Settings.from_environment(environment)
        house = await opened.enter_async_context(bootstrap.open_house(settings))
        client = await opened.enter_async_context(Cloud(url, auth.read_text().strip(), timeout=10, patience=3))
        if cloud is None:
            await promote(client, folder, scale.image)

        def service(name: str, *words: str) -> Service:
            made = Clock.make(library, folder / f"{name}.clock")
            return Service(name, words, environment, made, folder / f"{name}.log")

        limit = str(scale.limit)
        world = World(
            scale=scale,
            settings=settings,
            house=house,
            cloud=client,
            cloud_home=cloud_home,
            database=database,
            database_clock=database_clock,
            runners=[service(f"runner-{n}", "--verbose", "runner", "--limit", limit) for n in range(scale.runners)],
            schedulers=[service(f"scheduler-{n}", "--verbose", "scheduler") for n in range(scale.schedulers)],
            rand=random.Random(seed),
            owns_cloud=cloud is None,
        )
        for each in world.services:
            opened.callback(each.kill)
        if start:
            world.keep_going()
        yield world
