"""What comes out of a machine: logs that grow, outputs with their manifest, and the folder that a person gets."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.artifacts import Artifacts, AttemptLogs, LogState
from orchestrator.domain.errors import NotFound, NotPossible, PlatformError, StagingFailed

TASK = "01m7yqqza69eqn6t"


@dataclass
class File:
    path: str
    mode: int = 0o644


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    return Artifacts(tmp_path / "store")


@pytest.fixture
def attempt(artifacts: Artifacts) -> AttemptLogs:
    return artifacts.attempt(TASK, 1)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def collect(attempt: AttemptLogs, files: dict[str, bytes], mode: int = 0o644) -> None:
    async with attempt.outputs() as sink:
        for path, data in files.items():
            writer = await sink.open(File(path, mode))
            await writer.write(data)
            await writer.commit(sha(data))


@dataclass
class Whole:
    entry: File
    data: bytes
    claimed: str = ""

    @property
    def sha256(self) -> str:
        return self.claimed or sha(self.data)


async def test_small_outputs_are_taken_together(artifacts: Artifacts, attempt: AttemptLogs) -> None:
    files = {f"d/{n}": b"%d" % (n % 7) for n in range(30)}
    async with attempt.outputs() as sink:
        await sink.put([Whole(File(path, 0o4755), data) for path, data in files.items()])
        await sink.put([])
        await sink.put([Whole(File("last"), b"0")])
    tree = artifacts.outputs(TASK, 1)
    assert tree
    assert tree.complete
    kept = {entry.path: artifacts.blobs.path(entry.sha256).read_bytes() for entry in tree.files}
    assert kept == files | {"last": b"0"}
    assert {entry.mode for entry in tree.files if entry.path != "last"} == {0o755}
    assert len(list((artifacts.root / "blobs").rglob("*/*"))) == 7
    assert list((artifacts.root / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (Whole(File("../x"), b"1"), "refused an output name"),
        (Whole(File("a"), b"1"), "is there twice"),
        (Whole(File("a/b"), b"1"), "is there twice"),
        (Whole(File("b"), b"1", claimed="0" * 64), "'b' came out changed"),
        (Whole(File("b"), bytes(9)), "larger than 10 bytes"),
    ],
)
async def test_of_small_outputs_the_good_ones_are_taken(
    artifacts: Artifacts, attempt: AttemptLogs, wrong: Whole, complaint: str
) -> None:
    with pytest.raises(StagingFailed, match=complaint):
        async with attempt.outputs(max_bytes=10) as sink:
            await sink.put([Whole(File("a"), b"12"), wrong])
    tree = artifacts.outputs(TASK, 1)
    assert tree
    assert not tree.complete
    assert [entry.path for entry in tree.files] == ["a"]


def found(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


async def test_a_log_is_read_while_it_grows(artifacts: Artifacts, attempt: AttemptLogs) -> None:
    log = artifacts.log(TASK, 1, "stdout")
    assert (log.read(), log.state()) == (b"", LogState(0, 0))
    await attempt.stdout.write(b"one\n")
    assert log.read() == b"one\n"
    await attempt.stdout.write(b"\xff\0two")
    assert attempt.stdout.offset == 9
    assert log.read(4) == b"\xff\0two"
    assert log.read(4, 2) == b"\xff\0"
    assert log.read(9) == log.read(99) == b""
    assert log.state() == LogState(9, 9)
    assert not log.state().cut
    assert artifacts.log(TASK, 1, "stderr").read() == b""


async def test_a_writer_goes_on_where_the_last_one_ended(artifacts: Artifacts, attempt: AttemptLogs) -> None:
    await attempt.trace.write(b"abc")
    again = artifacts.attempt(TASK, 1)
    assert again.trace.offset == 3
    await again.trace.write(b"def")
    assert artifacts.log(TASK, 1, "trace").read() == b"abcdef"


async def test_past_its_bound_a_log_only_counts_and_says_so(artifacts: Artifacts) -> None:
    attempt = artifacts.attempt(TASK, 1, limit_bytes=10)
    log = artifacts.log(TASK, 1, "stdout")
    await attempt.stdout.write(b"0123456789")
    assert not log.state().cut
    for _ in range(3):
        await attempt.stdout.write(b"abcdefgh")
    assert (log.read(), log.state()) == (b"0123456789", LogState(10, 34))
    assert log.state().cut and attempt.stdout.offset == 34
    again = artifacts.attempt(TASK, 1, limit_bytes=100).stdout
    assert again.offset == 34
    await again.write(b"later")  # never a gap in the middle: what follows a cut is not kept, whatever the limit is now
    assert (log.read(), log.state()) == (b"0123456789", LogState(10, 39))


async def test_the_write_that_crosses_the_bound_is_kept_up_to_it(artifacts: Artifacts) -> None:
    attempt = artifacts.attempt(TASK, 1, limit_bytes=5)
    await attempt.stdout.write(b"abcdefgh")
    assert artifacts.log(TASK, 1, "stdout").read() == b"abcde"
    assert artifacts.log(TASK, 1, "stdout").state() == LogState(5, 8)


async def test_after_a_canceled_write_the_offset_is_the_logs_length(artifacts: Artifacts, attempt: AttemptLogs) -> None:
    chunk = b"x" * (1 << 20)
    for _ in range(20):
        writing = asyncio.create_task(attempt.stdout.write(chunk))
        await asyncio.sleep(0)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        assert artifacts.log(TASK, 1, "stdout").state().kept_bytes == attempt.stdout.offset


def test_evidence_is_kept_as_the_console_log(artifacts: Artifacts, attempt: AttemptLogs) -> None:
    attempt.keep_evidence("panic\n\udcff")
    attempt.keep_evidence("Kernel panic\n\udcff")
    assert artifacts.log(TASK, 1, "console").read() == b"Kernel panic\n\\udcff"


@pytest.mark.parametrize("task_id", ["", "..", "../x", "a/b", "A", "x" * 65, "a\0"])
def test_what_is_no_task_id_never_becomes_a_path(artifacts: Artifacts, task_id: str) -> None:
    with pytest.raises(ValueError, match="not a task's id"):
        artifacts.attempt(task_id, 1)
    with pytest.raises(ValueError, match="not a task's id"):
        artifacts.log(task_id, 1, "stdout")


def test_a_log_of_no_known_name_is_refused(artifacts: Artifacts) -> None:
    with pytest.raises(ValueError, match="passwd"):
        artifacts.log(TASK, 1, "../../passwd")


async def test_outputs_have_a_manifest_and_are_exported_whole(
    artifacts: Artifacts, attempt: AttemptLogs, tmp_path: Path
) -> None:
    files = {"a.csv": b"1,2\n", "deep/er/ü b\n": b"", "not-utf8-\udcff": b"z" * 3_000_000}
    await collect(attempt, files)
    tree = artifacts.outputs(TASK, 1)
    assert tree is not None and tree.complete
    assert {e.path: (e.size, e.sha256, e.mode) for e in tree.files} == {
        path: (len(data), sha(data), 0o644) for path, data in files.items()
    }
    target = tmp_path / "results"
    assert artifacts.export(TASK, 1, target) == tree
    assert found(target) == files
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results", "store"]
    assert not list((artifacts.root / "tmp").iterdir())


async def test_permission_bits_come_out_as_the_umask_lets_them(
    artifacts: Artifacts, attempt: AttemptLogs, tmp_path: Path
) -> None:
    async with attempt.outputs() as sink:
        for name, mode in (("run", 0o4755), ("open", 0o666), ("shut", 0)):
            writer = await sink.open(File(name, mode))
            await writer.commit(sha(b""))
    before = os.umask(0o022)
    try:
        artifacts.export(TASK, 1, tmp_path / "results")
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "results").iterdir()}
    assert modes == {"run": 0o755, "open": 0o644, "shut": 0o600}


async def test_an_attempt_without_outputs_exports_an_empty_folder_and_one_that_never_came_so_far_is_not_found(
    artifacts: Artifacts, attempt: AttemptLogs, tmp_path: Path
) -> None:
    with pytest.raises(NotFound, match="no outputs"):
        artifacts.export(TASK, 1, tmp_path / "results")
    assert not (tmp_path / "results").exists()
    await collect(attempt, {})
    artifacts.export(TASK, 1, tmp_path / "results")
    assert list((tmp_path / "results").iterdir()) == []


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd", "..", "../x", "a/../../x", "a/..", "", "a//b", "./a", "a/", "nul\0", "x" * 256,
        "/".join(["d" * 200] * 21), "\ud800",
    ],
)  # fmt: skip
async def test_bad_names_from_a_machine_are_refused(artifacts: Artifacts, attempt: AttemptLogs, path: str) -> None:
    with pytest.raises(StagingFailed, match="refused an output name"):
        await collect(attempt, {"good": b"1", path: b"2"})
    tree = artifacts.outputs(TASK, 1)
    assert tree is not None and not tree.complete
    assert [e.path for e in tree.files] == ["good"]
    assert not list((artifacts.root / "tmp").iterdir())


@pytest.mark.parametrize("pair", [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("a/b/c", "a/b")])
async def test_a_name_that_is_there_twice_is_refused(attempt: AttemptLogs, pair: tuple[str, str]) -> None:
    with pytest.raises(StagingFailed, match="there twice"):
        async with attempt.outputs() as sink:
            for path in pair:
                await (await sink.open(File(path))).commit(sha(b""))


async def test_too_many_and_too_large_outputs_are_refused(artifacts: Artifacts, attempt: AttemptLogs) -> None:
    with pytest.raises(StagingFailed, match="more than 2 outputs"):
        async with attempt.outputs(max_files=2) as sink:
            for n in range(3):
                await (await sink.open(File(str(n)))).commit(sha(b""))
    with pytest.raises(StagingFailed, match=r"'a/b/c/d' is 3 folders deep; at most 2 are taken"):
        async with attempt.outputs(max_depth=2) as sink:
            for path in ("a/b/c", "a/b/c/d"):
                await (await sink.open(File(path))).commit(sha(b""))
    with pytest.raises(StagingFailed, match="larger than 10 bytes"):
        async with attempt.outputs(max_bytes=10) as sink:
            for n in range(3):
                writer = await sink.open(File(str(n)))
                await writer.write(b"12345")
                await writer.commit(sha(b"12345"))
    tree = artifacts.outputs(TASK, 1)
    assert tree is not None and not tree.complete and tree.size == 10


async def test_many_deep_names_take_no_more_memory_than_they_are_long(attempt: AttemptLogs) -> None:
    deep = ["/".join([f"{n:0120d}"] * 32) for n in range(400)]
    tracemalloc.start()
    try:
        async with attempt.outputs() as sink:
            await sink.put([Whole(File(path), b"") for path in deep])
            assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()


async def test_the_manifest_says_of_each_output_what_its_content_is(artifacts: Artifacts, attempt: AttemptLogs) -> None:
    image = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(20_000)
    async with attempt.outputs() as sink:
        await sink.put([Whole(File("report.pdf"), b"a,b\n"), Whole(File("none"), b"")])
        writer = await sink.open(File("table.csv"))
        for at in range(0, len(image), 3):  # however it comes
            await writer.write(image[at : at + 3])
        await writer.commit(sha(image))
    tree = artifacts.outputs(TASK, 1)
    assert tree is not None
    assert {entry.path: entry.media_type for entry in tree.files} == {
        "report.pdf": "text/plain",
        "none": "application/x-empty",
        "table.csv": "image/png",
    }


async def test_a_manifest_from_before_content_was_told_is_read(artifacts: Artifacts, attempt: AttemptLogs) -> None:
    await collect(attempt, {"a": b"1"})
    [manifest] = artifacts.root.rglob("outputs.json")
    old = manifest.read_bytes().replace(b'"media_type":"text/plain",', b"")
    assert b"media_type" not in old
    manifest.write_bytes(old)
    tree = artifacts.outputs(TASK, 1)
    assert tree is not None
    [entry] = tree.files
    assert (entry.path, entry.size, entry.sha256, entry.media_type) == ("a", 1, sha(b"1"), "")
    assert tree.to_json() == old


async def test_an_output_that_changed_on_the_way_or_was_aborted_is_not_kept(
    artifacts: Artifacts, attempt: AttemptLogs
) -> None:
    async with attempt.outputs() as sink:
        aborted = await sink.open(File("aborted"))
        await aborted.write(b"x")
        await aborted.abort()
        await aborted.abort()
        changed = await sink.open(File("changed"))
        await changed.write(b"x")
        with pytest.raises(StagingFailed, match="'changed' came out changed"):
            await changed.commit(sha(b"y"))
    tree = artifacts.outputs(TASK, 1)
    assert tree is not None and tree.files == ()
    assert not list((artifacts.root / "tmp").iterdir())


async def test_a_canceled_collection_keeps_what_was_whole(artifacts: Artifacts, attempt: AttemptLogs) -> None:
    waits = asyncio.Event()

    async def collecting() -> None:
        async with attempt.outputs() as sink:
            done = await sink.open(File("done"))
            await done.write(b"1")
            await done.commit(sha(b"1"))
            half = await sink.open(File("half"))
            await half.write(b"2")
            waits.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(collecting())
    await waits.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    tree = artifacts.outputs(TASK, 1)
    assert tree is not None and not tree.complete
    assert [e.path for e in tree.files] == ["done"]
    assert not list((artifacts.root / "tmp").iterdir())


@pytest.mark.parametrize("early", [True, False])
async def test_results_never_go_over_what_is_there(
    artifacts: Artifacts, attempt: AttemptLogs, tmp_path: Path, early: bool
) -> None:
    await collect(attempt, {"a": b"1"})
    full, file, dangling = tmp_path / "full", tmp_path / "file", tmp_path / "dangling"
    full.mkdir()
    (full / "mine").write_bytes(b"precious")
    file.write_bytes(b"precious")
    dangling.symlink_to("nowhere")
    for target, problem in (
        (full, "is not empty"),
        (file, "is not a folder"),
        (dangling, "is not a folder"),
        (tmp_path / "no" / "such", "is no folder"),
        (file / "below", "is no folder"),
        (Path("/proc/results"), "cannot be written"),
        (tmp_path / ("x" * 300), "cannot be written"),
    ):
        with pytest.raises(NotPossible, match=problem) as refused:
            if early:
                artifacts.check_target(target)
            else:
                artifacts.export(TASK, 1, target)
        assert refused.value.field == "results" and refused.value.remedy
    assert found(full) == {"mine": b"precious"} and file.read_bytes() == b"precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dangling", "file", "full", "store"]


async def test_an_empty_folder_takes_results_and_stays_the_same_folder(
    artifacts: Artifacts, attempt: AttemptLogs, tmp_path: Path
) -> None:
    await collect(attempt, {"a": b"1", "d/b": b"2"})
    target = tmp_path / "here"
    target.mkdir()
    inode = target.stat().st_ino
    artifacts.check_target(target)
    assert list(target.iterdir()) == []
    artifacts.export(TASK, 1, target)
    assert found(target) == {"a": b"1", "d/b": b"2"}
    assert target.stat().st_ino == inode
    assert sorted(p.name for p in target.iterdir()) == ["a", "d"]


def test_checking_a_target_leaves_nothing(artifacts: Artifacts, tmp_path: Path) -> None:
    artifacts.check_target(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", [True, False])
async def test_a_damaged_blob_is_told_and_nothing_is_left(
    artifacts: Artifacts, attempt: AttemptLogs, tmp_path: Path, there: bool
) -> None:
    await collect(attempt, {"a": b"good", "b": b"will rot"})
    blob = artifacts.blobs.path(sha(b"will rot"))
    blob.unlink()
    if there:
        blob.write_bytes(b"has rotten")
    with pytest.raises(PlatformError, match="damaged" if there else "not in the artifact store any more"):
        artifacts.export(TASK, 1, tmp_path / "results")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store"]
