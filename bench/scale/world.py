"""The surroundings of `bench scale`: a database, a cloud with an image and a pool, tasks, one runner."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from bench.scale.far_side import FarSide
from orchestrator import bootstrap
from orchestrator.domain.task import TaskSpec
from orchestrator.opennebula import Cloud, Images
from orchestrator.provisioning.ports import CloudObject, VersionTemplate
from orchestrator.settings import Settings

POOL = "small"
IMAGE_SECONDS = 30.0
SUBMIT_AT_ONCE = 500
QUEUE = timedelta(days=1)
STOP_SECONDS = 60.0
INVENTORY = f"""\
pools:
  hosts:
    {POOL}:
      mayfly_image: {POOL}
      mayfly_memory: 128M
      mayfly_network: sealed
      ansible_port: 2222
      mayfly_max_vms: {{vms}}
      mayfly_max_pending_vms: {{vms}}
      mayfly_launch_timeout: 300s
      mayfly_boot_timeout: 300s
      mayfly_kill_grace: 1s
"""


@dataclass(frozen=True)
class World:
    """`environment` is what Mayfly's processes get; `server` is the database's own process."""

    environment: dict[str, str]
    dsn: str
    server: int
    far: FarSide
    template: int
    folder: Path

    async def submit(self, count: int, script: str) -> list[str]:
        """So many tasks, queued; their ids."""
        spec = TaskSpec(pool=POOL, command=("sh", "-c", script))
        made: list[str] = []
        async with bootstrap.open_house(Settings.from_environment(self.environment)) as house:
            while len(made) < count:
                now = house.store.clock.now()
                some = [spec] * min(SUBMIT_AT_ONCE, count - len(made))
                rows = await house.store.tasks.submit_many(some, now=now, deadline_at=now + QUEUE)
                made += [row.id for row in rows]
        return made

    @contextmanager
    def runner(self, limit: int, rate: str) -> Iterator[int]:
        """One runner, for the block; its process id. It ends with SIGTERM, at leisure."""
        log = self.folder / f"runner-{time.time_ns()}.log"
        with log.open("wb") as output:
            words = [sys.executable, "-m", "bench.scale.one_runner", str(limit), rate]
            process = subprocess.Popen(words, env={**os.environ, **self.environment}, stdout=output, stderr=output)
        try:
            yield process.pid
            if process.poll() is not None:
                raise RuntimeError(f"the runner ended: {log.read_text()[-2000:]}")
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def make_world(folder: Path, dsn: str, server: int, far: FarSide, vms: int) -> World:
    """With the promoted version 1 of an image that no machine will boot, and a pool of `vms` machines."""
    inventory = folder / "inventory"
    inventory.mkdir()
    (inventory / "hosts.yml").write_text(INVENTORY.format(vms=vms))
    environment = {
        "MAYFLY_HOME": str(folder / "home"),
        "MAYFLY_DATABASE_URL": dsn,
        "MAYFLY_INVENTORY": str(inventory),
        "ONE_XMLRPC": far.url,
        "ONE_AUTH": str(far.auth),
    }
    async with Cloud(far.url, far.session) as cloud:
        template = await _promoted(Images(cloud, CloudObject), folder)
    return World(environment, dsn, server, far, template, folder)


async def _promoted(images: Images[CloudObject], folder: Path) -> int:
    numbers = []
    for kind in ("OS", "KERNEL", "RAMDISK"):
        path = folder / f"{POOL}-{kind}"
        path.write_bytes(b"QFI\xfb" + bytes(508))
        tags = {"MAYFLY_IMAGE": POOL}
        numbers.append(await images.register_image(path.name, path, kind, tags, within=IMAGE_SECONDS))
    tags = {"MAYFLY_IMAGE": POOL, "MAYFLY_VERSION": "1", "MAYFLY_STATE": "promoted"}
    return int(
        await images.register_template(
            VersionTemplate(f"{POOL}-1", numbers[0], numbers[1], numbers[2], "console=ttyS0", tags)
        )
    )
