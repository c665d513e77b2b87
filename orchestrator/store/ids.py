"""Ids that sort by the time they were made: ten characters of milliseconds, six of chance, Crockford's base 32.

The alphabet leaves out i, l, o and u, so that an id read aloud or from paper has one meaning
(https://www.crockford.com/base32.html).
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
LENGTH = 16
_TIME_CHARS = 10
_CHANCE_CHARS = 6
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_READ_AS = str.maketrans({"i": "1", "l": "1", "o": "0", "-": ""})


def new_id(now: datetime) -> str:
    """An id for something made at `now`.

    >>> len(new_id(datetime(2026, 1, 1, tzinfo=UTC)))
    16
    >>> new_id(datetime(2026, 1, 1, tzinfo=UTC)) < new_id(datetime(2026, 1, 2, tzinfo=UTC))
    True
    """
    milliseconds = (now - _EPOCH) // timedelta(milliseconds=1)
    return _encode(milliseconds, _TIME_CHARS) + _encode(secrets.randbits(5 * _CHANCE_CHARS), _CHANCE_CHARS)


def as_typed(text: str) -> str | None:
    """What a person typed, as (part of) an id: lower case, i and l read as 1, o as 0. None: it cannot be one.

    >>> as_typed("O1KB")
    '01kb'
    >>> as_typed("hello!") is None
    True
    """
    read = text.strip().lower().translate(_READ_AS)
    return read if 0 < len(read) <= LENGTH and set(read) <= set(ALPHABET) else None


def _encode(number: int, width: int) -> str:
    chars = []
    for _ in range(width):
        number, digit = divmod(number, 32)
        chars.append(ALPHABET[digit])
    return "".join(reversed(chars))
