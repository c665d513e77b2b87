"""Inputs in: a stream of frames over the connection, written by root under /task/in, and hashed on both ends.

What arrived whole is not sent again when the connection drops: small files when their frame was acknowledged, and of a
large one what the guest has of it, if the hash of that is right. Compressed on the way where it is worth while.

Modes: a file's owner keeps the bits it had, and may read it; everybody else may read it too, and execute it where the
owner may. Files belong to root and /task/in is read-only for the process, so the w bits open nothing. Set-id and sticky
bits are dropped. Times are those of the staging.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from orchestrator.domain.errors import StagingFailed, Unstageable
from orchestrator.guest import input_frames as frames
from orchestrator.guest.errors import printable
from orchestrator.guest.input_frames import CHUNK, SMALL, InputEntry, staged_mode
from orchestrator.guest.wire import LOST, MAX_STDERR, Process, ended, held_up, tail

__all__ = ["InputEntry", "Progress", "Sending", "check_tree", "staged_mode"]

Progress = Callable[[int, int], None]
"""Told of bytes done and bytes in all."""

STALLED_SECONDS = 120.0
"""A transfer in which nothing moves for so long has failed."""

_SLOWEST = 2 * 2**20
"""Bytes a second that are hashed and written: what even an emulated guest surpasses."""

_FAST_WIRE = 64 * 2**20
"""Bytes a second. What the wire takes at this rate would only be held up by compressing it."""

_IN_FLIGHT = 4 * 2**20
"""Bytes that SSH's window and the sockets take before anything has arrived."""

_MAX_ANSWER = 8192
_LOOK_SECONDS = 0.05


def check_tree(entries: Sequence[InputEntry]) -> None:
    """Raise StagingFailed for a path that is not a plain relative one, comes twice, lies under something that is no
    directory (a symbolic link, say), or holds a NUL."""
    kinds: dict[str, str] = {}
    for entry in entries:
        parts = entry.path.split("/")
        if not entry.path or "\0" in entry.path or any(part in ("", ".", "..") for part in parts):
            raise Unstageable(f"input '{printable(entry.path)}': not a plain relative path")
        if entry.path in kinds:
            raise Unstageable(f"input {printable(entry.path)}: staged twice")
        if entry.kind == "symlink" and (not entry.target or "\0" in entry.target):
            raise Unstageable(f"input {printable(entry.path)}: a symbolic link to nothing")
        kinds[entry.path] = entry.kind
    for path in kinds:
        parts = path.split("/")
        for depth in range(1, len(parts)):
            above = "/".join(parts[:depth])
            if kinds.get(above, "directory") != "directory":
                raise Unstageable(f"input {printable(path)}: {printable(above)} is not a directory")


@dataclass(frozen=True, slots=True)
class _Owed:
    """An acknowledgement that is to come: of so many files, which are so large, with that sha256."""

    files: int
    size: int
    sha256: str
    what: str


class Sending:
    """A tree on its way into one guest, over one connection or more.

    there: how many files are there whole, which are the first ones; there_bytes: what they hold.
    """

    def __init__(self, entries: Sequence[InputEntry], progress: Progress | None = None) -> None:
        self.directories = [entry for entry in entries if entry.kind == "directory"]
        self.files = [entry for entry in entries if entry.kind == "file"]
        self.links = [entry for entry in entries if entry.kind == "symlink"]
        self.there = 0
        self.there_bytes = 0
        self._half = 0
        self._total = sum(entry.size for entry in self.files)
        self._progress = progress
        self._told = -1
        self._tried: set[str] = set()

    @property
    def done(self) -> int:
        """Rises with what is known to be there."""
        return self.there + self.there_bytes + self._half

    async def send(self, process: Process) -> None:
        """Give the step what is not there yet. Raises StagingFailed, Dropped."""
        await _Try(self, process).run()

    def arrived(self, files: int, size: int) -> None:
        """The next so many files are there."""
        self.there += files
        self.there_bytes += size
        self._half = 0

    def half_there(self, size: int) -> None:
        """So much of the next file is."""
        self._half = size

    def tried(self, entry: InputEntry) -> bool:
        """It has been sent before, in part at least. It will be from now on."""
        known = entry.path in self._tried
        self._tried.add(entry.path)
        return known

    def tell(self, sent: int) -> None:
        """`sent`: bytes of content, in all. What is sent again is not told again."""
        if self._progress and sent > self._told:
            self._told = sent
            self._progress(sent, self._total)


