"""How a step is asked of a guest: one SSH exec request each, and the script travels in the request.

Nothing of ours is installed in a guest, so no image can be out of step with this code. A request is shell text:

    set -- mayfly-VERB WORD…        the first line: what is asked, and its words
    export name='text'              further variables, shell-quoted, which may cross lines
    …                               the script, as it stands in `scripts/`

Every exec costs about a tenth of a second in an emulated guest, so a step is one exec; and so does every program that
a script starts, in hundredths, so the scripts keep to what the shell can do by itself.
"""

from __future__ import annotations

import asyncio
import marshal
import re
import shlex
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.util import MAGIC_NUMBER
from typing import Any, cast

import asyncssh

from orchestrator.guest.errors import Dropped, StepFailed, printable

Process = asyncssh.SSHClientProcess[bytes]

STEP_SECONDS = 60.0
MAX_STDERR = 8192
MAX_REQUEST = 120_000
"""Bytes. Linux takes no single argument over 128 KiB, and the guest's login shell gets the request as one."""

_HELD_PACKETS = 512
_PACKAGE = f"{__package__}.scripts."
_IMPORT = re.compile(rf"^ *from {re.escape(_PACKAGE)}(\w+) import ", re.MULTILINE)

LOST = (asyncssh.Error, OSError)
"""What asyncssh raises when the connection is gone. TimeoutError is an OSError: catch it first."""


class BoundedProcess(asyncssh.SSHClientProcess[bytes]):
    """One whose far side cannot fill our memory: two windows (4 MiB) is the most that is held of what it writes.

    After a pause asyncssh (2.24) opens the channel's whole window anew with each piece that it delivers, however much
    it holds already. So it goes on only once all is read that was held; stdout and stderr must both be read.
    """

    def _maybe_resume_reading(self) -> bool:
        return not self._recv_buf_len and super()._maybe_resume_reading()


def held_up(process: Process) -> bool:
    """Whether much that was written (16 MiB, in packets of 32 KiB) waits for the end of a key exchange: asyncssh (2.24)
    takes any amount meanwhile, and a far side may begin one and never end it."""
    return len(getattr(process.channel.get_connection(), "_deferred_packets", ())) > _HELD_PACKETS


@dataclass(frozen=True, slots=True)
class Reply:
    """What a step wrote, and how it ended: `status` is its exit status."""

    stdout: bytes
    stderr: str
    status: int


@cache
def script(name: str) -> str:
    """The text of a file of `scripts/`."""
    return resources.files(__package__).joinpath("scripts", name).read_text()


def request(verb: str, *words: str, body: str, **variables: str) -> str:
    """The text of an exec request; see the module. `body` is a name of `scripts/`."""
    lines = [_first_line(verb, words)]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    lines.append(script(body) if body.endswith(".sh") else python(body))
    return "\n".join(lines)


@cache
def python(name: str) -> str:
    """The shell command that becomes Python with a program of `scripts/` and the modules that it imports from there:
    isolated, and without `site`, for speed. sys.argv[1:] are the words."""
    parts = [word for each in _imported(name) for word in (_PACKAGE + each.removesuffix(".py"), script(each))]
    return f'exec python3 -IS -c {shlex.join([script("load.py"), *parts])} -- "$@"\n'


def awaiting_programs(verb: str, *words: str, **variables: str) -> str:
    """The text of an exec request that `programs` must be written to before anything else."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    command = f'exec python3 -IS -c {shlex.quote(script("load.py"))} -- "$@"\n'
    return "\n".join([_first_line(verb, words), *lines, command])


@cache
def programs(name: str) -> bytes:
    """A program of `scripts/` and what it imports from there, compiled for a Python such as this one; see `load.py`."""
    each = [(_PACKAGE + one.removesuffix(".py"), script(one)) for one in _imported(name)]
    whole = marshal.dumps(
        [(name, text, marshal.dumps(compile(text, name, "exec", optimize=2))) for name, text in each], 2
    )
    return b"programs %s %d\n" % (MAGIC_NUMBER.hex().encode(), len(whole)) + whole


def _verb(text: str) -> str:
    return text.split(maxsplit=3)[2]


def _first_line(verb: str, words: Sequence[str]) -> str:
    if any("\n" in word for word in words):
        raise ValueError("a word of a request holds a newline")
    return shlex.join(["set", "--", f"mayfly-{verb}", *words])


def _imported(name: str) -> list[str]:
    """What the program imports of `scripts/`, each once, and the program itself."""
    found: list[str] = []
    for needed in _IMPORT.findall(script(name)):
        found += [each for each in _imported(f"{needed}.py") if each not in found]
    return [*found, name]


@asynccontextmanager
async def step(connection: asyncssh.SSHClientConnection, text: str) -> AsyncIterator[Process]:
    """A running step, its streams in bytes. Raises Dropped when the connection goes, whatever the block was doing."""
    process = await ask(connection, text)
    try:
        yield process
    except LOST as error:
        raise Dropped(str(error)) from error
    finally:
        process.close()


async def ask(connection: asyncssh.SSHClientConnection, text: str) -> Process:
    """Start a step. The caller closes it. Raises Dropped; StepFailed when the guest does not take it."""
    command: Any = text.encode(errors="surrogateescape")  # asyncssh takes bytes as well, though its types do not say so
    limit = asyncio.timeout(STEP_SECONDS)
    try:
        async with limit:
            _, session = await connection.create_session(BoundedProcess, command, encoding=None)
    except LOST as error:
        if limit.expired():
            raise StepFailed(f"the guest did not take {_verb(text)} within {STEP_SECONDS:g} s") from error
        raise Dropped(str(error)) from error
    return cast(BoundedProcess, session)


async def run(
    connection: asyncssh.SSHClientConnection, text: str, *, limit: int = 1 << 20, within: float = STEP_SECONDS
) -> Reply:
    """Ask a step that reads nothing and writes at most `limit` bytes; return when it ended.

    Raises Dropped when the connection drops; StepFailed when it writes more, is killed, or takes over `within` seconds.
    """
    verb = _verb(text)
    try:
        async with asyncio.timeout(within), step(connection, text) as process:
            process.stdin.write_eof()
            stdout, stderr = await asyncio.gather(_bounded(process.stdout, limit, verb), tail(process))
            status = await ended(process)
    except TimeoutError as error:
        raise StepFailed(f"the guest did not end {verb} within {within:g} s") from error
    if status < 0:
        raise StepFailed(f"{verb} was killed in the guest: {stderr}")
    return Reply(stdout, stderr, status)


async def ended(process: Process) -> int:
    """The exit status of a step whose output was read to its end; negative when a signal ended it.

    asyncssh gives no status, and raises nothing, when the connection drops: that is Dropped here, in this one place.
    """
    try:
        await process.wait_closed()
    except LOST as error:
        raise Dropped(str(error)) from error
    status = process.exit_status
    if status is None:
        raise Dropped("the connection ended before the step did")
    return status


async def tail(process: Process) -> str:
    """What a step wrote to its stderr, read to the end and cut to MAX_STDERR, in one printable line."""
    text = bytearray()
    while chunk := await process.stderr.read(65536):
        text += chunk[: MAX_STDERR - len(text)]
    return printable(text.decode(errors="replace").strip(), MAX_STDERR)


async def _bounded(reader: asyncssh.SSHReader[bytes], limit: int, verb: str) -> bytes:
    text = bytearray()
    while chunk := await reader.read(65536):
        text += chunk
        if len(text) > limit:
            raise StepFailed(f"{verb} wrote more than {limit} bytes")
    return bytes(text)
