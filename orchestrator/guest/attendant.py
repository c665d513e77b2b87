"""The far side's attendant (`scripts/arm.py`, `scripts/attend.py`), as frames read from a step."""

from __future__ import annotations

import asyncio

from orchestrator.guest.errors import Dropped, StepFailed
from orchestrator.guest.wire import LOST, Process, ended, tail

MAX_FRAME = 1 << 17


class Attendant:
    """One attendant: `frame()` gives what it says, `send()` asks."""

    def __init__(self, process: Process, verb: str = "mayfly-attend") -> None:
        self._process = process
        self._verb = verb
        self._said = asyncio.create_task(tail(process), name="attendant's stderr")

    async def expect(self, wanted: bytes, *, anew: bool = True) -> bytes:
        """The payload of the next frame, which must be of that kind. Raises Dropped; StepFailed when the program ends
        instead, which it would do again: not so when it is not `anew`, but has waited."""
        try:
            kind, payload = await self._frame()
        except asyncio.IncompleteReadError as error:
            how = f"{self._verb} {await self._end()}"
            raise (StepFailed(how) if anew else Dropped(how)) from error
        if kind != wanted:
            raise StepFailed(f"the guest sent a frame of kind {kind!r} instead of {wanted!r} for {self._verb}")
        return payload

    async def frame(self) -> tuple[bytes, bytes]:
        """The next frame: its kind, one byte, and its payload. Raises Dropped when the connection, or the attendant, is
        gone: another can go on where it stopped."""
        try:
            return await self._frame()
        except asyncio.IncompleteReadError as error:
            raise Dropped(f"{self._verb} {await self._end()}") from error

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

    async def _frame(self) -> tuple[bytes, bytes]:
        try:
            head = await self._process.stdout.readexactly(5)
            length = int.from_bytes(head[1:], "big")
            if length > MAX_FRAME:
                raise StepFailed(f"the guest announced a frame of {length} bytes")
            return head[:1], await self._process.stdout.readexactly(length)
        except LOST as error:
            raise Dropped(str(error)) from error

    async def _end(self) -> str:
        status = await ended(self._process)
        return f"ended in the guest (status {status}): {await self._said}"
