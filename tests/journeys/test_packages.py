"""Tasks that bring packages: installed once, in machines without their inputs, and mounted in theirs."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest

from orchestrator.decide import deadlines
from orchestrator.domain.outcome import Reason
from orchestrator.domain.pool import Pool
from orchestrator.domain.seal import Network, Seal
from orchestrator.domain.task import InputSpec, Packages, Stage, TaskSpec, TaskState
from orchestrator.localcloud.hypervisors import ssh_scenario
from orchestrator.reports.text import lines
from orchestrator.runner.loop import claim, work_on
from orchestrator.runner.tools import Tools
from orchestrator.scheduler.layers import Layers, advance
from orchestrator.scheduler.upkeep import Upkeep
from orchestrator.store import BUILDERS, TaskRow
from tests.journeys.house import POOL, House, promote
from tests.journeys.ready import ready, serving, vm_of, warm_tools

PACKED = dataclasses.replace(POOL, layers="builders")
OPEN = dataclasses.replace(POOL, name="builders", network="open", seals=(Seal("open", 1, Network.OPEN),))
POOLS = {PACKED.name: PACKED, OPEN.name: OPEN}


async def bring(house: House, *requirements: str, inputs: tuple[Path, ...] = (), script: str = "true") -> TaskRow:
    kept = tuple(InputSpec(str(path), path.name, house.artifacts.read_tree(path)) for path in inputs)
    text = "".join(f"{line}\n" for line in requirements)
    spec = TaskSpec(PACKED.name, ("sh", "-c", script), inputs=kept, packages=Packages(text))
    now = house.store.clock.now()
    deadline = deadlines.of_queued(spec.terms, PACKED, now)
    return await house.store.tasks.submit(spec, now=now, deadline_at=deadline)


@pytest.fixture
def tools(house: House) -> Tools:
    return dataclasses.replace(house.tools, pools=POOLS)


async def build(tools: Tools, task: TaskRow) -> TaskRow:
    """Run the builder of the task's layer, as any runner does; the builder as it is then."""
    layer = await tools.store.layers.of_task(task.id)
    assert layer is not None
    claimed = await claim(tools, only=layer.task_id)
    assert claimed is not None
    await work_on(claimed, tools)
    return await tools.store.tasks.get(layer.task_id)


async def test_packages_are_installed_once_for_all_that_bring_the_same(
    house: House, tools: Tools, tmp_path: Path
) -> None:
    data = tmp_path / "data.csv"
    data.write_text("secret\n")
    first = await bring(house, "six", inputs=(data,))
    second = await bring(house, "Six  # the same", inputs=(data,))
    done, problems = await advance(tools)
    assert (len(done), problems) == (1, [])
    assert (await advance(tools))[0] == []
    assert await claim(tools, only=first.id) is None, "its packages are not there yet"

    builder = await build(tools, first)
    assert (builder.state, builder.frontend, builder.submitted_by) == (TaskState.FINISHED, BUILDERS, BUILDERS)
    assert {each.dest for each in builder.spec.inputs} == {"build.py", "request.json"}
    assert not {each.blob for each in builder.spec.inputs} & {each.blob for each in first.spec.inputs}
    [line] = (await advance(tools))[0]
    assert line.endswith("is ready: 1 packages")

    for task in (first, second):
        assert (await house.run(task, tools)).state is TaskState.FINISHED
        assert house.guests.asked(task) == ["arm", "stage-in", "stage-in", "mount-layer", "start"]
        layer = await house.store.layers.of_task(task.id)
        assert layer is not None and layer.task_id == builder.id and layer.resolved == ("six==1.16.0",)
        text = list(lines(await house.report(task)))
        assert f"packages  six==1.16.0; layer {layer.key[:12]}, built by task {builder.id}" in text

    third = await bring(house, "six")
    await advance(tools)
    assert (await house.run(third, tools)).state is TaskState.FINISHED, "it waited for nothing"
    assert len(await house.store.tasks.list(limit=100)) == 4


async def test_a_layer_goes_into_a_machine_that_stood_ready(house: House, tools: Tools) -> None:
    task = await bring(house, "six")
    warm = warm_tools(house, 1, layers="builders")
    warm = dataclasses.replace(warm, pools={**warm.pools, OPEN.name: OPEN})
    await advance(tools)
    async with serving(warm):
        [spare] = await ready(house, 1)
        layer = await house.store.layers.of_task(task.id)
        assert layer is not None
        await house.over(await house.store.tasks.get(layer.task_id))
        await advance(tools)
        assert (await house.over(task)).state is TaskState.FINISHED
    assert (await vm_of(house, task)).id == spare.id
    assert house.guests.asked_of(spare.id) == ["arm", "stage-in", "mount-layer", "start"]
    assert await house.stages(task) == list(Stage)[4:]


async def test_a_task_without_packages_has_no_layer(house: House, tools: Tools) -> None:
    task = await house.submit("true")
    assert await advance(tools) == ([], [])
    await house.run(task, tools)
    assert house.guests.asked(task) == ["arm", "start"]


