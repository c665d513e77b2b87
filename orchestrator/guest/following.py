"""What the process writes, as it writes it, and how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

from orchestrator.guest.attendant import Attendant
from orchestrator.guest.errors import StepFailed, printable


class Sink(Protocol):
    """Where a stream goes. `offset`: how many bytes of it are held; `write` adds to it, or raises and does not."""

    @property
    def offset(self) -> int: ...
    async def write(self, data: bytes, /) -> None: ...


_QUICK_SECONDS = 0.05
_SLOWEST = 2**20
"""Bytes a second that a disk of ours takes."""


class Unhurried:
    """A sink that may take its time (its disk is full, say): what a write takes is not counted against `deadline`. The
    guest meanwhile keeps what it cannot send, and the process goes on.

    Of a write that is quick only so much is not counted as its bytes may take: else a guest that sends them one by one
    would be waited for for hours."""

    def __init__(self, sink: Sink, deadline: asyncio.Timeout) -> None:
        self._sink = sink
        self._deadline = deadline

    @property
    def offset(self) -> int:
        return self._sink.offset

    async def write(self, data: bytes, /) -> None:
        loop, until = asyncio.get_running_loop(), self._deadline.when()
        began = loop.time()
        if until is not None and until <= began:  # with something to write all the time, it has had no turn to say so
            raise TimeoutError
        self._deadline.reschedule(None)
        try:
            await self._sink.write(data)
        finally:
            took = loop.time() - began
            free = took if took > _QUICK_SECONDS else min(took, len(data) / _SLOWEST)
            self._deadline.reschedule(None if until is None else until + free)


class NoProcess(Exception):
    """The guest has no such process. Never leaves the room."""


async def pump(attendant: Attendant, sinks: Mapping[bytes, Sink], limit: int) -> bytes:
    """Give each sink its stream until the exit record comes, and return that. `sinks`: by kind of frame.

    Raises Dropped, StepFailed, NoProcess.
    """
    while True:
        kind, payload = await attendant.frame()
        match kind:
            case b"x":
                return payload
            case b"n":
                raise NoProcess(printable(payload.decode(errors="replace")))
            case b"o" | b"e" | b"t" if payload:
                sink = sinks[kind]
                if sink.offset + len(payload) > limit:
                    raise StepFailed("the guest sent more of a stream than it was asked for")
                await sink.write(payload)
            case _:
                raise StepFailed(f"the guest sent a frame of kind {kind!r} while the process ran")
