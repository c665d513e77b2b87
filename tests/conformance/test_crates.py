"""Crates of whole runs: what is in them, what the RO-Crate validator says of them, and that any change is noticed."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from orchestrator.domain.errors import NotFound, NotPossible, PlatformError
from orchestrator.domain.outcome import Exited
from orchestrator.receipts import Keys
from orchestrator.receipts.crate import export_crate
from orchestrator.receipts.envelope import canonical, sealed
from orchestrator.receipts.verifying import verify
from orchestrator.store import Store
from tests.receipted import Left, Receipted
from tests.ro_crate_validator import validated, warmed

WITHHELD = "nobody has released them"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Receipted]:
    async with await Store.open(f"sqlite+aiosqlite:///{tmp_path / 'mayfly.db'}") as store:
        yield Receipted(store, tmp_path / "world")


@pytest.fixture
async def crate(world: Receipted, tmp_path: Path) -> Path:
    task = await world.over()
    await world.receipt(task)
    export_crate(world.artifacts, world.keys, task.id, tmp_path / "crate")
    return tmp_path / "crate"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return warmed(tmp_path_factory.mktemp("validator") / "http")


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


ALL = {
    *(
        "crate.json",
        "receipt.json",
        "ro-crate-metadata.json",
        "outputs.json",
        "logs/stdout",
        "logs/stderr",
        "logs/trace",
    ),
    *("outputs/table.csv", "outputs/deep/er/note"),
    "findings.json",
}


async def test_a_crate_holds_the_whole_run_and_is_good(world: Receipted, crate: Path) -> None:
    assert files_of(crate) == ALL
    assert (crate / "outputs" / "table.csv").read_bytes() == b"a,b\n1,2\n"
    found = verify(crate, world.keys.trusted())
    assert (found.problems, found.kind, found.files, found.withheld) == ([], "crate", len(ALL) - 1, [])
    assert found.receipts[0].outcome is not None


async def test_the_validator_takes_it_for_a_process_run_crate(world: Receipted, cache: Path, tmp_path: Path) -> None:
    """With an input, a failed attempt before it, and names that are no URIs: a folder and a zip."""
    code = tmp_path / "code.py"
    code.write_text("print(1)\n")
    task = await world.submitted(code=code)
    await world.tried_again(task, Left(Exited(9)))
    await world.over(task, Left(outputs={"a b/50 %": b"1", "caf\udce9\n": b"2", "é.csv": b"3"}))
    for number in (1, 2):
        await world.receipt(task, number)
    for name, withheld in (("all", ""), ("all.zip", ""), ("withheld", WITHHELD)):
        export_crate(world.artifacts, world.keys, task.id, tmp_path / name, withheld=withheld)
        assert verify(tmp_path / name, world.keys.trusted()).problems == []
        assert validated(tmp_path / name, cache) == []


async def test_the_validator_would_say_what_is_wrong(crate: Path, cache: Path) -> None:
    """So that its silence about ours means something."""
    path = crate / "ro-crate-metadata.json"
    data = json.loads(path.read_text())
    for entity in data["@graph"]:
        entity.pop("instrument", None)
    path.write_text(json.dumps(data))
    assert any("instrument" in issue for issue in validated(crate, cache))


async def test_two_crates_of_one_run_are_the_same(world: Receipted, tmp_path: Path) -> None:
    task = await world.over()
    await world.receipt(task)
    for name in ("one.zip", "two.zip"):
        export_crate(world.artifacts, world.keys, task.id, tmp_path / name)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


async def test_what_is_withheld_is_not_in_it_and_named(world: Receipted, tmp_path: Path) -> None:
    task = await world.over()
    await world.receipt(task)
    export_crate(world.artifacts, world.keys, task.id, tmp_path / "crate", withheld=WITHHELD)
    kept = {"crate.json", "receipt.json", "ro-crate-metadata.json", "outputs.json"}
    assert files_of(tmp_path / "crate") == kept
    found = verify(tmp_path / "crate", world.keys.trusted())
    assert found.problems == []
    assert set(found.withheld) == ALL - kept - {"findings.json"}  # which is no subject
    assert b"one\ntwo" not in b"".join((tmp_path / "crate" / name).read_bytes() for name in kept)


def _edit(path: Path, what: Callable[[bytes], bytes]) -> None:
    path.write_bytes(what(path.read_bytes()))


def _flip(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def _signed_anew(crate: Path, keys: Keys) -> None:
    """Whoever changes a crate signs its list again, with a key of his own."""
    envelope = json.loads((crate / "crate.json").read_text())
    import base64

    statement = json.loads(base64.b64decode(envelope["payload"]))
    (crate / "crate.json").write_bytes(canonical(sealed(statement, keys.signer())))


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "an output": (lambda crate: _edit(crate / "outputs" / "table.csv", _flip), "outputs/table.csv was changed"),
    "an output, longer": (lambda crate: _edit(crate / "outputs" / "table.csv", lambda d: d + b"\n"), "was changed"),
    "the trace": (lambda crate: _edit(crate / "logs" / "trace", _flip), "logs/trace was changed"),
    "stdout, emptied": (lambda crate: _edit(crate / "logs" / "stdout", lambda _: b""), "logs/stdout was changed"),
    "the statement": (lambda crate: _edit(crate / "receipt.json", _flip), "receipt.json was changed"),
    "the manifest": (lambda crate: _edit(crate / "outputs.json", _flip), "outputs.json was changed"),
    "the metadata": (
        lambda crate: _edit(crate / "ro-crate-metadata.json", _flip),
        "ro-crate-metadata.json was changed",
    ),
    "the list": (lambda crate: _edit(crate / "crate.json", lambda d: d.replace(b"A", b"B", 1)), "crate.json: "),
    "an output is missing": (lambda crate: (crate / "outputs" / "table.csv").unlink(), "outputs/table.csv is missing"),
    "the receipt is missing": (lambda crate: (crate / "receipt.json").unlink(), "receipt.json is missing"),
    "the list is missing": (lambda crate: (crate / "crate.json").unlink(), "crate.json: is missing"),
    "a file more": (lambda crate: (crate / "outputs" / "more").write_text(""), "outputs/more was not in the crate"),
    "a link for an output": (
        lambda crate: (
            (crate / "outputs" / "table.csv").rename(crate.parent / "aside"),
            (crate / "outputs" / "table.csv").symlink_to(crate.parent / "aside"),
        ),
        "outputs/table.csv ",
    ),
    "a pipe for an output": (
        lambda crate: (
            (crate / "outputs" / "table.csv").unlink(),
            os.mkfifo(crate / "outputs" / "table.csv"),
        ),
        "outputs/table.csv is no file",
    ),
    "a folder elsewhere": (
        lambda crate: (crate / "logs" / "more").symlink_to("/etc"),
        "logs/more was not in the crate",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_changed_crate_is_refused(world: Receipted, crate: Path, change: str) -> None:
    do, told = CHANGES[change]
    do(crate)
    found = verify(crate, world.keys.trusted())
    assert not found.good
    assert told in "\n".join(found.problems)


async def test_another_key_is_refused(world: Receipted, crate: Path, tmp_path: Path) -> None:
    other = Keys(tmp_path / "other")
    other.signer()
    assert "another key" in verify(crate, other.trusted()).problems[0]
    _signed_anew(crate, other)
    assert "another key" in verify(crate, world.keys.trusted()).problems[0]
    assert any("receipt.json: signed by another key" in each for each in verify(crate, other.trusted()).problems)


async def test_a_receipt_of_another_task_is_refused_in_a_crate_that_is_signed(world: Receipted, tmp_path: Path) -> None:
    """Even by ourselves: the two must be of one run."""
    one, two = await world.over(), await world.over(left=Left(outputs={"x": b"1"}))
    for task in (one, two):
        await world.receipt(task)
        export_crate(world.artifacts, world.keys, task.id, tmp_path / task.id)
    shutil.copy(tmp_path / two.id / "receipt.json", tmp_path / one.id / "receipt.json")
    assert verify(tmp_path / one.id, world.keys.trusted()).problems == [
        "receipt.json was changed: its sha256 is not the one that was signed"
    ]


async def test_a_zip_that_is_damaged_or_none_is_refused(world: Receipted, tmp_path: Path) -> None:
    task = await world.over()
    await world.receipt(task)
    path = tmp_path / "crate.zip"
    export_crate(world.artifacts, world.keys, task.id, path)
    assert verify(path, world.keys.trusted()).good
    whole = path.read_bytes()
    for at in range(0, len(whole), 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            found = verify(path, world.keys.trusted())
        except NotPossible:
            continue
        assert found.problems or _same_content(path, whole, tmp_path)
    for text in (b"PK", whole[:500]):
        path.write_bytes(text)
        with pytest.raises(NotPossible):
            verify(path, world.keys.trusted())


def _same_content(path: Path, whole: bytes, tmp_path: Path) -> bool:
    """A byte of a zip that is no content, as a time or a comment: what comes out is what was put in."""
    (tmp_path / "whole.zip").write_bytes(whole)
    with zipfile.ZipFile(path) as one, zipfile.ZipFile(tmp_path / "whole.zip") as other:
        return {name: one.read(name) for name in one.namelist()} == {
            name: other.read(name) for name in other.namelist()
        }


async def test_a_zip_with_a_name_twice_is_refused(world: Receipted, tmp_path: Path) -> None:
    task = await world.over()
    await world.receipt(task)
    export_crate(world.artifacts, world.keys, task.id, tmp_path / "crate.zip")
    with zipfile.ZipFile(tmp_path / "crate.zip", "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("outputs/table.csv", b"other")
    assert "a name is twice in the archive" in verify(tmp_path / "crate.zip", world.keys.trusted()).problems


async def test_nothing_is_written_where_something_is(world: Receipted, tmp_path: Path) -> None:
    task = await world.over()
    await world.receipt(task)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("mine")
    (tmp_path / "there.zip").write_text("mine")
    for target in (full, tmp_path / "there.zip", tmp_path / "no" / "such" / "folder", full / "mine"):
        with pytest.raises(NotPossible):
            export_crate(world.artifacts, world.keys, task.id, target)
    assert (files_of(full), (tmp_path / "there.zip").read_text()) == ({"mine"}, "mine")
    (tmp_path / "empty").mkdir()
    export_crate(world.artifacts, world.keys, task.id, tmp_path / "empty")
    assert files_of(tmp_path / "empty") == ALL


async def test_without_a_receipt_there_is_no_crate(world: Receipted, tmp_path: Path) -> None:
    task = await world.over()
    with pytest.raises(NotFound, match="none yet"):
        export_crate(world.artifacts, world.keys, task.id, tmp_path / "crate")
    assert not (tmp_path / "crate").exists()


async def test_an_artifact_that_was_changed_since_is_noticed_when_a_crate_is_made(
    world: Receipted, tmp_path: Path
) -> None:
    task = await world.over()
    await world.receipt(task)
    stdout = world.artifacts.log(task.id, 1, "stdout").path
    stdout.write_bytes(b"other")
    with pytest.raises(PlatformError, match="logs/stdout"):
        export_crate(world.artifacts, world.keys, task.id, tmp_path / "crate")
    assert not (tmp_path / "crate").exists()
    assert not list(tmp_path.glob(".mayfly-*"))


async def test_outputs_with_more_names_than_a_receipt_takes_are_still_checked(
    world: Receipted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.receipts.gathering.MOST_NAMES_BYTES", 10)
    task = await world.over()
    await world.receipt(task)
    crate = tmp_path / "crate"
    export_crate(world.artifacts, world.keys, task.id, crate)
    found = verify(crate, world.keys.trusted())
    assert found.problems == []
    assert found.receipts[0].outputs is not None and not found.receipts[0].outputs.listed
    (crate / "outputs" / "table.csv").write_text("other")
    assert not verify(crate, world.keys.trusted()).good
