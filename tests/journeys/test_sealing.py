"""The seal of a machine, from outside and from inside: what is kept of it, and what becomes of one that breaks."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pyone
import pytest

from orchestrator.decide import deadlines
from orchestrator.domain.outcome import Reason
from orchestrator.domain.pool import SEALED
from orchestrator.domain.seal import Network
from orchestrator.domain.task import Limits, Stage, TaskSpec, TaskState
from orchestrator.runner import warm
from orchestrator.store import TaskRow
from tests.journeys.house import POOL, House, until
from tests.journeys.ready import ready, serving, vm_of, warm_tools

OPEN = dataclasses.replace(SEALED, name="open", network=Network.OPEN)
STRICT = dataclasses.replace(SEALED, name="sealed-strict", version=3, network=Network.NONE)
SSH = 'RULE=[PROTOCOL="TCP",RULE_TYPE="inbound",RANGE="22"]'
WEB = 'RULE=[PROTOCOL="TCP",RULE_TYPE="inbound",RANGE="80"]'
SEALED_GROUP = 100


async def machine(house: House, task: TaskRow) -> dict[str, Any]:
    """What the report says of the machine of the last attempt."""
    return dict((await house.report(task))["attempts"][-1]["machine"])


async def group_says(house: House, rules: str) -> None:
    """An administrator changes the rules of the sealed network's security group, for VMs that run too."""
    one = pyone.OneServer(house.far.url, session=house.far.session)
    await asyncio.to_thread(one.secgroup.update, SEALED_GROUP, rules, 0)


async def submit(house: House, seal: str, script: str = "true", data: Path | None = None) -> TaskRow:
    """A task that asks for a seal profile by its name."""
    task = await house.submit(script, inputs=(data,) if data else ())
    spec = TaskSpec(POOL.name, ("sh", "-c", script), inputs=task.spec.inputs, limits=Limits(), seal=seal)
    await house.store.tasks.request_cancel(task.id, now=house.now())
    deadline = deadlines.of_queued(spec.terms, POOL, house.now())
    return await house.store.tasks.submit(spec, now=house.now(), deadline_at=deadline)


async def test_what_was_seen_and_tried_is_kept_with_the_attempt(house: House) -> None:
    task = await house.submit("true")
    assert (await house.run(task)).state is TaskState.FINISHED
    told = await machine(house, task)
    assert told["seal_profile"] == {"name": "sealed", "version": 1}
    outside = told["outside"]
    assert (outside["holds"], outside["complaints"]) == (True, [])
    [nic] = outside["nics"]
    assert (nic["network"], nic["security_groups"]) == ("sealed", [SEALED_GROUP])
    assert outside["looked_at"]
    assert not any(probe["reached"] for probe in told["seal"])


async def test_what_the_cloud_says_against_it_breaks_a_seal_that_nothing_got_through(
    house: House, tmp_path: Path
) -> None:
    (data := tmp_path / "data").write_text("secret")
    await group_says(house, f"{SSH}\n{WEB}")
    task = await house.submit("true", inputs=(data,))
    done = await house.run(task)
    assert (done.state, done.reason) == (TaskState.FAILED, Reason.SEAL_BROKEN)
    assert "security group 100 lets it be sent TCP to ports 80" in (done.message or "")
    assert "stage-in" not in house.guests.asked(task)
    assert Stage.STAGING_IN not in await house.stages(task)
    told = await machine(house, task)
    assert told["outside"]["holds"] is False
    assert not any(probe["reached"] for probe in told["seal"])


async def test_an_open_profile_is_neither_looked_at_nor_probed_and_says_so(house: House) -> None:
    tools = house.with_pool(seals=(SEALED, OPEN), network="open")
    closed, opened = await house.submit("true"), await submit(house, "open")
    assert (await house.run(closed, tools)).reason is Reason.SEAL_BROKEN
    assert (await house.run(opened, tools)).state is TaskState.FINISHED
    told = await machine(house, opened)
    assert told["seal_profile"] == {"name": "open", "version": 1}
    assert told["seal"] == []
    assert told["outside"] == {"skipped": "the profile open/1 leaves the network open"}


async def test_a_profile_that_the_pool_allows_no_more_runs_nothing(house: House) -> None:
    task = await submit(house, "open")
    done = await house.run(task)
    assert (done.state, done.reason) == (TaskState.FAILED, Reason.SEAL_BROKEN)
    assert house.guests.asked(task)[-1:] != ["start"]


async def test_a_ready_machine_is_sealed_anew_for_a_task_with_another_profile(house: House) -> None:
    tools = warm_tools(house, 1, seals=(SEALED, STRICT))
    async with serving(tools):
        [spare] = await ready(house, 1)
        task = await submit(house, "sealed-strict")
        assert (await house.over(task)).state is TaskState.FINISHED
    assert (await vm_of(house, task)).id == spare.id
    assert house.guests.asked_of(spare.id) == ["arm", "arm", "start"]
    assert await house.stages(task) == [Stage.PREPARING, Stage.SEALING, *list(Stage)[5:]]
    assert (await machine(house, task))["seal_profile"] == {"name": "sealed-strict", "version": 3}


async def test_a_ready_machine_that_the_cloud_does_not_seal_any_more_is_ended(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "CHECK_SECONDS", 0.1)
    async with serving(warm_tools(house, 1)):
        [spare] = await ready(house, 1)
        await group_says(house, f"{SSH}\n{WEB}")

        async def ended() -> bool:
            events = [event for event in await house.store.events.list() if event.vm_id == spare.id]
            return any("lets it be sent TCP to ports 80" in str(event.data) for event in events)

        await until("it is ended for what the cloud says", ended)
        await group_says(house, SSH)
