"""The database, the cloud or the disk gone for a while: what runs goes on, nothing is lost, and people are told."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from orchestrator.domain.outcome import Reason
from orchestrator.domain.task import Stage, TaskState
from orchestrator.runner.lease import Hold
from orchestrator.runner.loop import claim, serve
from orchestrator.runner.progress import Progress
from tests.journeys.house import ON_A_SMALL_DISK, POOL, House, make_house, until
from tests.postgres import binaries, running_server

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def locked(house: House) -> AsyncIterator[None]:
    """Somebody else writes to the database, for longer than anybody waits."""
    file = house.settings.home / "mayfly.db"
    with closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as hog:
        await asyncio.to_thread(hog.execute, "BEGIN IMMEDIATE")  # it may have to wait for a writer of this loop
        try:
            yield
        finally:
            hog.execute("ROLLBACK")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.store.engine.BUSY_TIMEOUT_MS", 100)
    monkeypatch.setattr("orchestrator.runner.patience.AGAIN_AT_MOST_SECONDS", 0.2)


async def test_a_process_outlives_the_database_and_its_end_is_written_when_that_is_back(
    impatient: None, tmp_path: Path
) -> None:
    """It ends, and its outputs come out, while nothing can be written; no lease is given up for it."""
    async with make_house(tmp_path / "home") as house:
        task = await house.submit("echo one; sleep 0.5; echo two; echo three > out.txt", outputs=("*",))
        stop = asyncio.Event()
        serving = asyncio.create_task(serve(house.tools, stop, limit=3))
        await house.printed(task, b"one\n")
        await house.at(task, Stage.EXECUTING)
        async with locked(house):
            await house.printed(task, b"two\n")

            async def tried() -> bool:
                [guest] = house.guests.of[task.id]
                return bool(guest._scenario and guest._scenario.record)

            await until("the process has ended", tried)
            assert not serving.done()
        done = await house.over(task)
        assert (done.state, done.attempt) == (TaskState.FINISHED, 1)
        assert await house.stages(task) == list(Stage)
        assert house.log(task, "stdout") == b"one\ntwo\n"
        assert house.outputs(task) == ["out.txt"]
        after = await house.submit("true")
        assert (await house.over(after)).state is TaskState.FINISHED
        stop.set()
        await serving


@pytest.mark.skipif(binaries() is None, reason="no PostgreSQL server is installed")
async def test_postgresql_goes_down_and_comes_back_while_a_process_runs(tmp_path: Path) -> None:
    """As by a power cut. The process ends meanwhile; a task that waits is claimed when the database is back."""
    with running_server(tmp_path / "pg", durable=True) as server:
        async with make_house(tmp_path / "home", server.create("mayfly")) as house:
            task = await house.submit("echo one; sleep 0.5; echo two; echo three > out.txt", outputs=("*",))
            stop = asyncio.Event()
            serving = asyncio.create_task(serve(house.tools, stop, limit=1))
            await house.printed(task, b"one\n")
            await house.at(task, Stage.EXECUTING)
            waiting = await house.submit("echo next")
            await asyncio.to_thread(server.kill)
            await house.printed(task, b"two\n")
            assert not serving.done()
            await asyncio.to_thread(server.start)
            done = await house.over(task)
            assert (done.state, done.attempt) == (TaskState.FINISHED, 1)
            assert await house.stages(task) == list(Stage)
            assert house.log(task, "stdout") == b"one\ntwo\n"
            assert house.guests.asked(task).count("start") == 1
            after = await house.over(waiting)
            assert (after.state, after.attempt) == (TaskState.FINISHED, 1)
            stop.set()
            await serving


async def test_a_cancel_is_heard_after_the_database_was_away(impatient: None, tmp_path: Path) -> None:
    async with make_house(tmp_path / "home") as house:
        task = await house.submit("echo ready; sleep 600")
        stop = asyncio.Event()
        serving = asyncio.create_task(serve(house.tools, stop, limit=3))
        await house.printed(task, b"ready\n")
        await house.at(task, Stage.EXECUTING)
        async with locked(house):
            await asyncio.sleep(0.3)
        await house.store.tasks.request_cancel(task.id, now=house.now())
        assert (await house.over(task)).state is TaskState.CANCELED
        stop.set()
        await serving


async def test_what_was_learned_of_a_machine_is_kept_until_it_is_written(house: House) -> None:
    """What an attempt does beside its process is given up when that fails."""
    task = await house.submit("true")
    claimed = await claim(house.tools, only=task.id)
    assert claimed is not None
    progress = Progress(house.tools, claimed, Hold(claimed.lease))
    progress.learn({"kernel": "6.1"}, host="host-a")
    async with locked(house):
        writing = asyncio.create_task(progress.write_down())
        await asyncio.sleep(0)
        assert not writing.done()
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
    await progress.write_down()
    [attempt] = await house.store.attempts.of_task(task.id)
    assert (attempt.environment["kernel"], attempt.host) == ("6.1", "host-a")
    await house.let_lease_expire(task)
    await house.reap()


async def test_nothing_is_claimed_while_opennebula_does_not_answer(house: House) -> None:
    """The task stays in its queue, which says why; no try is spent."""
    house.cloud.client._patience = 0.1
    house.far.faults.drop_connection("*", times=1_000_000)
    task = await house.submit("true")
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(house.tools, stop, limit=3))

    async def blocked() -> str:
        return next((row.blocked_message or "" for row in await house.store.queues.list() if row.pool == POOL.name), "")

    assert "OpenNebula does not answer" in await until("the queue says why", blocked)
    waiting = await house.store.tasks.get(task.id)
    assert (waiting.state, waiting.attempt) == (TaskState.QUEUED, 0)
    house.far.faults.clear()
    done = await house.over(task)
    assert (done.state, done.attempt) == (TaskState.FINISHED, 1)

    async def free() -> bool:
        return not await blocked()

    await until("the queue is free", free)
    stop.set()
    await serving


async def test_a_claimed_task_waits_for_opennebula(house: House) -> None:
    """It went away between the claim and the making of the machine."""
    house.cloud.client._patience = 0.05
    house.far.faults.drop_connection("one.templatepool.info", times=8)
    task = await house.submit("true")
    done = await house.run(task)
    assert (done.state, done.attempt) == (TaskState.FINISHED, 1)


async def test_what_cannot_be_placed_waits_and_says_why(house: House) -> None:
    task = await house.submit("true")
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(house.with_pool(cpus=5000), stop, limit=3))

    async def blocked() -> Reason | None:
        return next((row.blocked_reason for row in await house.store.queues.list() if row.pool == POOL.name), None)

    assert await until("the queue says why", blocked) is Reason.NO_CAPACITY
    assert (await house.store.tasks.get(task.id)).state is TaskState.QUEUED
    stop.set()
    await serving


FILL = """
import asyncio, json, sys
from pathlib import Path
from tests.journeys.house import make_house

