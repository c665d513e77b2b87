"""A trace in the artifact store: gzip members as they come, plain text as it is read."""

from __future__ import annotations

import gzip
import hashlib
import random
import zlib
from pathlib import Path

import pytest

from orchestrator.artifacts import Artifacts, Log, LogState
from orchestrator.artifacts.logs import MAX_LINE_BYTES

TASK = "0123456789abcdef"
MIB = 1 << 20


def text_of(lines: int, seed: int = 0) -> bytes:
    dice = random.Random(seed)
    return b"".join(b"%d 17.%06d openat(AT_FDCWD) = %d\n" % (n, dice.randrange(10**6), n % 9) for n in range(lines))


def members(*texts: bytes) -> bytes:
    return b"".join(gzip.compress(text, 1) for text in texts)


def begun(text: bytes) -> bytes:
    """A member that goes on later."""
    member = zlib.compressobj(1, zlib.DEFLATED, 31)
    return member.compress(text) + member.flush(zlib.Z_SYNC_FLUSH)


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    return Artifacts(tmp_path / "store")


def trace(artifacts: Artifacts) -> Log:
    return artifacts.log(TASK, 1, "trace")


async def test_it_is_stored_as_it_comes_and_read_as_text(artifacts: Artifacts) -> None:
    text = text_of(3000)
    stored = members(text[:9999], b"", text[9999:])
    writer = artifacts.attempt(TASK, 1).trace
    for at in range(0, len(stored), 777):
        await writer.write(stored[at : at + 777])
    log = trace(artifacts)
    assert log.path.read_bytes() == stored
    assert log.digest() == hashlib.sha256(stored).hexdigest()
    assert log.state() == LogState(len(stored), len(stored))
    assert log.read(limit=1 << 30) == text
    assert [log.read(offset, 100) for offset in (0, 100, 50_000, 49_999, 7)] == [
        text[offset : offset + 100] for offset in (0, 100, 50_000, 49_999, 7)
    ]
    assert log.read(len(text)) == log.read(len(text) + 99) == b""
    assert list(log.lines()) == text.splitlines()


async def test_it_is_read_while_it_grows(artifacts: Artifacts) -> None:
    writer, log = artifacts.attempt(TASK, 1).trace, trace(artifacts)
    first, rest = text_of(50), text_of(60, seed=1)
    member = zlib.compressobj(1, zlib.DEFLATED, 31)
    assert log.read() == b"" and list(log.lines()) == []
    await writer.write((member.compress(first) + member.flush(zlib.Z_SYNC_FLUSH))[:1])
    assert log.read() == b""
    member = zlib.compressobj(1, zlib.DEFLATED, 31)
    await writer.write((member.compress(first) + member.flush(zlib.Z_SYNC_FLUSH))[1:])
    assert log.read() == first
    await writer.write(member.compress(rest) + member.flush())
    assert log.read(len(first)) == rest
    assert list(log.lines()) == (first + rest).splitlines()


async def test_another_writer_goes_on_in_the_middle_of_a_member(artifacts: Artifacts) -> None:
    text = text_of(500)
    stored = members(text)
    former, cut = artifacts.attempt(TASK, 1).trace, len(stored) // 2
    await former.write(stored[:cut])
    latter = artifacts.attempt(TASK, 1).trace
    assert latter.offset == cut
    await latter.write(stored[cut:])
    await former.write(stored[cut : cut + 10])  # it wakes up, and writes what is there already
    assert trace(artifacts).read() == text
    assert not trace(artifacts).state().cut


async def test_no_more_plain_text_is_kept_than_may_be(artifacts: Artifacts) -> None:
    """A thousandth of it is stored. What fits is kept, and nothing after what does not."""
    writer = artifacts.attempt(TASK, 1, limit_bytes=2 * MIB).trace
    good, bomb = members(b"1 17.0 +++ exited with 0 +++\n" * 1000), members(bytes(64 * MIB))
    await writer.write(good)
    await writer.write(bomb)
    await writer.write(good)
    state = trace(artifacts).state()
    assert state == LogState(len(good), 2 * len(good) + len(bomb)) and state.cut
    assert len(trace(artifacts).read(limit=1 << 30)) == 29_000


async def test_nor_by_a_writer_that_comes_later(artifacts: Artifacts) -> None:
    half = members(bytes(MIB + MIB // 2))
    await artifacts.attempt(TASK, 1, limit_bytes=2 * MIB).trace.write(half)
    await artifacts.attempt(TASK, 1, limit_bytes=2 * MIB).trace.write(half)
    assert trace(artifacts).state() == LogState(len(half), 2 * len(half))


@pytest.mark.parametrize(
    "damaged",
    [members(b"x\n")[:-8] + b"damaged!", members(b"x\n") + b"no member", b"\x1f\x8b" + bytes(20)],
)
async def test_what_is_no_member_is_not_kept(artifacts: Artifacts, damaged: bytes) -> None:
    good = members(text_of(10))
    writer = artifacts.attempt(TASK, 1).trace
    await writer.write(good)
    await writer.write(damaged)
    assert trace(artifacts).read() == text_of(10)
    assert trace(artifacts).state() == LogState(len(good), len(good) + len(damaged))


async def test_the_last_member_may_lack_its_end(artifacts: Artifacts) -> None:
    await artifacts.attempt(TASK, 1).trace.write(members(text_of(10)) + begun(b"more\n"))
    assert list(trace(artifacts).lines()) == [*text_of(10).splitlines(), b"more"]


async def test_a_plain_one_is_read_as_it_is(artifacts: Artifacts) -> None:
    writer = artifacts.attempt(TASK, 1, limit_bytes=10).trace
    await writer.write(b"12345")
    await writer.write(b"67890abc")
    assert (trace(artifacts).read(), trace(artifacts).state()) == (b"1234567890", LogState(10, 13))


async def test_what_a_process_prints_is_never_taken_for_members(artifacts: Artifacts) -> None:
    stored = members(b"its own archive\n")
    await artifacts.attempt(TASK, 1).stdout.write(stored)
    assert artifacts.log(TASK, 1, "stdout").read() == stored


async def test_a_line_without_end_is_cut(artifacts: Artifacts) -> None:
    text = b"short\n" + b"x" * (5 * MIB) + b"\nlast\n" + b"y" * (3 * MIB)
    await artifacts.attempt(TASK, 1).trace.write(members(text))
    assert list(trace(artifacts).lines()) == [b"short", b"x" * MAX_LINE_BYTES, b"last", b"y" * MAX_LINE_BYTES]
