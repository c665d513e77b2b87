"""Frames, as they are written to the runner: one byte of kind, four of length (big-endian), the payload."""

from __future__ import annotations

import os

CHUNK = 1 << 16


def send(kind: bytes, payload: bytes) -> None:
    data = memoryview(kind + len(payload).to_bytes(4, "big") + payload)
    while data:
        data = data[os.write(1, data) :]
