"""How the cloud says no: `[False, text, code, object_id, -1]`.

Codes and texts are those that an OpenNebula 7.2.0 server returned.
"""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """OpenNebula's error codes. They are coarse: a quota, a restricted attribute and a lock are all AUTHORIZATION."""

    AUTHENTICATION = 0x0100
    AUTHORIZATION = 0x0200
    NO_EXISTS = 0x0400
    ACTION = 0x0800
    API = 0x1000
    INTERNAL = 0x2000
    ALLOCATE = 0x4000


class Refused(Exception):
    """The call failed. `text` lacks the `[one.method] ` prefix, which the server adds."""

    def __init__(self, code: int, text: str, object_id: int = -1) -> None:
        self.code = code
        self.text = text
        self.object_id = object_id
        super().__init__(text)


class CallFault(Exception):
    """The call itself was malformed: an XML-RPC fault, not a reply."""

    NOT_A_CALL = -501
    NO_SUCH_METHOD = -506

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        self.text = text
        super().__init__(text)


def no_such(kind: str, object_id: int) -> Refused:
    """1024. A negative id is the whole pool, which cannot be asked for in that way."""
    what = f"{kind} Pool." if object_id < 0 else f"{kind} [{object_id}]."
    return Refused(Code.NO_EXISTS, f"Error getting {what}", max(object_id, -1))


def wrong_state(text: str) -> Refused:
    """2048: not in this state, which is often "not yet"."""
    return Refused(Code.ACTION, text)


def internal(text: str) -> Refused:
    """8192, which most calls answer when what they were given makes no sense."""
    return Refused(Code.INTERNAL, text)
