"""Receipts in the life of a task: signed when it is over, by whoever is there; and what was approved is what runs."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from pathlib import Path

import pytest

from orchestrator.domain.outcome import Reason
from orchestrator.domain.task import InputSpec, TaskState
from orchestrator.receipts import Keys
from orchestrator.receipts.crate import export_crate
from orchestrator.receipts.statement import Receipt
from orchestrator.receipts.verifying import verify
from orchestrator.runner.tools import Tools
from orchestrator.scheduler.receipts import Receipts
from orchestrator.store import TaskRow
from tests.journeys.house import POOL, House
from tests.journeys.processes import command_line


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys" / "receipts")


def signing(house: House, keys: Keys, **pool: object) -> Tools:
    return dataclasses.replace(house.with_pool(**pool), keys=keys)


def receipt_of(house: House, task: TaskRow, keys: Keys, number: int = 1) -> Receipt:
    path = house.artifacts.document(task.id, number, "receipt.json")
    found = verify(path, keys.trusted())
    assert found.problems == []
    return found.receipts[0]


async def test_the_runner_signs_when_all_else_is_done(house: House, keys: Keys, tmp_path: Path) -> None:
    task = await house.submit("echo out; echo 1,2 > table.csv", outputs=("*.csv",))
    done = await house.run(task, signing(house, keys))
    assert done.state is TaskState.FINISHED
    receipt = receipt_of(house, task, keys)
    assert receipt.machine is not None
    [vm] = await house.store.vms.of_task(task.id)
    assert (receipt.machine.id, receipt.machine.cloud_id, receipt.machine.state) == (vm.id, vm.cloud_id, "DESTROYED")
    assert receipt.machine.host_key == vm.host_key and receipt.machine.proof
    assert receipt.end is not None and (receipt.end.state, receipt.end.exit_code) == ("FINISHED", 0)
    assert receipt.seal.probes and receipt.seal.profile is not None
    assert receipt.image is not None
    assert (
        receipt.limits is not None and receipt.limits["memory_bytes"] == house.tools.pools["small"].process_memory_bytes
    )
    assert receipt.disclosure == "review"
    assert receipt.trace.sha256 is not None and receipt.trace.findings_sha256 is not None
    export_crate(house.artifacts, keys, task.id, tmp_path / "crate")
    assert verify(tmp_path / "crate", keys.trusted()).problems == []
    assert (tmp_path / "crate" / "outputs" / "table.csv").read_bytes() == b"1,2\n"
    assert (tmp_path / "crate" / "findings.json").exists()


async def test_each_attempt_has_one_and_they_are_a_chain(house: House, keys: Keys) -> None:
    tools = signing(house, keys, max_attempts=2)
    task = await house.submit("exit 9", retry_job=True)
    while not (await house.run(task, tools)).state.over:
        await house.store.tasks.admit(now=house.now())
    first, second = [receipt_of(house, task, keys, number) for number in (1, 2)]
    assert first.end is not None and (first.end.state, first.outcome) == ("QUEUED", second.outcome)
    assert second.end is not None and (second.end.state, second.end.exit_code) == ("FAILED", 9)
    file = house.artifacts.document(task.id, 1, "receipt.json").read_bytes()
    assert [each.receipt_sha256 for each in second.earlier] == [hashlib.sha256(file).hexdigest()]


async def test_what_no_runner_signed_upkeep_does_once(house: House, keys: Keys) -> None:
    task = await house.submit("exit 3")
    await house.run(task)  # a runner that has no key
    path = house.artifacts.document(task.id, 1, "receipt.json")
    assert not path.exists()
    chore = Receipts(dataclasses.replace(house.upkeep(), keys=keys))
    assert await chore.run_once() == [f"the receipt of attempt 1 of task {task.id} is signed"]
    assert await chore.run_once() == []
    receipt = receipt_of(house, task, keys)
    assert receipt.outcome is not None and receipt.outcome.kind == "exited"


async def test_a_receipt_that_cannot_be_signed_keeps_no_verdict_back(house: House, keys: Keys) -> None:
    keys.signer()
    (keys.folder / "signing.pem").chmod(0o644)
    task = await house.submit("true")
    assert (await house.run(task, signing(house, keys))).state is TaskState.FINISHED
    assert not house.artifacts.document(task.id, 1, "receipt.json").exists()
    (keys.folder / "signing.pem").chmod(0o600)
    assert len(await Receipts(dataclasses.replace(house.upkeep(), keys=keys)).run_once()) == 1


async def test_one_that_is_damaged_keeps_no_other_back(house: House, keys: Keys) -> None:
    tasks = [await house.submit("echo 1 > a", outputs=("a",)) for _ in range(3)]
    for task in tasks:
        await house.run(task)
    house.artifacts.document(tasks[1].id, 1, "receipt.json").with_name("outputs.json").write_text("{")
    lines = await Receipts(dataclasses.replace(house.upkeep(), keys=keys)).run_once()
    assert len([line for line in lines if line.endswith("is signed")]) == 2
    assert len([line for line in lines if "cannot be signed" in line and tasks[1].id in line]) == 1


@pytest.mark.parametrize("tampered", ["tree", "content", "pin"])
async def test_an_input_that_was_replaced_in_the_store_does_not_go_in(
    house: House, keys: Keys, tmp_path: Path, tampered: str
) -> None:
    code = tmp_path / "code.py"
    code.write_text("print('approved')\n")
    task = await house.submit("cat /task/in/code.py", inputs=(code,))
    [given] = task.spec.inputs
    blobs = house.artifacts.blobs
    evil = b"print('evil')\n"
    if tampered == "tree":
        tree = blobs.path(given.blob)
        text = tree.read_bytes().replace(
            hashlib.sha256(code.read_bytes()).hexdigest().encode(), blobs.put(evil).encode()
        )
        tree.unlink()
        tree.write_bytes(text)
    elif tampered == "content":
        content = blobs.path(hashlib.sha256(code.read_bytes()).hexdigest())
        content.unlink()
        content.write_bytes(b"print('EVILevil')\n")
    else:
        pinned = InputSpec(given.source, given.dest, given.blob, code=True, pinned="sha256:" + "0" * 64)
        spec = dataclasses.replace(task.spec, inputs=(pinned,))
        task = await house.store.tasks.submit(spec, now=house.now(), deadline_at=task.deadline_at or house.now())
    done = await house.run(task, signing(house, keys))
    assert done.state is TaskState.FAILED
    assert done.reason in (Reason.INTERNAL, Reason.STAGING_FAILED)
    assert (
        "damaged" if tampered == "tree" else "not what was submitted" if tampered == "content" else "pinned"
    ) in done.message
    assert house.log(task, "stdout") == b""
    receipt = receipt_of(house, task, keys)
    assert receipt.outcome is None and receipt.end is not None and receipt.end.state == "FAILED"


async def test_a_run_in_a_reviewed_pool_shows_how_much_there_is_and_nothing_of_it(house: House, tmp_path: Path) -> None:
    await house.store.runners.leave(house.tools.runner_id, now=house.now())
    mayfly = command_line(house, disclosure="review")
    words = (
        "run",
        "-p",
        POOL.name,
        "-o",
        "*",
        "-d",
        tmp_path / "out",
        "--",
        "sh",
        "-c",
        "echo secret; echo more > table; exit 7",
    )
    done = await asyncio.to_thread(mayfly, *words)
    assert (done.exit_code, done.stdout) == (7, ""), done.stderr
    assert "withheld until somebody releases it: stdout has 7 B in 1 lines" in done.stderr
    assert "secret" not in done.stderr and not (tmp_path / "out").exists()
    [task] = await house.store.tasks.list()
    assert (await house.store.attempts.get(task.id, 1)).receipt_sha256 is not None  # type: ignore[union-attr]
    assert Keys(house.settings.home / "keys" / "receipts").exist()
