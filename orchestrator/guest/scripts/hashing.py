"""sha256, by whichever code there is that takes least time here."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # to load typing takes too long in an emulated machine
    from typing import Any

LARGE = 8 << 20
"""Bytes. Python's own sha256 loads at once, OpenSSL's takes as long to load as it gains with so much."""

_made: list[Any] = []


def sha256_for(size: int) -> Any:
    """A new hash for about `size` bytes."""
    if size < LARGE and not _made:
        try:
            import _sha256  # type: ignore[import-not-found,unused-ignore]

            return _sha256.sha256()
        except ImportError:
            pass
    if not _made:
        if emulated():
            # vector instructions cost several times more than they save there
            os.environ.setdefault("OPENSSL_ia32cap", "0x0:0x0")
        import _hashlib

        _made.append(_hashlib.openssl_sha256)
    return _made[0]()


def emulated() -> bool:
    """QEMU without the help of the processor, as far as it says so."""
    try:
        about = os.open("/proc/cpuinfo", os.O_RDONLY)
    except OSError:
        return False
    try:
        return b"QEMU TCG" in os.read(about, 4096)
    finally:
        os.close(about)