class _Try:
    """What one connection does of it."""

    def __init__(self, sending: Sending, process: Process) -> None:
        self._sending = sending
        self._process = process
        self._owed: deque[_Owed] = deque()
        self._settled = asyncio.Event()
        self._asked: asyncio.Future[bytes] | None = None
        self._sent = sending.there_bytes
        self._on_wire = 0
        self._waited = 0.0

    async def run(self) -> None:
        wrong = asyncio.create_task(tail(self._process))
        writing, reading = asyncio.create_task(self._write()), asyncio.create_task(self._read())
        try:
            await asyncio.wait({writing, reading}, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                with suppress(*LOST):  # the step ended early, and says why; or the connection dropped, as `ended` says
                    await writing
                await self._rest(reading)
            await reading
            if status := await ended(self._process):
                why = (await wrong)[:MAX_STDERR]
                raise StagingFailed(f"the inputs did not go in (status {status}): {why}")
            if self._owed or not writing.done():
                raise StagingFailed("the guest ended staging in before all was there")
        finally:
            for task in (wrong, writing, reading):
                task.cancel()
            await asyncio.gather(wrong, writing, reading, return_exceptions=True)

    async def _rest(self, reading: asyncio.Task[None]) -> None:
        """All is sent: the guest has yet to write it, and to say so."""
        within = STALLED_SECONDS + sum(owed.size for owed in self._owed) / _SLOWEST
        await asyncio.wait({reading}, timeout=within)
        if not reading.done():
            raise StagingFailed(f"the guest did not end staging in within {within:g} s")

    async def _write(self) -> None:
        sending = self._sending
        if not sending.done:
            for each in frames.directories(sending.directories):
                await self._put(each)
        at = sending.there
        while at < len(sending.files):
            if sending.files[at].size > SMALL:
                await self._large(sending.files[at])
                at += 1
            else:
                at += await self._batch(at)
        for each in frames.links(sending.links):
            await self._put(each)
        self._process.stdin.write_eof()

    async def _batch(self, at: int) -> int:
        """Send small files from there on in one frame; how many."""
        files = self._sending.files
        end, size = at, 0
        while end < len(files) and files[end].size <= SMALL and size < CHUNK:
            size += files[end].size + len(files[end].path)
            end += 1
        content = sum(file.size for file in files[at:end])
        await self._known_of_most()
        payload, sha256 = await asyncio.to_thread(_whole, files[at:end])
        more = f" and {end - at - 1} more" if end - at > 1 else ""
        self._owed.append(_Owed(end - at, content, sha256, f"input {printable(files[at].path)}{more}"))
        await self._put(await self._squeezed(b"b", payload), content)
        return end - at

    async def _known_of_most(self) -> None:
        """Wait until the guest has said of all but a few that they are there. After a drop, those are sent again."""
        try:
            async with asyncio.timeout(STALLED_SECONDS):
                while sum(owed.size for owed in self._owed if owed.files > 1) > _IN_FLIGHT:
                    self._settled.clear()
                    await self._settled.wait()
        except TimeoutError as error:
            raise StagingFailed(f"the guest did not say for {STALLED_SECONDS:g} s what it had written") from error

    async def _large(self, entry: InputEntry) -> None:
        offset = await self._had(entry) if self._sending.tried(entry) else 0
        source = await asyncio.to_thread(frames.Reading, entry)
        try:
            if offset:
                await asyncio.to_thread(source.hash_of, offset)
            self._sent += offset
            await self._put(frames.opening(entry, offset))
            while source.left:
                data = await asyncio.to_thread(source.read, CHUNK)
                await self._put(await self._squeezed(b"c", data), len(data))
            source.check()
        finally:
            source.close()
        self._owed.append(_Owed(1, entry.size, entry.sha256, f"input {printable(entry.path)}"))
        await self._put(frames.frame(b"e", b""))

    async def _had(self, entry: InputEntry) -> int:
        """How much the guest has of a file, if the hash of that is right: what it merely claims to have counts for
        nothing."""
        self._asked = asyncio.get_running_loop().create_future()
        await self._put(frames.frame(b"q", frames.name(entry.path)))
        within = STALLED_SECONDS + entry.size / _SLOWEST
        try:
            answer = await asyncio.wait_for(self._asked, within)
        except TimeoutError as error:
            raise StagingFailed(f"the guest did not say within {within:g} s what it has of a file") from error
        digits, _, claimed = answer.partition(b" ")
        size = int(digits) if digits.isdigit() and len(digits) < 20 else 0
        if not 0 < size <= entry.size or (await asyncio.to_thread(_begin, entry, size)).encode() != claimed:
            return 0
        self._sending.half_there(size)
        return size

    async def _squeezed(self, kind: bytes, payload: bytes) -> bytes:
        """The frame, compressed if that is worth while; which it is not where the wire takes everything at once."""
        if self._on_wire - _IN_FLIGHT > _FAST_WIRE * self._waited:
            return frames.frame(kind, payload)
        return await asyncio.to_thread(frames.squeezed, kind, payload)

    async def _put(self, data: bytes, content: int = 0) -> None:
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(STALLED_SECONDS):
                self._process.stdin.write(data)
                await self._process.stdin.drain()
                while held_up(self._process):  # noqa: ASYNC110 - nothing tells when that ends
                    await asyncio.sleep(_LOOK_SECONDS)
        except TimeoutError as error:
            raise StagingFailed(f"the guest took no input for {STALLED_SECONDS:g} s") from error
        self._waited += asyncio.get_running_loop().time() - began
        self._on_wire += len(data)
        self._sent += content
        if content:
            self._sending.tell(self._sent)

    async def _read(self) -> None:
        """What the guest says, to the end."""
        while True:
            try:
                head = await self._process.stdout.readexactly(5)
                length = int.from_bytes(head[1:], "big")
                if length > _MAX_ANSWER:
                    raise StagingFailed(f"the guest announced a frame of {length} bytes while inputs went in")
                payload = await self._process.stdout.readexactly(length)
            except asyncio.IncompleteReadError:
                return
            match head[:1]:
                case b"h" if self._owed:
                    self._settle(self._owed.popleft(), payload.decode("ascii", "replace"))
                case b"p" if self._asked and not self._asked.done():
                    self._asked.set_result(payload)
                case b"!":
                    raise StagingFailed(f"the inputs did not go in: {printable(payload.decode(errors='replace'))}")
                case kind:
                    raise StagingFailed(f"the guest sent a frame of kind {kind!r} that nothing asked for")

    def _settle(self, owed: _Owed, sha256: str) -> None:
        if sha256 != owed.sha256:
            raise StagingFailed(f"{owed.what}: its sha256 in the guest is not what was sent")
        self._sending.arrived(owed.files, owed.size)
        self._settled.set()


def _whole(files: Sequence[InputEntry]) -> tuple[bytes, str]:
    payload = frames.whole(files)
    return payload, hashlib.sha256(payload).hexdigest()


def _begin(entry: InputEntry, size: int) -> str:
    """The sha256 of its first `size` bytes."""
    with frames.Reading(entry) as source:
        return source.hash_of(size)
