"""Inputs in and outputs out: whole, or a failure that names the path."""

from __future__ import annotations

import hashlib
from typing import BinaryIO

import pytest

from orchestrator.domain.errors import ConnectionLost, StagingFailed
from orchestrator.guest import OutputEntry, OutputKind, OutputRefused, StepFailed, check_tree, staged_mode
from tests.guest_ends import Entry, MemoryOutputs, Sinks, launch, misbehaving, simulated
from tests.misbehaving_ssh import Answer, Channel, drops_after, frame, says, stays_after

TREE = (
    Entry("empty", kind="directory"),
    Entry("a b\n é\udcff", b"odd name"),
    Entry("deep/" * 60 + "file", b"long name", mode=0o755),
    Entry("big", bytes(3_000_000)),
    Entry("link", kind="symlink", target="../../etc/shadow"),
    Entry("none"),
)
STARTED = frame(b"a", b"armed") + frame(b"a", b"started")
RECORD = frame(b"x", b"result=success\ncode=exited\nstatus=0\nlaunched=yes\ntraced=yes\ncut=\n")


def file(path: str, size: int = 1, kind: OutputKind = OutputKind.FILE) -> OutputEntry:
    return OutputEntry(path, kind, size, 0o644, 0)


def sent(data: bytes, state: bytes = b"same", claimed: bytes = b"") -> bytes:
    digest = claimed or hashlib.sha256(data).hexdigest().encode()
    return frame(b"f", b"%d" % len(data)) + frame(b"d", data) + frame(b"h", digest + b" " + state)


def whole(data: bytes, state: bytes = b"same", claimed: bytes = b"") -> bytes:
    digest = claimed or hashlib.sha256(data).hexdigest().encode()
    return frame(b"w", digest + b" " + state + b"\n" + data)


async def test_a_tree_goes_in_whole_and_its_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    async with simulated() as (guest, _):
        await guest.stage_in(TREE, lambda done, total: told.append((done, total)))
        await guest.stage_in([])
    total = sum(entry.size for entry in TREE)
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@pytest.mark.parametrize(
    ("tree", "complaint"),
    [
        ([Entry("/etc/passwd")], "not a plain relative path"),
        ([Entry("a/../../b")], "not a plain relative path"),
        ([Entry("")], "not a plain relative path"),
        ([Entry("a//b")], "not a plain relative path"),
        ([Entry("a\0b")], r"'a\\x00b': not a plain relative path"),
        ([Entry("a"), Entry("a")], "staged twice"),
        ([Entry("l", kind="symlink", target="/etc"), Entry("l/cron.d/x")], "l is not a directory"),
        ([Entry("f"), Entry("f/x")], "f is not a directory"),
        ([Entry("l", kind="symlink")], "a symbolic link to nothing"),
    ],
)
def test_a_tree_that_would_leave_its_place_is_refused(tree: list[Entry], complaint: str) -> None:
    with pytest.raises(StagingFailed, match=complaint):
        check_tree(tree)


async def test_content_that_is_not_what_was_submitted_is_refused() -> None:
    async with simulated() as (guest, _):
        with pytest.raises(StagingFailed, match="input f: not what was submitted"):
            await guest.stage_in([Entry("f", b"x", claimed="0" * 64)])


async def test_content_that_is_shorter_than_it_was_is_refused() -> None:
    class Shrunk(Entry):
        @property
        def size(self) -> int:
            return 5

    async with simulated() as (guest, _):
        with pytest.raises(StagingFailed, match="input f: 4 bytes short of its size"):
            await guest.stage_in([Shrunk("f", b"x")])


