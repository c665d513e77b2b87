"""Taking away what nobody needs any more, and nothing else."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.artifacts import Artifacts, Swept
from orchestrator.domain.errors import PlatformError
from orchestrator.domain.task import InputSpec
from tests.conformance.test_artifacts_results import collect

ONE, TWO = "01m7yqqza69eqn6t", "01m7yqqza69eqn6u"


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    return Artifacts(tmp_path / "store")


def submitted(artifacts: Artifacts, tmp_path: Path, files: dict[str, bytes]) -> str:
    """The id of an input of these files."""
    folder = tmp_path / f"input-{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return artifacts.read_tree(folder)


def age(artifacts: Artifacts) -> None:
    """As if everything had been written two days ago."""
    for path in (artifacts.root / "blobs").glob("*/*"):
        about = path.stat()
        os.utime(path, (about.st_atime - 2 * 86400, about.st_mtime - 2 * 86400))


def contents(artifacts: Artifacts, tree_id: str) -> list[bytes]:
    """Of the files of an input, which must all be there."""
    found = []
    for entry in artifacts.entries([InputSpec("", "in", tree_id)]):
        if entry.sha256:
            with entry.open() as file:
                found.append(file.read())
    return found


def blobs(artifacts: Artifacts) -> int:
    return len(list((artifacts.root / "blobs").glob("*/*")))


async def test_a_removed_task_leaves_nothing_and_may_be_removed_again(artifacts: Artifacts) -> None:
    for task_id in (ONE, TWO):
        for number in (1, 2):
            attempt = artifacts.attempt(task_id, number)
            await attempt.stdout.write(b"x")
            await collect(attempt, {"a": b"1"})
    artifacts.remove(ONE)
    artifacts.remove(ONE)
    assert artifacts.outputs(ONE, 1) is None
    assert artifacts.log(ONE, 2, "stdout").read() == b""
    assert [path.name for path in (artifacts.root / "attempts").iterdir()] == [TWO]
    assert artifacts.log(TWO, 2, "stdout").read() == b"x"
    assert list((artifacts.root / "tmp").iterdir()) == []
    for wrong in ("..", "", "a/b"):
        with pytest.raises(ValueError, match="not a task's id"):
            artifacts.remove(wrong)


def test_nothing_can_be_taken_away_of_a_store_that_is_not_there(artifacts: Artifacts) -> None:
    artifacts.remove(ONE)
    assert artifacts.sweep([]) == Swept(0, 0)


async def test_what_a_task_or_an_attempt_names_is_kept(artifacts: Artifacts, tmp_path: Path) -> None:
    kept = submitted(artifacts, tmp_path, {"mine": b"mine", "shared": b"shared"})
    dropped = submitted(artifacts, tmp_path, {"theirs": b"12345", "shared": b"shared"})
    await collect(artifacts.attempt(ONE, 1), {"out": b"result", "same": b"12345"})
    await collect(artifacts.attempt(TWO, 1), {"gone": b"123"})
    artifacts.remove(TWO)
    age(artifacts)
    gone = artifacts.blobs.path(dropped).stat().st_size + 3
    assert artifacts.sweep([kept]) == Swept(2, gone)  # the tree, and "123": "12345" is an output of the other's as well
    assert contents(artifacts, kept) == [b"mine", b"shared"]
    artifacts.export(ONE, 1, tmp_path / "results")
    assert (tmp_path / "results" / "same").read_bytes() == b"12345"
    with pytest.raises(PlatformError, match="not in the artifact store any more"):
        artifacts.tree(dropped)
    assert artifacts.sweep([kept]) == Swept(0, 0)


def test_what_is_young_is_kept_and_what_is_kept_again_is_young(artifacts: Artifacts, tmp_path: Path) -> None:
    """A submit that runs has written blobs, and no row in the database yet."""
    submitted(artifacts, tmp_path, {"a": b"a", "b": b"b"})
    assert artifacts.sweep([]) == Swept(0, 0)
    age(artifacts)
    young = submitted(artifacts, tmp_path, {"a": b"a"})
    assert artifacts.sweep([]).blobs == 2  # "b", and the tree of both
    assert contents(artifacts, young) == [b"a"]
    assert artifacts.sweep([], older_than_seconds=-60).blobs == 2
    assert blobs(artifacts) == 0


def test_a_tree_that_cannot_be_read_stops_the_sweep(artifacts: Artifacts, tmp_path: Path) -> None:
    """A newer version wrote it, perhaps: what it names is not known."""
    submitted(artifacts, tmp_path, {"a": b"a"})
    age(artifacts)
    artifacts.attempt(ONE, 1)
    manifest = artifacts.root / "attempts" / ONE / "1" / "outputs.json"
    manifest.write_text('{"format": 2}')
    before = blobs(artifacts)
    with pytest.raises(ValueError, match="format 2"):
        artifacts.sweep([])
    assert blobs(artifacts) == before


def test_a_tree_that_is_gone_names_nothing_and_stops_no_sweep(artifacts: Artifacts, tmp_path: Path) -> None:
    gone = submitted(artifacts, tmp_path, {"a": b"a"})
    artifacts.blobs.path(gone).unlink()
    age(artifacts)
    assert artifacts.sweep([gone]) == Swept(1, 1)


def test_what_is_submitted_while_it_is_swept_is_there_afterwards(artifacts: Artifacts) -> None:
    """Old content, swept and submitted again at the same time: whoever was told of an id finds it there."""
    with ThreadPoolExecutor(2) as both:
        for n in range(200):
            blob = artifacts.blobs.put(b"content")
            os.utime(artifacts.blobs.path(blob), (1, 1))
            work = [lambda: artifacts.blobs.put(b"content"), lambda: artifacts.sweep([])]
            for done in [both.submit(each) for each in (work if n % 2 else work[::-1])]:
                done.result()
            assert artifacts.blobs.has(blob)