async def main():
    async with make_house(Path(sys.argv[1])) as house:
        ballast = house.artifacts.root / "ballast"
        told = []
        for script in ("echo before; flood 400000; echo after", "echo part > part.txt; write big 400000"):
            for log in (house.artifacts.root / "attempts").rglob("stdout"):
                log.unlink()
            ballast.write_bytes(bytes(700_000))
            task = await house.submit(script, outputs=("*",) if "big" in script else ())
            async with house.running(task) as run:
                while not any("no space" in note for note in await house.notes(task)):
                    assert not run.done()
                    await asyncio.sleep(0.02)
                stage = (await house.store.tasks.get(task.id)).stage
                ballast.unlink()
                done = await run
            told.append([done.state, stage, len(house.log(task, "stdout")), house.outputs(task)])
    print(json.dumps(told))

asyncio.run(main())
"""


def test_a_full_disk_is_waited_for_and_the_process_goes_on(tmp_path: Path) -> None:
    """Nothing of what it printed, or made, is lost."""
    command = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody have a namespace of their own")
    shell = ["sh", "-c", ON_A_SMALL_DISK, "sh", str(tmp_path / "home"), sys.executable, FILL]
    run = subprocess.run([*command, *shell], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    logs, outputs = json.loads(run.stdout)
    assert logs == ["FINISHED", "EXECUTING", len("before\n") + 400_000 + len("after\n"), []]
    assert outputs == ["FINISHED", "STAGING_OUT", 0, ["big", "part.txt"]]
