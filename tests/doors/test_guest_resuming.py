"""What goes in and out over a connection that is cut: all of it arrives, and what had arrived is not sent again."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator.domain.errors import StagingFailed
from orchestrator.domain.outcome import Exited
from orchestrator.guest import OutputKind, OutputRefused, Started
from orchestrator.guest.wire import request
from tests.cut_connections import machine
from tests.guest_ends import Entry, MemoryOutputs, Sinks, launch

MIB = 1 << 20
HANDSHAKE = 20_000
"""Bytes of a connection that are SSH's own, and of the program."""
IN_FLIGHT = 5 * MIB
"""What SSH's window, the sockets and the pipes may hold when a connection is cut."""


def data(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def tree_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def test_a_tree_goes_in_as_it_is(tmp_path: Path) -> None:
    files = [Entry(f"many/{n:04}", data(n * 37 % 5000, n), mode=0o755 if n % 3 else 0o600) for n in range(300)]
    tree = [
        Entry("many", kind="directory", mode=0o700),
        *files,
        Entry("deep/er/file", b"its folders are made"),
        Entry("text", b"all work and no play " * 200_000),
        Entry("large", data(3 * MIB)),
        Entry("link", kind="symlink", target="many/0001"),
        Entry("none"),
    ]
    async with machine(tmp_path) as (guest, way):
        await guest.stage_in(tree)
        await guest.stage_in(tree)
    inside = tmp_path / "task" / "in"
    assert tree_of(inside) == {each.path: each.data for each in tree if each.kind == "file"} | {"link": files[1].data}
    assert (inside / "link").readlink() == Path("many/0001")
    assert (inside / "many/0000").stat().st_mode & 0o7777 == 0o644
    assert (inside / "many/0001").stat().st_mode & 0o7777 == 0o755
    assert (inside / "many").stat().st_mode & 0o7777 == 0o755
    assert way.sent < 2 * 5 * MIB  # the text is as large as that alone; it was compressed


@pytest.mark.parametrize("seed", range(4))
async def test_a_large_file_goes_in_over_connections_that_are_cut(tmp_path: Path, seed: int) -> None:
    content = data(24 * MIB)
    cuts = [random.Random(seed).randrange(HANDSHAKE, 12 * MIB) for _ in range(3)]
    async with machine(tmp_path, cuts) as (guest, way):
        await guest.stage_in([Entry("before", b"1"), Entry("large", content), Entry("after", b"2")])
    assert tree_of(tmp_path / "task" / "in") == {"before": b"1", "large": content, "after": b"2"}
    assert way.connections == 4
    assert way.sent < len(content) * 1.01 + 4 * (HANDSHAKE + IN_FLIGHT)


async def test_after_a_cut_at_60_percent_only_the_rest_is_sent(tmp_path: Path) -> None:
    content, told = data(40 * MIB), []
    async with machine(tmp_path, [24 * MIB]) as (guest, way):
        await guest.stage_in([Entry("large", content)], lambda done, total: told.append((done, total)))
    assert tree_of(tmp_path / "task" / "in") == {"large": content}
    assert way.sent - 24 * MIB < 16 * MIB * 1.01 + IN_FLIGHT
    assert told == sorted(set(told))
    assert told[-1] == (40 * MIB, 40 * MIB)


@pytest.mark.parametrize("seed", range(4))
async def test_many_small_files_go_in_over_connections_that_are_cut(tmp_path: Path, seed: int) -> None:
    tree = [Entry(f"d{n % 7}/{n}", data(8192, n)) for n in range(2000)]
    cuts = [random.Random(seed).randrange(HANDSHAKE, 8 * MIB) for _ in range(2)]
    async with machine(tmp_path, cuts) as (guest, way):
        await guest.stage_in(tree)
    assert tree_of(tmp_path / "task" / "in") == {each.path: each.data for each in tree}
    assert way.sent < 16 * MIB * 1.03 + 3 * (HANDSHAKE + IN_FLIGHT)


LIES = {
    "more": ('b"%d %s" % (self.size, self', 'b"%d %s" % (self.size + 1, self'),
    "less": ('b"%d %s" % (self.size, self', 'b"%d %s" % (self.size // 2, self'),
    "another hash": (
        'send(b"p", b"%d %s" % (self.size, self.hashed.hexdigest().encode()))',
        'send(b"p", b"%d %s" % (self.size, b"0" * 64))',
    ),
    "no number": ('b"%d %s" % (self.size, self', 'b"a%d %s" % (self.size, self'),
    "all of it": ('b"%d %s" % (self.size, self', 'b"%d %s" % (12 << 20, self'),
}


@pytest.mark.parametrize("lie", LIES)
async def test_what_a_guest_only_claims_to_have_is_sent_again(tmp_path: Path, lie: str) -> None:
    content = data(12 * MIB)
    async with machine(tmp_path, [8 * MIB], instead=dict([LIES[lie]])) as (guest, way):
        await guest.stage_in([Entry("large", content)])
    assert tree_of(tmp_path / "task" / "in") == {"large": content}
    assert way.sent > 20 * MIB


async def test_what_was_changed_between_two_connections_is_found_out(tmp_path: Path) -> None:
    """It goes on where the hash was right; what is written then is another file's."""
    swap = {"self.at = path\n        os.fchmod": 'self.hashed.update(b"x")\n        os.fchmod'}
    async with machine(tmp_path, [8 * MIB], instead=swap) as (guest, _):
        with pytest.raises(StagingFailed, match="input large: its sha256 in the guest is not what was sent"):
            await guest.stage_in([Entry("large", data(12 * MIB))])


async def test_a_file_that_cannot_be_written_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "task" / "in" / "taken").mkdir(parents=True)
    async with machine(tmp_path) as (guest, _):
        with pytest.raises(StagingFailed, match="the inputs did not go in: taken: Is a directory"):
            await guest.stage_in([Entry("taken", b"1"), Entry("other", data(MIB))])


