"""A machine that was made, and then cannot be reached, trusted or kept: each has a reason of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.outcome import Reason
from orchestrator.domain.proof import CloseProof
from orchestrator.domain.task import Stage, TaskState
from orchestrator.guest.keys import make_key
from orchestrator.localcloud.hypervisors.ssh_guest import SimulatedGuest, never
from tests.journeys.house import House


async def test_a_machine_that_never_answers_leaves_its_console_log(house: House) -> None:
    task = await house.submit("true")
    house.guests.behave(task, listens=False)
    done = await house.run(task, house.with_pool(boot_timeout_seconds=0.5))
    assert (done.state, done.reason, done.exit_code) == (TaskState.FAILED, Reason.UNREACHABLE, 125)
    assert "within 0.5 s" in done.message and "refused" in done.message
    assert b"simulated machine" in house.log(task, "console")
    assert await house.stages(task) == [Stage.PROVISIONING, Stage.CONNECTING, Stage.DESTROYING]


async def test_a_host_key_that_is_not_the_one_we_made(house: House, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    task = await house.submit("true", inputs=(secret,))
    house.guests.behave(task, host_key=make_key("somebody else"))
    done = await house.run(task)
    assert (done.state, done.reason, done.exit_code) == (TaskState.FAILED, Reason.WRONG_HOST_KEY, 125)
    assert house.guests.asked(task) == []


async def test_a_machine_that_lacks_what_a_task_needs(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async def arm(guest: SimulatedGuest, session: Any) -> None:
        facts = guest.facts().replace("program=strace\n", "")
        monkeypatch.setattr(guest, "facts", lambda: facts)
        await guest._arm(session, tell=True)

    task = await house.submit("true")
    house.guests.behave(task, answers={"mayfly-arm": arm})
    done = await house.run(task)
    assert (done.state, done.exit_code) == (TaskState.FAILED, 125)
    assert "strace" in done.message
    assert house.guests.asked(task) == ["arm"]


async def test_a_machine_that_can_reach_something_gets_no_input(house: House, tmp_path: Path) -> None:
    """The pool's network lets it out, as a security group with an outbound rule does on a real OpenNebula."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    task = await house.submit("true", inputs=(secret,))
    done = await house.run(task, house.with_pool(network="open"))
    assert (done.state, done.reason, done.exit_code) == (TaskState.FAILED, Reason.SEAL_BROKEN, 125)
    assert "public 1.1.1.1 TCP 443" in done.message
    assert house.guests.asked(task) == ["arm"]
    [attempt] = (await house.report(task))["attempts"]
    assert any(probe["reached"] for probe in attempt["machine"]["seal"])


async def test_inputs_that_arrive_changed(house: House, tmp_path: Path) -> None:
    async def swallowed(guest: SimulatedGuest, session: Any) -> None:
        await session.stdin.read()
        session.stdout.write(b"h" + (64).to_bytes(4, "big") + b"0" * 64)

    data = tmp_path / "data"
    data.write_text("numbers")
    task = await house.submit("true", inputs=(data,))
    house.guests.behave(task, answers={"mayfly-stage-in": swallowed})
    done = await house.run(task)
    assert (done.state, done.reason, done.exit_code) == (TaskState.FAILED, Reason.STAGING_FAILED, 125)
    assert "data" in done.message
    assert "start" not in house.guests.asked(task)


