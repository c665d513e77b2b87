"""`mayfly pool plan` on the real facts: what runners would do for ready machines now, and why not more."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import timedelta
from typing import Any

from orchestrator.domain.pool import Warm
from orchestrator.domain.vm import VmState
from orchestrator.runner.outlook import look_ahead
from orchestrator.store import VmMoved, VmRequest
from tests.journeys.house import POOL, House, promote, until
from tests.journeys.processes import command_line
from tests.journeys.ready import ready, serving, warm_tools

VERSION = "small-1"


async def plan(house: House, **variables: Any) -> dict[str, Any]:
    """Of the house's only pool, as the command line says it."""
    done = await asyncio.to_thread(command_line(house, **variables), "pool", "plan", "--json")
    assert done.exit_code == 0, done.stderr
    found = done.json()
    [pool] = found["pools"]
    return {**pool, "quarantine": found["quarantine"]}


async def shown(house: House, **variables: Any) -> str:
    done = await asyncio.to_thread(command_line(house, **variables), "pool", "plan")
    assert done.exit_code == 0, done.stderr
    return done.stdout


async def failed_launch(house: House, version: str = VERSION) -> None:
    """One more of this image version, of which nothing is left but how it went."""
    now = house.now()
    row = await house.store.vms.request(
        VmRequest(POOL.name, version, house.tools.runner_id, now + timedelta(1)), now=now
    )
    assert row is not None
    await house.store.vms.record_launch(row.id, ok=False, message="no answer over SSH", host="h", now=now)
    closed = VmMoved(row.id, VmState.DESTROYED, None, close_proof="never made")
    assert await house.store.vms.move(closed, now=now)


async def test_what_would_be_launched_and_what_keeps_it_from_that(house: House) -> None:
    found = await plan(house, min_ready=2)
    [us] = found["runners"]
    launch = "2 ready are wanted, 2 of them here, and 0 are there or on their way"
    assert us["steps"] == [{"do": "launch", "image_version": VERSION, "because": launch}] * 2
    assert (us["share"], us["short"], us["short_because"]) == (2, 0, "")
    assert (found["wanted"], found["ready"], found["launching"], found["in_use"]) == (2, 0, 0, 0)
    text = await shown(house, min_ready=2)
    assert f"launch one of {VERSION}: {launch}" in text and "small: 2 ready are wanted; 0 ready, 0 in use" in text
    assert await house.store.vms.list() == (), "a plan changes nothing"


async def test_what_is_in_quarantine_and_what_is_used_instead(house: House) -> None:
    await promote(house.cloud, house.settings.home, version=2)
    newer = "small-2"
    for _ in range(3):
        await failed_launch(house, newer)
    found = await plan(house, min_ready=1, retry_backoff=1, retry_backoff_max=1, quarantine="1h")
    assert "3 launches in a row failed, the last with: no answer over SSH" in found["quarantine"]["versions"][newer]
    assert found["image_version"] == VERSION and newer in found["image_version_because"]
    assert f"{VERSION} is used: {newer} is put aside" in await shown(house, min_ready=1, quarantine="1h")


async def test_a_rest_after_failures(house: House) -> None:
    await failed_launch(house)
    [us] = (await plan(house, min_ready=1, retry_backoff="1h", retry_backoff_max="1h"))["runners"]
    assert us["steps"] == [] and us["short"] == 1
    assert us["short_because"].startswith("the last launches failed, and there is a rest until 20")


async def test_a_drained_pool(house: House) -> None:
    tools = warm_tools(house, 2)
    async with serving(tools):
        await ready(house, 2)
        await house.store.queues.drain(POOL.name, "new switches", now=house.now())
        await ready(house, 0)
    found = await plan(house, min_ready=2)
    assert found["drained"] and found["wanted"] == 0
    assert all(runner["steps"] == [] for runner in found["runners"])


async def test_what_a_runner_does_is_what_was_planned(house: House) -> None:
    tools = warm_tools(house, 2)
    seen = dataclasses.replace(tools, runner_id="")
    [before] = (await look_ahead(seen)).pools
    [[first]] = [[len(found.steps) for found in before.plans.values()]]
    async with serving(tools):
        rows = await ready(house, 2)
        assert len(rows) == first

        async def settled() -> bool:
            [pool] = (await look_ahead(seen)).pools
            return not any(found.steps or found.short for found in pool.plans.values()) and pool.ready == 2

        await until("there is nothing more to do", settled)
        fewer = dataclasses.replace(tools.pools[POOL.name], warm=Warm(min_ready=1))
        [after] = (await look_ahead(dataclasses.replace(seen, pools={POOL.name: fewer}))).pools
        [[destroy]] = [found.steps for found in after.plans.values()]
        assert destroy.because == "1 ready are wanted, and there are 2"


async def test_without_a_runner_nothing_is_planned_and_that_is_said(house: House) -> None:
    await house.store.runners.leave(house.tools.runner_id, now=house.now())
    found = await plan(house, min_ready=2)
    assert (found["runners"], found["wanted"]) == ([], 2)
    assert "no runner is alive for it" in await shown(house, min_ready=2)