async def test_an_input_that_is_gone_is_told_and_not_taken_for_a_dropped_connection() -> None:
    class Gone(Entry):
        def open(self) -> BinaryIO:
            raise FileNotFoundError(2, "No such file or directory", "/somewhere/f")

    async with misbehaving(stays_after(b"")) as (guest, server):
        with pytest.raises(StagingFailed, match=r"input f: cannot be read here: .*No such file"):
            await guest.stage_in([Gone("f", b"x")])
    assert server.connections == 1


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (says(b"", 2, b"MemoryError"), r"did not go in \(status 2\): MemoryError"),
        (says(frame(b"!", b"f: No space \x1bleft"), 1), r"did not go in: f: No space \\x1bleft"),
        (says(frame(b"h", b"0" * 64)), "input f and 1 more: its sha256 in the guest is not what was sent"),
        (says(frame(b"h", b"\xff")), "input f and 1 more: its sha256 in the guest is not what was sent"),
        (says(b""), "ended staging in before all was there"),
        (says(frame(b"h", b"0" * 8193)), "announced a frame of 8193 bytes"),
        (says(frame(b"p", b"1 " + b"0" * 64)), "a frame of kind b'p' that nothing asked for"),
        (says(b"x" * 2_000_000), "announced a frame of 2021161080 bytes"),
    ],
)
async def test_inputs_that_did_not_arrive_whole_are_told(answer: Answer, complaint: str) -> None:
    def when_all_came(channel: Channel, words: list[str]) -> None:
        while channel.recv(65536):
            pass
        answer(channel, words)

    async with misbehaving(when_all_came) as (guest, _):
        with pytest.raises(StagingFailed, match=complaint):
            await guest.stage_in([Entry("f", b"x"), Entry("g", b"y")])


async def test_a_guest_that_acknowledges_more_than_it_was_sent_is_told() -> None:
    async with misbehaving(stays_after(frame(b"h", b"0" * 64))) as (guest, _):
        with pytest.raises(StagingFailed, match=r"b'h' that nothing asked for|not what was sent"):
            await guest.stage_in([Entry("f", b"x")])


async def test_a_guest_that_takes_a_part_of_the_inputs_and_drops_is_tried_again_and_given_up() -> None:
    def takes_a_part(channel: Channel, words: list[str]) -> None:
        channel.recv(1000)
        channel.get_transport().close()

    async with misbehaving(takes_a_part) as (guest, server):
        with pytest.raises(ConnectionLost, match="dropped 3 times"):
            await guest.stage_in([Entry("f", bytes(5_000_000))])
    assert [words[0] for words in server.asked] == ["mayfly-stage-in"] * 3


@pytest.mark.parametrize(
    ("mode", "directory", "staged"),
    [
        (0o644, False, 0o644),
        (0o600, False, 0o644),
        (0o755, False, 0o755),
        (0o700, False, 0o755),
        (0o400, False, 0o444),
        (0o000, False, 0o444),
        (0o4755, False, 0o755),
        (0o666, False, 0o644),
        (0o700, True, 0o755),
        (0o500, True, 0o555),
        (0o000, True, 0o555),
        (0o1777, True, 0o755),
    ],
)
def test_the_owners_bits_stay_and_everybody_may_read(mode: int, directory: bool, staged: int) -> None:
    assert staged_mode(mode, directory=directory) == staged


async def test_outputs_are_listed_and_come_out_whole() -> None:
    told: list[tuple[int, int]] = []
    async with simulated() as (guest, _):
        await guest.start(launch("sh", "-c", "echo 1 > 'a b.csv'; write big 3000000; write none 0; link l; drop"))
        await guest.follow(*Sinks())
        listed = await guest.list_outputs()
        outputs = MemoryOutputs()
        files = [entry for entry in listed if entry.kind is OutputKind.FILE]
        await guest.stage_out(
            files, outputs, limit_bytes=4_000_000, progress=lambda done, total: told.append((done, total))
        )
        await guest.stage_out([], outputs, limit_bytes=0)
    assert [(entry.path, entry.kind.value) for entry in listed] == [
        ("a b.csv", "f"),
        ("big", "f"),
        ("l", "l"),
        ("none", "f"),
    ]
    assert outputs.files == {"a b.csv": b"1\n", "big": bytes(3_000_000), "none": b""}
    assert told[-1] == (3_000_002, 3_000_002)


@pytest.mark.parametrize("kind", [kind for kind in OutputKind if kind is not OutputKind.FILE])
async def test_only_a_regular_file_is_taken(kind: OutputKind) -> None:
    async with misbehaving(stays_after(STARTED + RECORD + sent(b"1"))) as (guest, _):
        await guest.start(launch("x"))
        await guest.follow(*Sinks())
        outputs = MemoryOutputs()
        with pytest.raises(OutputRefused, match=r"output shadow: it is .*only regular files are taken") as refused:
            await guest.stage_out([file("shadow", kind=kind), file("f")], outputs, limit_bytes=1)
    assert [each.path for each in refused.value.refused] == ["shadow"]
    assert outputs.files == {"f": b"1"}


