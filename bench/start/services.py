"""A runner and a scheduler of ours as processes, and a client in this one that submits and watches."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import yaml
from prometheus_client.parser import text_string_to_metric_families

from bench.main_job import Place
from orchestrator.bootstrap import House, open_house
from orchestrator.domain.task import TaskSpec, TaskState
from orchestrator.domain.vm import VmState
from orchestrator.settings import Settings, data_root
from orchestrator.store import TaskRow

OVER = frozenset({TaskState.FINISHED, TaskState.FAILED, TaskState.CANCELED})
LOOK_SECONDS = 0.002
DEADLINE_SECONDS = 900.0
REQUESTS = "mayfly_opennebula_request_seconds_count"


@dataclass(frozen=True)
class Times:
    """Of one task, in seconds from its submit: its process runs, for the line of the trace is here in which the machine
    executes it; the first byte of its output is here; its end, report and all, is written; the machine is DONE."""

    task_id: str
    running: float
    first_byte: float
    stored: float
    gone: float


def inventory(folder: Path, pools: Mapping[str, Mapping[str, object]]) -> Path:
    """An inventory with these pools (variables without their prefix), beside what every pool of the local one has."""
    common = yaml.safe_load((data_root() / "inventories" / "local" / "group_vars" / "pools.yml").read_text())
    hosts = {name: {f"mayfly_{key}": value for key, value in variables.items()} for name, variables in pools.items()}
    path = folder / "pools.yml"
    path.write_text(yaml.safe_dump({"pools": {"vars": common, "hosts": hosts}}))
    return path


@dataclass(frozen=True)
class Services:
    """environment: of whoever works with them. metrics: where the runner tells its metrics."""

    environment: dict[str, str]
    metrics: str

    def requests(self) -> Counter[str]:
        """How many requests to OpenNebula the runner has made so far, by method."""
        counts: Counter[str] = Counter()
        with urllib.request.urlopen(self.metrics, timeout=10) as answer:
            for family in text_string_to_metric_families(answer.read().decode()):
                for sample in family.samples:
                    if sample.name == REQUESTS:
                        counts[sample.labels["method"]] += int(sample.value)
        return counts


@contextmanager
def services(place: Place, inventory: Path, *, limit: int) -> Iterator[Services]:
    """One runner and one scheduler on this home; both are stopped, and what they hold is gone, at the end."""
    environment = {**place.environment, "MAYFLY_INVENTORY": str(inventory)}
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    words = (["runner", "--limit", str(limit), "--metrics", address], ["scheduler"])
    log = Path(place.environment["MAYFLY_HOME"]) / "services.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as told:
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "orchestrator", *each],
                env={**os.environ, **environment},
                stdout=told,
                stderr=told,
            )
            for each in words
        ]
        try:
            yield Services(environment, f"http://{address}/metrics")
        finally:
            for process in running:
                process.send_signal(signal.SIGTERM)
            for process in running:
                try:
                    process.wait(120)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


@asynccontextmanager
async def client(environment: Mapping[str, str]) -> AsyncIterator[Client]:
    async with open_house(Settings.from_environment({**os.environ, **environment})) as house:
        yield Client(house)


class Client:
    """Submits to the database as a frontend does, and watches files and rows."""

    def __init__(self, house: House) -> None:
        self.house = house

    async def submit(self, pool: str, *command: str, outputs: tuple[str, ...] = ()) -> TaskRow:
        now = self.house.store.clock.now()
        spec = TaskSpec(pool=pool, command=command, outputs=outputs)
        return await self.house.store.tasks.submit(spec, now=now, deadline_at=now + timedelta(hours=1))

    async def run(self, pool: str, *command: str, outputs: tuple[str, ...] = ()) -> Times:
        """One task, watched to the end of its machine. Raises RuntimeError when it does not finish well."""
        began = time.monotonic()
        task = await self.submit(pool, *command, outputs=outputs)
        running = await self.has(task.id, "trace")
        first = await self.has(task.id, "stdout")
        stored = await self._once(lambda: self._judged(task.id))
        gone = await self.over(task.id)
        await self.finished(task.id)
        return Times(task.id, running - began, first - began, stored - began, gone - began)

    async def has(self, task_id: str, stream: str) -> float:
        """When (monotonic clock) the first byte of the first attempt's stdout, or another stream, was here."""
        log = self.house.artifacts.log(task_id, 1, stream)

        async def written() -> bool:
            return bool(log.state().kept_bytes)

        return await self._once(written)

    async def cancel(self, task_id: str) -> None:
        store = self.house.store
        await store.tasks.request_cancel(task_id, now=store.clock.now())

    async def over(self, task_id: str) -> float:
        """When (monotonic clock) the task was over, and its machine DONE."""
        return await self._once(lambda: self._over(task_id))

    async def finished(self, task_id: str) -> None:
        """Wait for a task's end. Raises RuntimeError when it does not finish well."""
        await self.over(task_id)
        row = await self.house.store.tasks.get(task_id)
        if row.state is not TaskState.FINISHED:
            raise RuntimeError(f"task {task_id} ended as {row.state}: {row.message}")

    async def _judged(self, task_id: str) -> bool:
        attempt = await self.house.store.attempts.get(task_id, 1)
        return attempt is not None and attempt.verdict is not None

    async def _over(self, task_id: str) -> bool:
        return (await self.house.store.tasks.get(task_id)).state in OVER

    async def ready(self, pool: str, count: int) -> None:
        """Wait until so many machines of the pool are READY."""

        async def enough() -> bool:
            spares = await self.house.store.vms.spares()
            return sum(each.pool == pool and each.state is VmState.READY for each in spares) >= count

        await self._once(enough, every=0.05)

    async def serving(self, pool: str) -> None:
        """Wait until a runner serves the pool."""
        store = self.house.store
        await self._once(lambda: store.runners.serving(pool, now=store.clock.now()), every=0.05)

    async def _once(self, holds: Callable[[], Awaitable[bool]], *, every: float = LOOK_SECONDS) -> float:
        until = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < until:
            if await holds():
                return time.monotonic()
            await asyncio.sleep(every)
        raise RuntimeError(f"it did not come about within {DEADLINE_SECONDS:g} s")
