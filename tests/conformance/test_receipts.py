"""Receipts on both databases: what is said, once; and that verifying takes the good and refuses all else."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import jsonschema
import pytest

from orchestrator.domain.errors import NotFound, NotPossible
from orchestrator.domain.outcome import Exited, Lost, TimedOut
from orchestrator.receipts import Keys, issue
from orchestrator.receipts.envelope import Refused, canonical
from orchestrator.receipts.gathering import gather
from orchestrator.receipts.issuing import facts_of
from orchestrator.receipts.schema import schema
from orchestrator.receipts.statement import Statement, as_json
from orchestrator.receipts.verifying import read_statement, verify
from orchestrator.store import Store
from tests.receipted import ENVIRONMENT, PROOF, Left, Receipted

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "docs" / "reference" / "receipt.schema.json").read_text())


@pytest.fixture
async def world(store: Store, tmp_path: Path) -> AsyncIterator[Receipted]:
    yield Receipted(store, tmp_path / "world")


def said_in(path: Path, keys: Keys) -> Statement:
    return read_statement(Statement, path.read_bytes(), keys.trusted())[0]


async def test_a_receipt_says_what_the_rows_and_artifacts_say(world: Receipted, tmp_path: Path) -> None:
    code = tmp_path / "code.py"
    code.write_text("print(1)\n")
    task = await world.over(code=code)
    statement = said_in(await world.receipt(task), world.keys)
    receipt = statement.predicate
    assert (receipt.task.id, receipt.task.submitted_by, receipt.task.pool) == (task.id, "ada", "small")
    [given] = receipt.process.inputs
    assert (given.dest, given.sha256, given.code, given.pinned) == ("code.py", task.spec.inputs[0].blob, True, True)
    assert (receipt.process.command, receipt.process.environment) == (["python3", "code.py"], ["N"])
    assert [each.stage for each in receipt.attempt.stages] == ["PROVISIONING", "EXECUTING", "STAGING_OUT", "DESTROYING"]
    assert receipt.machine is not None
    assert (receipt.machine.state, receipt.machine.image_version) == ("DESTROYED", "debian-12-7")
    proof = receipt.machine.proof
    assert proof is not None and proof.model_dump() == PROOF.document
    assert proof.disks is not None and proof.disks.gone
    assert receipt.seal.profile is not None and receipt.seal.profile.name == "sealed"
    assert receipt.seal.outside == ENVIRONMENT["outside"]
    assert (receipt.limits, receipt.disclosure) == (ENVIRONMENT["limits"], "open")
    assert receipt.outcome is not None and receipt.outcome.kind == "exited"
    assert receipt.end is not None and (receipt.end.state, receipt.end.exit_code) == ("FINISHED", 0)
    assert receipt.outputs is not None and (receipt.outputs.files, receipt.outputs.listed) == (2, True)
    names = {subject.name: subject.annotations for subject in statement.subject}
    assert set(names) == {
        *("logs/stdout", "logs/stderr", "logs/trace", "outputs.json", "outputs/table.csv", "outputs/deep/er/note"),
    }
    assert (names["logs/stdout"].size, names["logs/stdout"].lines, names["logs/stdout"].cut) == (8, 2, False)
    assert names["outputs/deep/er/note"].size == 70_000


async def test_a_receipt_follows_the_published_schema(world: Receipted) -> None:
    for outcome in (Exited(0), Exited(3), TimedOut(5), Lost("the machine is gone")):
        task = await world.over(left=Left(outcome))
        statement = as_json(said_in(await world.receipt(task), world.keys))
        jsonschema.Draft202012Validator(SCHEMA).validate(statement)
        broken = {**statement, "predicate": {**statement["predicate"], "more": 1}}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.Draft202012Validator(SCHEMA).validate(broken)


async def test_what_is_not_known_is_said_to_be_not_known(world: Receipted) -> None:
    task = await world.over(left=Left(environment={}))
    receipt = said_in(await world.receipt(task), world.keys).predicate
    assert (receipt.image, receipt.limits, receipt.disclosure, receipt.trace.recorded) == (None, None, None, None)
    assert (receipt.seal.profile, receipt.seal.probes, receipt.seal.outside) == (None, None, None)
    assert verify(await world.receipt(task), world.keys.trusted()).problems == []


async def test_gathered_twice_it_is_the_same(world: Receipted) -> None:
    task = await world.over()
    facts = await facts_of(world.store, task.id, 1)
    assert facts is not None
    first, second = [canonical(as_json(gather(facts, world.artifacts))) for _ in range(2)]
    assert first == second


async def test_it_is_written_once(world: Receipted) -> None:
    task = await world.over()
    paths = await asyncio.gather(*(world.receipt(task) for _ in range(5)))
    before = paths[0].read_bytes()
    world.keys.rotate()
    assert (await world.receipt(task)).read_bytes() == before
    row = await world.store.attempts.get(task.id, 1)
    assert row is not None and row.receipt_sha256 is not None and row.receipt_at is not None
    assert await world.store.attempts.receipt_due(10) == ()


async def test_one_that_was_written_and_not_recorded_stays(world: Receipted) -> None:
    """Whoever wrote it died before he recorded it; the key was rotated since."""
    task = await world.over()
    other = Receipted(world.store, world.artifacts.root.parent)
    before = (await other.receipt(task)).read_bytes()
    async with world.store._database.writing() as connection:  # as if it had not been recorded
        await connection.exec_driver_sql("UPDATE attempts SET receipt_sha256 = NULL, receipt_at = NULL")
    world.keys.rotate()
    assert (await world.receipt(task)).read_bytes() == before


async def test_one_that_is_not_over_has_none(world: Receipted) -> None:
    task = await world.submitted()
    claim = await world.claimed(task)
    assert await issue(world.store, world.artifacts, world.keys, task.id, 1) is None
    await world.worked(claim, Left())
    assert await issue(world.store, world.artifacts, world.keys, task.id, 1) is None
    with pytest.raises(NotFound):
        await issue(world.store, world.artifacts, world.keys, "01zzzzzzzzzzzzzzzzzzzzzzzz", 1)


async def test_each_attempt_names_the_receipts_of_those_before_it(world: Receipted) -> None:
    task = await world.submitted()
    await world.tried_again(task, Left(Exited(9)))
    await world.over(task)
    assert await issue(world.store, world.artifacts, world.keys, task.id, 2) is None  # the first has none yet
    first = await world.receipt(task, 1)
    second = said_in(await world.receipt(task, 2), world.keys).predicate
    [earlier] = second.earlier
    row = await world.store.attempts.get(task.id, 1)
    assert row is not None
    assert (earlier.number, earlier.reason, earlier.receipt_sha256) == (1, "retry", row.receipt_sha256)
    told = said_in(first, world.keys).predicate
    assert told.end is not None and (told.end.state, told.end.exit_code) == ("QUEUED", None)


async def test_names_and_words_of_any_bytes_can_be_told(world: Receipted) -> None:
    odd = {"caf\udce9 %FF\n": b"1", "../x".replace("..", "..."): b"2", "a b": b"3"}
    task = await world.over(left=Left(outputs=odd, environment={"kernel": "\udcff", "seal": None}))
    path = await world.receipt(task)
    names = [subject.name for subject in said_in(path, world.keys).subject]
    assert "outputs/caf%E9%20%25FF%0A" in names
    assert verify(path, world.keys.trusted()).problems == []


def test_the_published_schema_is_what_the_classes_say() -> None:
    assert (ROOT / "docs" / "reference" / "receipt.schema.json").read_text() == schema()


# -- keys


def test_a_key_is_made_at_first_need_for_its_owner_alone(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys" / "receipts")
    assert (keys.exist(), keys.list(), keys.trusted()) == (False, (), ())
    key_id = keys.signer().public_key.keyid
    assert stat.S_IMODE((keys.folder / "signing.pem").stat().st_mode) == 0o600
    assert keys.signer().public_key.keyid == key_id
    assert [(row.id, row.signs) for row in keys.list()] == [(key_id, True)]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o620])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    keys = Keys(tmp_path)
    keys.signer()
    (tmp_path / "signing.pem").chmod(mode)
    with pytest.raises(NotPossible, match="others"):
        keys.signer()
    with pytest.raises(NotPossible, match="others"):
        keys.rotate()


@pytest.mark.parametrize("text", ["", "nonsense", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_what_is_no_key_is_refused(tmp_path: Path, text: str) -> None:
    keys = Keys(tmp_path)
    keys.signer()
    (tmp_path / "signing.pem").write_text(text)
    with pytest.raises(NotPossible):
        keys.signer()


async def test_a_rotated_key_signs_no_more_and_still_verifies(world: Receipted) -> None:
    before, after = await world.over(), await world.over()
    old = await world.receipt(before)
    new_id = world.keys.rotate()
    new = await world.receipt(after)
    assert [verify(path, world.keys.trusted()).good for path in (old, new)] == [True, True]
    assert verify(new, world.keys.trusted()).key_id == new_id
    assert verify(old, [key for key in world.keys.trusted() if key.keyid == new_id]).good is False


async def test_without_a_key_nothing_is_good(world: Receipted) -> None:
    path = await world.receipt(await world.over())
    with pytest.raises(Refused, match="no key"):
        read_statement(Statement, path.read_bytes(), ())
