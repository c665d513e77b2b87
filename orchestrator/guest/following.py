"""What the process writes, as it writes it, and how it ended."""

from __future__ import annotations

from typing import Protocol

from orchestrator.guest.attendant import Attendant
from orchestrator.guest.errors import StepFailed, printable


class Sink(Protocol):
    """Where a stream goes. `offset`: how many bytes of it are held; `write` adds to it, or raises and does not."""

    @property
    def offset(self) -> int: ...
    async def write(self, data: bytes, /) -> None: ...


class NoProcess(Exception):
    """The guest has no such process. Never leaves the room."""


async def pump(attendant: Attendant, sinks: dict[bytes, Sink], limit: int) -> bytes:
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
            case b"o" | b"e" | b"t":
                sink = sinks[kind]
                if sink.offset + len(payload) > limit:
                    raise StepFailed("the guest sent more of a stream than it was asked for")
                await sink.write(payload)
            case _:
                raise StepFailed(f"the guest sent a frame of kind {kind!r} while the process ran")