def test_one_that_was_left_behind_is_ended_before_another_writes(tmp_path: Path) -> None:
    """As after a connection that the machine has not yet noticed to be gone: it would write when nobody looks."""
    (tmp_path / "in").mkdir()
    text = request("stage-in", "1", body="stage_in.py").replace("/task/in", f"{tmp_path}/in")
    command = ["sh", "-c", text.replace("/run/mayfly-", f"{tmp_path}/mayfly-")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as former:
        assert former.stdin and former.stdout
        former.stdin.write(b"q\0\0\0\1a")
        former.stdin.flush()
        assert former.stdout.read(5)[:1] == b"p"  # it has its turn
        then = subprocess.run(command, input=b"q\0\0\0\1b", capture_output=True, check=True)
        assert then.stdout[5:] == b"0 " + hashlib.sha256().hexdigest().encode()
        assert former.wait(30) == -9


TOKEN = "task.1"
RECORD = "result=success\ncode=exited\nstatus=0\nlaunched=no\ntraced=yes\nend\n"


def ended(folder: Path) -> dict[str, str]:
    """A process has ended in that machine; what its programs take for what there."""
    for name in ("run/mayfly-task", "logs"):
        (folder / name).mkdir(parents=True)
    (folder / "run/mayfly-task/token").write_text(TOKEN)
    (folder / "run/mayfly-task/exit").write_text(RECORD)
    for name in ("stdout", "stderr", "trace"):
        (folder / "logs" / name).touch()
    user = {"os.geteuid() == 0": "False"}  # whoever runs the test stands for the user `task`
    return {"/run/mayfly-": f"{folder}/run/mayfly-", "/var/lib/mayfly-task": f"{folder}/logs", **user}


def fill(folder: Path, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


MANY = {f"d{n % 5}/{n}": data(n * 13 % 9000, n) for n in range(1500)}


@pytest.mark.parametrize(
    ("files", "cuts"),
    [
        ({"large": data(20 * MIB)}, [12 * MIB]),
        ({"large": data(20 * MIB), "z/small": b"1", "a": b""}, [5 * MIB, 3 * MIB + 17, 60_000]),
        ({"large": data(6 * MIB), "larger": data(9 * MIB, 1)}, [7 * MIB, 4 * MIB]),
        (MANY, [2 * MIB, MIB]),
    ],
)
async def test_outputs_come_out_over_connections_that_are_cut(
    tmp_path: Path, files: dict[str, bytes], cuts: list[int]
) -> None:
    fill(tmp_path / "task" / "out", files)
    outputs, told = MemoryOutputs(), []
    async with machine(tmp_path, cuts, of_received=True, instead=ended(tmp_path)) as (guest, way):
        assert await guest.resume(launch("x", token=TOKEN)) is Started.ENDED
        assert (await guest.follow(*Sinks()))[0] == Exited(0)
        entries = [entry for entry in await guest.list_outputs() if entry.kind is OutputKind.FILE]
        await guest.stage_out(entries, outputs, limit_bytes=1 << 30, progress=lambda *done: told.append(done))
    total = sum(map(len, files.values()))
    assert outputs.files == files
    assert outputs.aborted == []
    assert way.connections == len(cuts) + 1
    assert way.received < total * 1.05 + 200 * len(files) + (len(cuts) + 1) * (HANDSHAKE + IN_FLIGHT)
    assert told == sorted(told)
    assert told[-1] == (total, total)


async def test_a_folder_that_became_a_link_is_not_followed(tmp_path: Path) -> None:
    fill(tmp_path / "task" / "out", {"d/a": b"1", "e/b": b"2", "e/c": b"3"})
    fill(tmp_path / "elsewhere", {"a": b"4"})
    outputs = MemoryOutputs()
    async with machine(tmp_path, instead=ended(tmp_path)) as (guest, _):
        await guest.resume(launch("x", token=TOKEN))
        await guest.follow(*Sinks())
        entries = [entry for entry in await guest.list_outputs() if entry.kind is OutputKind.FILE]
        shutil.rmtree(tmp_path / "task" / "out" / "d")
        (tmp_path / "task" / "out" / "d").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "task" / "out" / "e" / "b").unlink()
        (tmp_path / "task" / "out" / "e" / "b").symlink_to("c")
        with pytest.raises(OutputRefused, match="output d/a: Not a directory; output e/b: not a regular file"):
            await guest.stage_out(entries, outputs, limit_bytes=10)
    assert outputs.files == {"e/c": b"3"}