async def test_one_that_is_refused_keeps_no_other_from_coming_out() -> None:
    """Each in its turn, also over a dropped connection: nothing is asked for again, and nothing is forgotten."""
    denied, gone = frame(b"!", b"Permission denied"), frame(b"f", b"2") + frame(b"d", b"1") + frame(b"!", b"I/O error")
    first = drops_after(STARTED + RECORD + sent(b"1") + denied + sent(b"3"))
    then = stays_after(RECORD + gone + sent(b"5", b"changed") + sent(b"6"))
    async with misbehaving([first, then]) as (guest, _):
        await guest.start(launch("x"))
        await guest.follow(*Sinks())
        outputs = MemoryOutputs()
        with pytest.raises(OutputRefused) as refused:
            await guest.stage_out([file(name) for name in "abcdef"], outputs, limit_bytes=10)
    assert str(refused.value) == (
        "output b: Permission denied; output d: I/O error; output e: it changed while it was read"
    )
    assert outputs.files == {"a": b"1", "c": b"3", "f": b"6"}
    assert outputs.aborted == ["d", "e"]


async def test_of_many_that_are_refused_only_a_few_are_named() -> None:
    async with simulated() as (guest, _):
        await guest.start(launch("true"))
        await guest.follow(*Sinks())
        with pytest.raises(OutputRefused, match=r"^(output \d: not a regular file; ){5}and 2 more$") as refused:
            await guest.stage_out([file(str(n)) for n in range(7)], MemoryOutputs(), limit_bytes=10)
    assert len(refused.value.refused) == 7
    assert refused.value.final  # the process left them so, and would again


async def test_outputs_over_the_limit_are_not_even_asked_for() -> None:
    async with simulated() as (guest, _):
        with pytest.raises(StagingFailed, match="the outputs have 11 bytes, and at most 10 are taken"):
            await guest.stage_out([file("a", 6), file("b", 5)], MemoryOutputs(), limit_bytes=10)


@pytest.mark.parametrize(
    ("answer", "error", "complaint"),
    [
        (frame(b"!", b"not a regular file"), OutputRefused, "output f: not a regular file"),
        (frame(b"!", b"Permission \x1bdenied"), OutputRefused, r"output f: Permission \\x1bdenied"),
        (sent(b"1", b"changed"), OutputRefused, "output f: it changed while it was read"),
        (sent(b"12"), OutputRefused, "output f: it changed while it was read"),
        (sent(b"1", claimed=b"0" * 64), OutputRefused, "its sha256 in the guest is not what came"),
        (sent(b"1" * 11), StagingFailed, "output f: more than 10 bytes in all"),
        (frame(b"f", b"1") + frame(b"d", b"12"), StepFailed, "more of a file than it announced"),
        (frame(b"f", b"-1"), StepFailed, "a file of a size that is none"),
        (frame(b"d", b"1"), StepFailed, "where a file was to begin"),
        (whole(b"1", b"changed"), OutputRefused, "output f: it changed while it was read"),
        (whole(b"12"), OutputRefused, "output f: it changed while it was read"),
        (whole(b"1", claimed=b"0" * 64), OutputRefused, "its sha256 in the guest is not what came"),
        (whole(b"1", claimed=b"\xff"), OutputRefused, "its sha256 in the guest is not what came"),
        (whole(b"1" * 11), StagingFailed, "output f: more than 10 bytes in all"),
        (frame(b"w", b"1"), OutputRefused, "output f: it changed while it was read"),
        (frame(b"f", b"1") + frame(b"o", b"1"), StepFailed, "in the middle of a file"),
        (frame(b"f", b"1") + frame(b"!", b"Input/output error"), OutputRefused, "Input/output error"),
    ],
)
async def test_an_output_that_is_not_what_was_listed_is_refused(
    answer: bytes, error: type[Exception], complaint: str
) -> None:
    async with misbehaving(stays_after(STARTED + RECORD + answer)) as (guest, _):
        await guest.start(launch("x"))
        await guest.follow(*Sinks())
        outputs = MemoryOutputs()
        with pytest.raises(error, match=complaint):
            await guest.stage_out([file("f")], outputs, limit_bytes=10)
    assert outputs.files == {}