async def test_an_input_that_is_gone_from_the_store(house: House, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_text("numbers")
    task = await house.submit("true", inputs=(data,))
    [entry] = house.artifacts.entries(task.spec.inputs)
    [blob] = house.artifacts.root.rglob(entry.sha256)
    blob.unlink()
    done = await house.run(task)
    assert (done.state, done.exit_code) == (TaskState.FAILED, 125)
    assert "start" not in house.guests.asked(task)


async def test_a_machine_that_powers_itself_off(house: House) -> None:
    task = await house.submit("echo out; poweroff", outputs=("*",))
    done = await house.run(task)
    assert (done.state, done.reason, done.exit_code) == (TaskState.FAILED, Reason.CONNECTION_LOST, 125)
    assert "went away" in done.message
    assert (await house.report(task))["attempts"][0]["outcome"]["kind"] == "Lost"


@pytest.mark.parametrize("stage", [Stage.PREPARING, Stage.STAGING_IN, Stage.EXECUTING])
async def test_a_machine_that_dies_at_a_stage(house: House, stage: Stage, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_text("numbers")
    task = await house.submit("echo out; hang", inputs=(data,))
    verbs = {Stage.PREPARING: "arm", Stage.STAGING_IN: "stage-in"}
    if verb := verbs.get(stage):
        house.guests.behave(task, answers={f"mayfly-{verb}": never})
    async with house.running(task) as run:
        await house.at(task, stage)
        if stage is Stage.EXECUTING:
            await house.printed(task, b"out\n")
        [vm_id] = house.hypervisor.machines()
        await asyncio.to_thread(house.hypervisor.crash, vm_id)
        done = await run
    assert (done.state, done.reason, done.exit_code) == (TaskState.FAILED, Reason.CONNECTION_LOST, 125)


async def test_a_dropped_connection_comes_back_and_no_byte_is_lost_or_doubled(house: House) -> None:
    numbers = "; ".join(f"echo {number}; drop; flood {number * 50_000}" for number in range(1, 5))
    task = await house.submit(f"{numbers}; echo end; echo 1 > out.txt", outputs=("*",))
    done = await house.run(task)
    assert (done.state, done.message) == (TaskState.FINISHED, "exited with 0")
    assert house.log(task, "stdout") == b"".join(
        b"%d\n" % number + b"x" * number * 50_000 for number in range(1, 5)
    ) + (b"end\n")
    assert house.log(task, "trace").count(b"+++ exited") == 1
    assert house.guests.asked(task).count("start") == 1
    assert "attend" in house.guests.asked(task)
    assert house.outputs(task) == ["out.txt"]


async def test_a_connection_that_drops_between_steps(house: House, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_bytes(bytes(200_000))
    task = await house.submit("true", inputs=(data,))

    async def arm(guest: SimulatedGuest, session: Any) -> None:
        if guest.asked == ["mayfly-arm"]:
            session.channel.get_connection().abort()
        await guest._arm(session, tell=True)

    house.guests.behave(task, answers={"mayfly-arm": arm})
    assert (await house.run(task)).state is TaskState.FINISHED
    assert house.guests.asked(task) == ["arm", "arm", "stage-in", "start"]


async def test_a_connection_that_is_gone_for_good(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenNebula says that the machine runs, and nothing answers any more."""
    monkeypatch.setattr("orchestrator.runner.launching.RECONNECT_SECONDS", 0.5)
    task = await house.submit("echo out; hang")
    async with house.running(task) as run:
        await house.printed(task, b"out\n")
        [guest] = house.guests.of[task.id]
        await asyncio.to_thread(guest.close)
        done = await run
    assert (done.state, done.reason, done.exit_code) == (TaskState.FAILED, Reason.CONNECTION_LOST, 125)
    assert "did not come back" in done.message
    assert house.log(task, "stdout") == b"out\n"


async def test_a_cloud_that_cannot_be_reached_while_a_process_runs(house: House) -> None:
    """Nobody needs the cloud then; and a machine is ended once it answers again."""
    task = await house.submit("echo out; sleep 0.5; echo end")
    async with house.running(task) as run:
        await house.printed(task, b"out\n")
        house.far.faults.drop_connection("*", times=1_000_000)
        await house.at(task, Stage.DESTROYING)
        await asyncio.sleep(0)
        [row] = await house.store.vms.open()
        assert not run.done()
        house.far.faults.clear()
        done = await run
    assert done.state is TaskState.FINISHED
    assert house.log(task, "stdout") == b"out\nend\n"
    [closed] = await house.store.vms.of_task(task.id)
    assert CloseProof.decode(str(closed.close_proof)).says == f"OpenNebula says DONE of VM {row.cloud_id}"
