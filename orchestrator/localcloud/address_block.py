"""The part of 127.0.0.0/8 that a home has for itself, so that the machines of two homes on one host do not meet.

Its number comes from the home's path; when another cloud that runs has the same, the next free one is taken, and kept
in the home. A cloud that runs holds its block by a socket on the block's last address, which no machine is given.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import socket
from pathlib import Path

BLOCK = 1 << 12
"""Addresses of a block."""
_BLOCKS = 1 << 11
_FIRST = ipaddress.IPv4Address("127.128.0.0")
_PORT = 2222

log = logging.getLogger(__name__)


def hold_block(home: Path) -> socket.socket | None:
    """Hold the home's block until the socket is closed; one is chosen when it has none. None: another cloud that runs
    has it, which is told in the log. Raises OSError when no block is free."""
    kept = home / "addresses"
    if kept.exists():
        held = _held(block_of(home))
        if held is None:
            log.warning("another cloud has the addresses from %s on, too: machines of the two may meet", block_of(home))
        return held
    number = _number(home)
    for step in range(_BLOCKS):
        block = _FIRST + (number + step) % _BLOCKS * BLOCK
        if (held := _held(block)) is not None:
            kept.write_text(f"{block}\n")
            return held
    raise OSError("no block of addresses is free")


def block_of(home: Path) -> ipaddress.IPv4Address:
    """The first address of the home's block."""
    try:
        return ipaddress.IPv4Address((home / "addresses").read_text().strip())
    except (FileNotFoundError, ValueError):
        return _FIRST + _number(home) * BLOCK


def _number(home: Path) -> int:
    return int.from_bytes(hashlib.sha256(str(home.resolve()).encode()).digest()[:4], "big") % _BLOCKS


def _held(block: ipaddress.IPv4Address) -> socket.socket | None:
    held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        held.bind((str(block + BLOCK - 1), _PORT))
    except OSError:
        held.close()
        return None
    return held