async def test_outputs_that_came_before_a_drop_are_not_asked_for_again() -> None:
    half = frame(b"f", b"3") + frame(b"d", b"23")
    first = drops_after(STARTED + RECORD + sent(b"1") + whole(b"w") + half)
    rest = frame(b"f", b"3") + frame(b"d", b"4") + frame(b"h", hashlib.sha256(b"234").hexdigest().encode() + b" same")
    then = stays_after(RECORD + rest + whole(b"5"))
    async with misbehaving([first, then]) as (guest, server):
        await guest.start(launch("x"))
        await guest.follow(*Sinks())
        outputs = MemoryOutputs()
        await guest.stage_out([file("a"), file("w"), file("b", 3), file("c")], outputs, limit_bytes=10)
    assert outputs.files == {"a": b"1", "w": b"w", "b": b"234", "c": b"5"}
    assert outputs.aborted == []
    assert [words[0] for words in server.asked] == ["mayfly-arm", "mayfly-attend"]


@pytest.mark.parametrize(
    "rest",
    [
        frame(b"f", b"4") + frame(b"d", b"45"),
        whole(b"4"),
        frame(b"f", b"3") + frame(b"d", b"4") + frame(b"h", hashlib.sha256(b"334").hexdigest().encode() + b" same"),
        frame(b"f", b"3") + frame(b"h", hashlib.sha256(b"23").hexdigest().encode() + b" same"),
        frame(b"!", b"Input/output error"),
    ],
)
async def test_the_rest_of_an_output_that_is_another_is_not_taken(rest: bytes) -> None:
    first = drops_after(STARTED + RECORD + frame(b"f", b"3") + frame(b"d", b"23"))
    async with misbehaving([first, stays_after(RECORD + rest + whole(b"5"))]) as (guest, _):
        await guest.start(launch("x"))
        await guest.follow(*Sinks())
        outputs = MemoryOutputs()
        with pytest.raises((OutputRefused, StepFailed)):
            await guest.stage_out([file("b", 3), file("c")], outputs, limit_bytes=10)
    assert "b" not in outputs.files
    assert outputs.aborted == ["b"]


@pytest.mark.parametrize(
    ("answer", "error", "complaint"),
    [
        (frame(b"l", b"f 644 1 0 ../../etc/passwd\0"), StepFailed, "listing cannot be read: path"),
        (frame(b"l", b"f 644 1 0 /etc/passwd\0"), StepFailed, "listing cannot be read: path"),
        (frame(b"l", b"f 644 1 0 " + b"x" * 4001 + b"\0"), StepFailed, "listing cannot be read: path"),
        (frame(b"l", b"q 644 1 0 a\0"), StepFailed, "listing cannot be read"),
        (frame(b"l", b"f 644 one 0 a\0"), StepFailed, "listing cannot be read"),
        (frame(b"l", b"f 644 1 0 a\0" * 4), StagingFailed, "more than 3 outputs"),
        (frame(b"!", b"more than 3 files and directories"), StagingFailed, "cannot be listed: more than 3"),
        (frame(b"d", b""), StepFailed, "for a listing"),
    ],
)
async def test_a_listing_is_checked(answer: bytes, error: type[Exception], complaint: str) -> None:
    async with misbehaving(stays_after(STARTED + RECORD + answer)) as (guest, _):
        await guest.start(launch("x"))
        await guest.follow(*Sinks())
        with pytest.raises(error, match=complaint):
            await guest.list_outputs(3)


async def test_outputs_of_nothing_are_refused() -> None:
    async with simulated() as (guest, _):
        with pytest.raises(StepFailed, match="nothing was started"):
            await guest.list_outputs()


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (frame(b"l") * 3, "names of the outputs are more than 10000 bytes"),
        (frame(b"l", b"f 644 1 0 " + b"x" * 2000 + b"\0") * 2, "names of the outputs are more than 10000 bytes"),
    ],
)
async def test_a_listing_is_bounded_however_it_comes(
    answer: bytes, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.guest.outputs.MAX_LISTING", 10_000)
    async with misbehaving(stays_after(STARTED + RECORD + answer)) as (guest, _):
        await guest.start(launch("x"))
        await guest.follow(*Sinks())
        with pytest.raises(StagingFailed, match=complaint):
            await guest.list_outputs()


async def test_a_file_that_comes_in_pieces_of_nothing_is_refused() -> None:
    async with misbehaving(stays_after(STARTED + RECORD + frame(b"f", b"1") + frame(b"d"))) as (guest, _):
        await guest.start(launch("x"))
        await guest.follow(*Sinks())
        with pytest.raises(StepFailed, match="in the middle of a file"):
            await guest.stage_out([file("f")], MemoryOutputs(), limit_bytes=10)
