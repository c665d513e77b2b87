"""Text that is kept as gzip members, one behind the other (RFC 1952), and read while the last one grows."""

from __future__ import annotations

import zlib

MAGIC = b"\x1f\x8b"
_GZIP = 31
_STEP = 1 << 20


class Members:
    """Feed it what is stored, in order and in any pieces; it gives the plain text. What does not begin as a member does
    is plain itself. `broken`: what came then is no member; nothing of that or of what follows is given."""

    def __init__(self) -> None:
        self.broken = False
        self._is_plain: bool | None = None
        self._inflating = zlib.decompressobj(_GZIP)
        self._waiting = b""

    def copy(self) -> Members:
        """Another, at the same place."""
        other = Members()
        other.broken, other._is_plain, other._waiting = self.broken, self._is_plain, self._waiting
        other._inflating = self._inflating.copy()
        return other

    def feed(self, stored: bytes, limit: int) -> bytes:
        """At most `limit` bytes of the plain text of what was fed so far, `stored` being the last of it. Empty: there
        is nothing more without more of what is stored."""
        self._waiting += stored
        if self._is_plain is None and len(self._waiting) >= len(MAGIC):
            self._is_plain = not self._waiting.startswith(MAGIC)
        if self._is_plain is None or self.broken:
            return b""
        if self._is_plain:
            given, self._waiting = self._waiting[:limit], self._waiting[limit:]
            return given
        return self._inflate(limit)

    def measure(self, stored: bytes, most: int) -> int:
        """How many bytes the plain text of `stored` has; no more is looked at once it is more than `most`."""
        size = 0
        while size <= most and (plain := self.feed(stored, _STEP)):
            size, stored = size + len(plain), b""
        return size

    def _inflate(self, limit: int) -> bytes:
        given = bytearray()
        while len(given) < limit:
            if self._inflating.eof:
                if not self._waiting:
                    break
                self._inflating = zlib.decompressobj(_GZIP)
            try:
                plain = self._inflating.decompress(self._waiting, limit - len(given))
            except zlib.error:
                self.broken, self._waiting = True, b""
                break
            given += plain
            at_end = self._inflating.eof
            self._waiting = self._inflating.unused_data if at_end else self._inflating.unconsumed_tail
            if not plain and not at_end and not self._waiting:
                break
        return bytes(given)
