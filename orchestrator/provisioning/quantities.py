"""Sizes and times as people write them, in an inventory and at the command line."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator

_SIZE = re.compile(r"(\d+)\s*([KMGT])(?:i?B)?", re.IGNORECASE)
_TIME = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?")
_SECONDS = re.compile(r"\d+(?:\.\d+)?")
_POWER = {"K": 1, "M": 2, "G": 3, "T": 4}


def size_in_bytes(value: object) -> int:
    """`512M` or `2GiB`, in powers of 1024; a unit is needed. Raises ValueError saying what is expected.

    >>> size_in_bytes("512M") == 512 * 2**20
    True
    """
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or int(match[1]) == 0:
        raise ValueError("expected a size with a unit, such as 512M or 2G")
    return int(match[1]) * int(1024 ** _POWER[match[2].upper()])


def time_in_seconds(value: object) -> float:
    """`90s`, `2h`, `1h30m`, or a number of seconds (`90`); more than 0. Raises ValueError saying what is expected.

    >>> time_in_seconds("1h30m")
    5400.0
    """
    seconds = 0.0
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, int | float | str) and (number or _SECONDS.fullmatch(str(value).strip())):
        seconds = float(value)
    elif isinstance(value, str) and (match := _TIME.fullmatch(value.strip())):
        days, hours, minutes, rest = (float(part or 0) for part in match.groups())
        seconds = days * 86400 + hours * 3600 + minutes * 60 + rest
    if not 0 < seconds < float("inf"):
        raise ValueError("expected a time of more than 0, such as 90s, 15m or 2h")
    return seconds


Size = Annotated[int, BeforeValidator(size_in_bytes)]
Time = Annotated[float, BeforeValidator(time_in_seconds)]