async def test_other_packages_are_another_layer(house: House, tools: Tools) -> None:
    first, second = await bring(house, "six"), await bring(house, "six==1.16")
    await advance(tools)
    keys = {(await house.store.tasks.get(task.id)).layer for task in (first, second)}
    assert len(keys) == 2 and None not in keys


async def test_why_packages_could_not_be_installed_is_told_to_who_waits(
    house: House, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_scenario, "BUILD", "echo pip: no\tsuch\x1b package >&2; exit 1")
    task, other = await bring(house, "sixx"), await bring(house, "sixx")
    await advance(tools)
    builder = await build(tools, task)
    assert (builder.state, builder.reason) == (TaskState.FAILED, Reason.EXIT_NONZERO)
    assert builder.message == "exited with 1: pip: no such package"
    await house.store.tasks.admit(now=house.store.clock.now())
    for each in (task, other):
        now = await house.store.tasks.get(each.id)
        assert (now.state, now.reason) == (TaskState.FAILED, Reason.LAYER_FAILED)
        assert builder.id in now.message and "pip: no such package" in now.message

    monkeypatch.undo()
    again = await bring(house, "sixx")
    await advance(tools)
    assert (await build(tools, again)).id != builder.id, "another is built, as nothing came of the first"


@pytest.mark.parametrize(
    "script, told",
    [
        ("true", "output 'layer.squashfs' matched nothing"),
        ("echo {} > resolved.json; write layer.squashfs 96", "resolved.json is not what a builder writes"),
        ("echo [] > resolved.json; write layer.squashfs 96", "resolved.json is not what a builder writes"),
        ("write resolved.json 2000000; write layer.squashfs 96", "has more than 1048576 bytes"),
        (
            'echo \'{"packages": [], "debian": []}\' > resolved.json; write layer.squashfs 96',
            "layer.squashfs is no squashfs",
        ),
        ("echo hsqs > layer.squashfs", "output 'resolved.json' matched nothing"),
    ],
)
async def test_what_a_builder_makes_is_looked_at(
    house: House, tools: Tools, script: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its machine may lie about all of it."""
    monkeypatch.setattr(ssh_scenario, "BUILD", script)
    task = await bring(house, "six")
    await advance(tools)
    builder = await build(tools, task)
    await advance(tools)
    await house.store.tasks.admit(now=house.store.clock.now())
    now = await house.store.tasks.get(task.id)
    assert (now.state, now.reason) == (TaskState.FAILED, Reason.LAYER_FAILED)
    assert told in (builder.message if builder.state is TaskState.FAILED else now.message)


async def test_a_task_runs_on_the_version_that_its_layer_was_built_for(
    house: House, tools: Tools, tmp_path: Path
) -> None:
    task = await bring(house, "six")
    await advance(tools)
    await promote(house.cloud, tmp_path, version=2)
    builder = await build(tools, task)
    await advance(tools)
    await house.run(task, tools)
    assert {(await house.store.vms.of_task(each.id))[0].image_version for each in (builder, task)} == {"small-1"}
    other = await bring(house, "six")
    await advance(tools)
    assert (await house.store.tasks.get(other.id)).layer != (await house.store.tasks.get(task.id)).layer


async def test_a_layer_for_a_version_that_is_gone_is_told_with_the_remedy(
    house: House, tools: Tools, tmp_path: Path
) -> None:
    task = await bring(house, "six")
    await advance(tools)
    await build(tools, task)
    await advance(tools)
    [gone] = await house.cloud.image_versions()
    await promote(house.cloud, tmp_path, version=2)
    await house.cloud.client.ask("template.delete", gone.template_id, False)
    house.cloud.forget()
    ended = await house.run(task, tools)
    assert (ended.state, ended.reason) == (TaskState.FAILED, Reason.LAYER_FAILED)
    assert "small-1, an image version that is gone: submit it again" in ended.message


async def test_the_chore_tells_once_what_it_cannot_do(house: House, tools: Tools) -> None:
    pools: dict[str, Pool] = {PACKED.name: PACKED}

    async def read_pools() -> Mapping[str, Pool]:
        return pools

    chore = Layers(Upkeep(house.store, house.artifacts, house.cloud, pools, read_pools))
    task = await bring(house, "six")
    assert await chore.run_once() == [f"task {task.id}: the inventory has no pool builders"]
    assert await chore.run_once() == []
    pools[OPEN.name] = dataclasses.replace(OPEN, max_waiting=0)
    [line] = await chore.run_once()
    assert f"packages for task {task.id}: pool: builders: its queue is full" in line
    pools[OPEN.name] = OPEN
    [line] = await chore.run_once()
    assert f"for task {task.id} is built by task" in line


async def test_schedulers_that_act_at_once_order_one_builder(house: House, tools: Tools) -> None:
    tasks = [await bring(house, "six") for _ in range(5)]
    await asyncio.gather(*(advance(tools) for _ in range(4)))
    layers = {(await house.store.tasks.get(task.id)).layer for task in tasks}
    assert len(layers) == 1 and None not in layers
    assert len(await house.store.tasks.list(limit=100)) == 6
