"""What the command line writes, to readers that pause, leave, or could be steered by a hostile guest's names."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from io import FileIO

import pytest

from orchestrator.cli import output
from orchestrator.cli.follow import write

DATA = bytes(range(256)) * 4096


@pytest.fixture
def pipe() -> Iterator[tuple[FileIO, FileIO]]:
    """A pipe's ends, to read and to write, unbuffered."""
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as reader, open(writing, "wb", buffering=0) as writer:
        yield reader, writer


async def test_a_reader_that_pauses_holds_up_nobody_else(pipe: tuple[FileIO, FileIO]) -> None:
    reader, writer = pipe
    writing = asyncio.create_task(write(writer, DATA))
    for _ in range(3):
        await asyncio.sleep(0)  # would never come back, did the writing block
    assert not writing.done()
    got = b""
    while len(got) < len(DATA):
        got += await asyncio.to_thread(reader.read, 65536)
    await writing
    assert got == DATA


async def test_a_reader_that_leaves_is_told_of(pipe: tuple[FileIO, FileIO]) -> None:
    reader, writer = pipe
    writing = asyncio.create_task(write(writer, DATA))
    await asyncio.sleep(0)
    reader.close()
    with pytest.raises(BrokenPipeError):
        await writing


def test_notes_to_nobody_are_dropped(pipe: tuple[FileIO, FileIO], monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = pipe
    reader.close()
    with os.fdopen(os.dup(writer.fileno()), "w") as file:
        monkeypatch.setattr(output, "err", type(output.err)(file=file))
        output.note("one")
        output.note("two")
    assert output.err.quiet


@pytest.mark.parametrize("speak", [output.note, output.say, output.fail])
@pytest.mark.parametrize("name", ["\x1b[2Jred", "\x9b31m", "a\rb", "\u202egnp.exe", "\udcff"])
def test_no_text_steers_a_terminal(speak, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    speak(f"output {name}: it changed\nsecond line")
    said = "".join(capsys.readouterr())
    assert all(letter.isprintable() or letter == "\n" for letter in said)
    assert "it changed\nsecond line" in said


def test_json_is_ascii_and_keeps_every_name(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["\udcff\udcfe.csv", "\x9b31m", "\u202e", "größe"]
    output.as_json(names)
    text = capsys.readouterr().out
    assert text.isascii()
    assert json.loads(text) == names
