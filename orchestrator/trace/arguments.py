"""What stands between the parentheses of a call, as strace writes it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice

_STRING = re.compile(rb'(@?)"([^"\\]*+(?:\\.[^"\\]*+)*+)(?:"|\\?\Z)(\.\.\.)?', re.DOTALL)
"""One that nothing ends goes to the end of the text: then it is looked for once, not at every quote in it."""
_TOKEN = re.compile(
    rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)'  # a string
    rb"|(?<=[0-9D])<[/a-z(][^<>]*>"  # what a descriptor is (-y)
    rb"|/\* [^*]{0,64}+\*/"
    rb"|([\[{(])|([\]})])|(, )",
    re.DOTALL,
)
_MOST_TOKENS = 4096
_PLAIN_ONES = re.compile(
    rb'(?:((?:AT_FDCWD|\d{1,10})(?:<[^<>"]*>)?), )?("[^"\\]*")(?:, ([A-Z0-9_|]+))?(?:, (\d+))?', re.DOTALL
)
"""Most of those that name a file: a descriptor, a name, flags, a mode."""
_ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|([0-7]{1,3})|(.))", re.DOTALL)
_PLAIN = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"v": b"\v", b"f": b"\f", b"a": b"\a", b"b": b"\b", b"e": b"\x1b"}
_DESCRIPTOR = re.compile(rb"(AT_FDCWD|\d{1,10})(?:<([^<>]*)>(?:\(deleted\))?)?")


def split(arguments: bytes) -> list[bytes]:
    """The arguments one by one: a comma in a string, a list or the name of a descriptor parts nothing.

    >>> split(b'3<socket:[7]>, {sa_family=AF_INET, sin_port=htons(80)}, 16')
    [b'3<socket:[7]>', b'{sa_family=AF_INET, sin_port=htons(80)}', b'16']
    """
    if (plain := _PLAIN_ONES.fullmatch(arguments)) is not None:
        return [part for part in plain.groups() if part is not None]
    if not arguments:
        return []
    parts, depth, begin = [], 0, 0
    for token in islice(_TOKEN.finditer(arguments), _MOST_TOKENS):
        kind = token.lastindex
        if kind == 1:
            depth += 1
        elif kind == 2:
            depth -= 1
        elif kind == 3 and depth <= 0:
            parts.append(arguments[begin : token.start()])
            begin = token.end()
    parts.append(arguments[begin:])
    return parts


@dataclass(frozen=True, slots=True)
class Text:
    """A string of a process's. `cut`: strace did not write all of it."""

    value: bytes
    cut: bool


def texts(argument: bytes) -> list[Text]:
    """The quoted strings in an argument, as they were before strace escaped them."""
    return [Text(found[1] + unescape(found[2]), bool(found[3])) for found in _STRING.finditer(argument)]


def text(argument: bytes) -> Text | None:
    """The string that an argument is; None when it is none (NULL, an address)."""
    found = _STRING.fullmatch(argument)
    return None if found is None or found[1] else Text(unescape(found[2]), bool(found[3]))


def unescape(raw: bytes) -> bytes:
    """Octal and hexadecimal stand for bytes."""
    return _ESCAPE.sub(_unescaped, raw) if b"\\" in raw else raw


def _unescaped(escape: re.Match[bytes]) -> bytes:
    if escape[1]:
        return bytes.fromhex(escape[1].decode())
    if escape[2]:
        return bytes([int(escape[2], 8) & 0xFF])
    return _PLAIN.get(escape[3], escape[3])


def descriptor(argument: bytes) -> tuple[int | None, bytes] | None:
    """The number of a descriptor (None: AT_FDCWD) and what strace says that it is, b"" for nothing; None: it is none.

    >>> descriptor(b"AT_FDCWD</task/out>")
    (None, b'/task/out')
    """
    found = _DESCRIPTOR.fullmatch(argument)
    if found is None:
        return None
    return None if found[1] == b"AT_FDCWD" else int(found[1]), unescape(found[2] or b"")


def readable(raw: bytes, most: int) -> str:
    r"""Text for people: what is not UTF-8 as \xNN, and at most `most` characters.

    >>> readable(b"a\xffb", 10), readable(b"abcdef", 4)
    ('a\\xffb', 'abc…')
    """
    shown = raw[: 4 * most].decode(errors="backslashreplace")
    return shown if len(shown) <= most else shown[: most - 1] + "…"
