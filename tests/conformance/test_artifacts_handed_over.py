"""One attempt, two writers: a runner that is gone, or thinks that it is not, and the one that took over from it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.artifacts import Artifacts, AttemptLogs, LogState
from orchestrator.domain.errors import StagingFailed
from tests.conformance.test_artifacts_results import collect, sha

TASK = "01m7yqqza69eqn6t"
ROOT = Path(__file__).parents[2]


@dataclass
class File:
    path: str
    mode: int = 0o644


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    return Artifacts(tmp_path / "store")


def attempt(artifacts: Artifacts, limit_bytes: int = 1 << 20) -> AttemptLogs:
    return artifacts.attempt(TASK, 1, limit_bytes=limit_bytes)


@settings(max_examples=60, deadline=None)
@given(
    stream=st.binary(max_size=60),
    limit=st.integers(1, 50),
    turns=st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 12)), max_size=20),
    taken_over_after=st.integers(0, 10),
)
def test_however_two_writers_of_a_stream_take_turns_it_is_there_once(
    tmp_path_factory: pytest.TempPathFactory,
    stream: bytes,
    limit: int,
    turns: list[tuple[str, int]],
    taken_over_after: int,
) -> None:
    """Each writes the same stream from where it believes to be; the second one begins where the log ended then."""
    artifacts = Artifacts(tmp_path_factory.mktemp("store"))
    first = attempt(artifacts, limit).stdout
    second = None
    for number, (who, size) in enumerate(turns):
        if number == taken_over_after:
            second = attempt(artifacts, limit).stdout
        writer = second if who == "b" and second else first
        writer.append(stream[writer.offset : writer.offset + size])
    last = attempt(artifacts, limit).stdout
    assert last.offset == max(first.offset, second.offset if second else 0)
    last.append(stream[last.offset :])
    assert last.read() == stream[:limit]
    assert last.state() == LogState(min(len(stream), limit), len(stream))


async def test_a_mark_only_grows(artifacts: Artifacts) -> None:
    former, heir = attempt(artifacts, 4).stdout, attempt(artifacts, 4).stdout
    await heir.write(b"123456789")
    await former.write(b"12345")
    assert heir.state() == LogState(4, 9)
    await heir.mark_cut()
    await former.write(b"6")
    assert heir.state() == LogState(4, None)


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from orchestrator.artifacts import Artifacts
from tests.conformance.test_artifacts_handed_over import TASK, File
from tests.conformance.test_artifacts_results import sha

async def main():
    logs = Artifacts(Path(sys.argv[1])).attempt(TASK, 1)
    await logs.stdout.write(b"one ")
    async with logs.outputs() as sink:
        writer = await sink.open(File("a"))
        await writer.write(b"a")
        await writer.commit(sha(b"a"))
        writer = await sink.open(File("b"))
        await writer.write(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_what_a_killed_process_had_begun_another_completes(artifacts: Artifacts) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(artifacts.root)], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert artifacts.outputs(TASK, 1) is None
    heir = attempt(artifacts)
    assert heir.stdout.offset == 4
    await heir.stdout.write(b"two")
    await collect(heir, {"a": b"a", "b": b"half and half"})
    assert heir.stdout.read() == b"one two"
    tree = artifacts.outputs(TASK, 1)
    assert tree is not None and tree.complete
    assert [(entry.path, entry.size) for entry in tree.files] == [("a", 1), ("b", 13)]
    left = list((artifacts.root / "tmp").iterdir())
    assert len(left) == 1  # what was half written; swept when it is a day old
    os.utime(left[0], (1, 1))
    artifacts.sweep([])
    assert list((artifacts.root / "tmp").iterdir()) == []


async def test_a_former_taker_that_ends_later_changes_nothing(artifacts: Artifacts) -> None:
    with pytest.raises(StagingFailed):
        async with attempt(artifacts).outputs() as former:
            await (await former.open(File("early"))).commit(sha(b""))
            await collect(attempt(artifacts), {"whole": b"1"})
            raise StagingFailed("its machine is gone")
    tree = artifacts.outputs(TASK, 1)
    assert tree is not None and tree.complete and [entry.path for entry in tree.files] == ["whole"]


async def test_a_former_taker_that_is_canceled_or_succeeds_before_the_heir_ends_changes_nothing(
    artifacts: Artifacts,
) -> None:
    begun = asyncio.Event()

    async def stall() -> None:
        async with attempt(artifacts).outputs():
            begun.set()
            await asyncio.Event().wait()

    former = asyncio.create_task(stall())
    await begun.wait()
    async with attempt(artifacts).outputs() as second:
        await (await second.open(File("second"))).commit(sha(b""))
        former.cancel()
        await asyncio.gather(former, return_exceptions=True)
        assert artifacts.outputs(TASK, 1) is None
        async with attempt(artifacts).outputs() as third:
            await (await third.open(File("third"))).commit(sha(b""))
    tree = artifacts.outputs(TASK, 1)
    assert tree is not None and [entry.path for entry in tree.files] == ["third"]


async def test_outputs_taken_again_are_one_whole_tree(artifacts: Artifacts) -> None:
    """The machine went away in the middle, it was said; and then it had not."""
    with pytest.raises(StagingFailed):
        async with attempt(artifacts).outputs() as sink:
            await (await sink.open(File("a"))).commit(sha(b""))
            raise StagingFailed("dropped")
    tree = artifacts.outputs(TASK, 1)
    assert tree is not None and not tree.complete
    await collect(attempt(artifacts), {"b": b"1"})
    tree = artifacts.outputs(TASK, 1)
    assert tree is not None and tree.complete and [entry.path for entry in tree.files] == ["b"]
