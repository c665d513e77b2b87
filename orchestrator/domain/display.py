"""How a name that came out of a machine is shown to a person. The stored name stays as it is."""

from __future__ import annotations

import re
import unicodedata

_WITH_MARKS = re.compile(r"[^\x00-\x7f]+|[\x00-\x7f](?=[^\x00-\x7f])[^\x00-\x7f]+")
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Letters and marks that show as nothing: Default_Ignorable_Code_Point of Unicode's DerivedCoreProperties.txt as far as
Python calls them printable, and the empty Braille pattern."""


def shown_name(name: str) -> str:
    r"""`name` in one line that says which name it is: two names that differ are shown differently, and neither moves
    the cursor nor turns the direction of writing.

    Shown as escapes: controls, line ends, bidirectional overrides and whatever else is not seen (\xNN, \uNNNN); bytes
    that are not UTF-8 (\xNN); letters that are not in Unicode's NFC, which look like those that are; the backslash,
    doubled; spaces at either end.

    >>> print(shown_name("a\x1b[2J\u202ecod.exe"))
    a\x1b[2J\u202ecod.exe
    >>> print(shown_name("caf\u00e9"), shown_name("cafe\u0301"))
    café cafe\u0301
    """
    text = _WITH_MARKS.sub(_composed, "".join(map(_seen, name)))
    inner = text.strip(" ")
    left = len(text) - len(text.lstrip(" ")) if inner else len(text)
    return "\\x20" * left + inner + "\\x20" * (len(text) - left - len(inner))


def _seen(letter: str) -> str:
    if letter == "\\":
        return "\\\\"
    if letter.isprintable() and not _UNSEEN.match(letter):
        return letter
    return _escaped(letter)


def _composed(run: re.Match[str]) -> str:
    text = run[0]
    if unicodedata.is_normalized("NFC", text):
        return text
    return "".join(letter if letter.isascii() else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # a byte, as PEP 383 has it
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
