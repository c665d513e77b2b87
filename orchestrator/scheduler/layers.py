"""Have the packages of tasks installed, once for all that bring the same, and take over what came of it.

Which version of a base image is promoted only the cloud knows, and so the names of layers are found here. What is done
is written so that it may be done again, and by several: by schedulers, and by a command that runs its task itself.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Protocol

from orchestrator.artifacts import Artifacts, Entry, EntryKind, Tree
from orchestrator.decide import layers
from orchestrator.decide.deadlines import of_queued
from orchestrator.decide.layers import Recipe
from orchestrator.decide.requirements import WrongLine
from orchestrator.domain.errors import PlatformError, UserError
from orchestrator.domain.pool import Pool
from orchestrator.guest.layer import builder_program
from orchestrator.opennebula import Cloud, ImageVersion
from orchestrator.scheduler.upkeep import Upkeep
from orchestrator.store import LayerRow, Store, TaskRow

SQUASHFS_MAGIC = b"hsqs"
"""First in every squashfs: linux/squashfs_fs.h, SQUASHFS_MAGIC."""


class House(Protocol):
    """What this works with."""

    @property
    def store(self) -> Store: ...
    @property
    def artifacts(self) -> Artifacts: ...
    @property
    def cloud(self) -> Cloud: ...
    @property
    def pools(self) -> Mapping[str, Pool]: ...


class Layers:
    """The chore. What keeps a task's packages from being ordered is told once."""

    interval_seconds = 1.0
    looks_twice = False

    def __init__(self, upkeep: Upkeep) -> None:
        self._upkeep = upkeep
        self._told: set[str] = set()

    async def run_once(self) -> list[str]:
        """All that is wanted, and all that was built."""
        lines, problems = await advance(self._upkeep)
        lines += [problem for problem in problems if problem not in self._told]
        self._told = set(problems)
        return lines


async def advance(house: House) -> tuple[list[str], list[str]]:
    """Order what tasks wait for, and take over what builders made: what was done, and what could not be. The cloud is
    asked only when something is wanted. Raises CloudError, and what the database does."""
    done, problems = [], []
    wanted: dict[tuple[str, Recipe], list[TaskRow]] = {}
    for task in await house.store.layers.wanted():
        pool = house.pools.get(task.spec.pool)
        if pool is None or pool.layers not in house.pools:
            name = task.spec.pool if pool is None else pool.layers or "to install its packages"
            problems.append(f"task {task.id}: the inventory has no pool {name}")
            continue
        try:
            wanted.setdefault((pool.name, Recipe.of(task.spec.packages)), []).append(task)
        except WrongLine as wrong:  # it was submitted by another version
            problems.append(f"task {task.id}: its requirements: {wrong}")
    for (name, recipe), tasks in wanted.items():
        try:
            done.append(await _order(house, house.pools[name], recipe, tasks))
        except UserError as problem:  # the queue of the builders is full, no version is promoted
            problems.append(f"packages for {_named(tasks)}: {problem}")
    for layer in await house.store.layers.built():
        done.append(await _take_over(house, layer))
    return done, problems


async def _order(house: House, pool: Pool, recipe: Recipe, tasks: Sequence[TaskRow]) -> str:
    builders = house.pools[pool.layers]
    image = await house.cloud.promoted(pool.image)
    key = recipe.key(_facts(image), builders)
    request = json.dumps(recipe.request(builders), sort_keys=True)
    program = await asyncio.to_thread(_file, house.artifacts, builder_program().encode())
    told = await asyncio.to_thread(_file, house.artifacts, request.encode())
    spec = layers.builder(key, image.template_name, builders, program=program, request=told)
    now = house.store.clock.now()
    layer = await house.store.layers.order(
        key,
        image.template_name,
        spec,
        for_tasks=[task.id for task in tasks],
        now=now,
        deadline_at=of_queued(spec.terms, builders, now),
        max_waiting=builders.max_waiting,
    )
    state = "is ready" if layer.ready_at is not None else f"is built by task {layer.task_id}"
    return f"layer {key[:12]} for {_named(tasks)} {state}"


def _facts(image: ImageVersion) -> dict[str, object]:
    """What tells this version of an image from every other, of whatever cloud."""
    return {
        "name": image.template_name,
        "template": image.template_id,
        "created": image.created,
        "recipe": image.recipe,
        "disk": image.disk_sha256,
    }


def _named(tasks: Sequence[TaskRow]) -> str:
    more = f" and {len(tasks) - 1} more" if len(tasks) > 1 else ""
    return f"task {tasks[0].id}{more}"


async def _take_over(house: House, layer: LayerRow) -> str:
    """Look at what a builder put out, which may be anything; keep it, or end who waits for it."""
    store, now = house.store, house.store.clock.now()
    builder = await store.tasks.get(layer.task_id)
    try:
        blob, resolved = await asyncio.to_thread(_looked_at, house.artifacts, builder)
    except (PlatformError, ValueError) as wrong:
        message = f"what task {builder.id} made of its packages cannot be used: {wrong}"
        ended = await store.layers.refuse(layer.key, message, now=now)
        return f"layer {layer.key[:12]}: {message}; {len(ended)} tasks are ended"
    await store.layers.ready(layer.key, blob, resolved, now=now)
    return f"layer {layer.key[:12]} is ready: {len(resolved)} packages"


def _looked_at(artifacts: Artifacts, builder: TaskRow) -> tuple[str, tuple[str, ...]]:
    """The tree of the layer, and what is in it. Raises ValueError, PlatformError."""
    outputs = artifacts.outputs(builder.id, builder.attempt)
    files = {entry.path: entry for entry in outputs.files} if outputs else {}
    for name in (layers.SQUASHFS, layers.RESOLVED):
        if name not in files:
            raise ValueError(f"there is no {name}")
    with artifacts.blobs.open(files[layers.RESOLVED].sha256) as file:
        resolved = layers.resolved(file.read(layers.LONGEST_RESOLVED + 1))
    squashfs = files[layers.SQUASHFS]
    with artifacts.blobs.open(squashfs.sha256) as file:
        if file.read(len(SQUASHFS_MAGIC)) != SQUASHFS_MAGIC:
            raise ValueError(f"{layers.SQUASHFS} is no squashfs")
    return _tree(artifacts, squashfs.size, squashfs.sha256), resolved


def _file(artifacts: Artifacts, data: bytes) -> str:
    """Keep a file; the id of its tree."""
    return _tree(artifacts, len(data), artifacts.blobs.put(data))


def _tree(artifacts: Artifacts, size: int, sha256: str) -> str:
    """The id of the tree of a file that is in the store."""
    return artifacts.blobs.put(Tree.of([Entry("", EntryKind.FILE, 0o444, size, sha256)]).to_json())
