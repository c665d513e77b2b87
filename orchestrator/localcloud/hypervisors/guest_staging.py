"""What a simulated guest does with inputs: takes the frames, keeps nothing but their hashes, and says what it must."""

from __future__ import annotations

import hashlib
import zlib
from typing import Any

import asyncssh

_MOST = 1 << 24


async def take_inputs(session: asyncssh.SSHServerProcess[bytes]) -> None:
    """Answer frames until the input ends. It has nothing of a file that it is asked about."""
    whole: Any = hashlib.sha256()
    while head := await session.stdin.read(1):
        length = int.from_bytes(await session.stdin.readexactly(4), "big")
        if length > _MOST:
            raise OSError("a frame that is too long")
        kind, payload = head, await session.stdin.readexactly(length)
        if kind in b"BC":
            kind, payload = kind.lower(), zlib.decompress(payload)
        if kind == b"b":
            _say(session, b"h", hashlib.sha256(payload).hexdigest().encode())
        elif kind == b"q":
            _say(session, b"p", b"0 " + hashlib.sha256().hexdigest().encode())
        elif kind == b"o":
            whole = hashlib.sha256()
        elif kind == b"c":
            whole.update(payload)
        elif kind == b"e":
            _say(session, b"h", whole.hexdigest().encode())


def _say(session: asyncssh.SSHServerProcess[bytes], kind: bytes, payload: bytes) -> None:
    session.stdout.write(kind + len(payload).to_bytes(4, "big") + payload)
