"""The far side's attendant (`scripts/attend.py`), as frames read from a step."""

from __future__ import annotations

import asyncio

from orchestrator.guest.errors import Dropped, StepFailed
from orchestrator.guest.wire import LOST, Process, ended, tail

MAX_FRAME = 1 << 17


class Attendant:
    """One attendant: `frame()` gives what it says, `send()` asks."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._said = asyncio.create_task(tail(process), name="attendant's stderr")

    async def line(self) -> str:
        """A line in front of the frames: of the script that starts it."""
        try:
            line = (await self._process.stdout.readuntil(b"\n")).decode(errors="replace").strip()
        except asyncio.IncompleteReadError as error:
            raise StepFailed(f"mayfly-start {await self._end()}") from error
        except LOST as error:
            raise Dropped(str(error)) from error
        return line

    async def frame(self) -> tuple[bytes, bytes]:
        """The next frame: its kind, one byte, and its payload. Raises Dropped when the connection, or the attendant, is
        gone: another can go on where it stopped."""
        try:
            head = await self._process.stdout.readexactly(5)
            length = int.from_bytes(head[1:], "big")
            if length > MAX_FRAME:
                raise StepFailed(f"the guest announced a frame of {length} bytes")
            return head[:1], await self._process.stdout.readexactly(length)
        except asyncio.IncompleteReadError as error:
            raise Dropped(f"mayfly-attend {await self._end()}") from error
        except LOST as error:
            raise Dropped(str(error)) from error

    async def send(self, data: bytes) -> None:
        """Write to its input. Raises Dropped."""
        try:
            self._process.stdin.write(data)
            await self._process.stdin.drain()
        except LOST as error:
            raise Dropped(str(error)) from error

    async def close(self) -> None:
        """End it. Idempotent, never raises."""
        self._process.close()
        self._said.cancel()
        await asyncio.gather(self._said, return_exceptions=True)

    async def _end(self) -> str:
        status = await ended(self._process)
        return f"ended in the guest (status {status}): {await self._said}"
