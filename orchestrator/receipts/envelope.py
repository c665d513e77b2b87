"""A DSSE envelope: a statement, and the signature over it. Its file has one form, so that no byte of it can be another.

The form: canonical JSON (sorted, no spaces, ASCII) of one signature by one Ed25519 key. Whatever decodes to the same,
but is written otherwise (a space, another base64, one more field), is refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import Error, VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
"""Of in-toto's envelopes: in-toto attestation framework, envelope layer, v1."""


class Refused(Exception):
    """It does not prove what it says: the message says why."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What a good envelope holds, and the id of the key that signed it."""

    statement: dict[str, Any]
    key_id: str


def canonical(data: Any) -> bytes:
    """JSON, the same for equal data: sorted, no spaces, ASCII. Raises ValueError for what is no JSON, as a NaN."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def sealed(statement: dict[str, Any], signer: CryptoSigner) -> dict[str, Any]:
    """The envelope of a statement, ready for `canonical`."""
    envelope = Envelope(canonical(statement), PAYLOAD_TYPE, {})
    envelope.sign(signer)
    return envelope.to_dict()


def opened(file: bytes, keys: Sequence[SSlibKey]) -> Opened:
    """What the envelope in `file` says, if one of these keys signed it. Raises Refused."""
    envelope = _read(file)
    try:
        accepted = envelope.verify(list(keys), 1) if keys else {}
    except VerificationError as error:
        signers = ", ".join(key_id[:16] for key_id in envelope.signatures)
        known = any(key.keyid in envelope.signatures for key in keys)
        if known:
            raise Refused("the signature is not right: the statement, or the signature, was changed") from error
        raise Refused(f"signed by another key, {signers}…") from error
    if not accepted:
        raise Refused("there is no key to check the signature with")
    try:
        statement = json.loads(envelope.payload)
        same = canonical(statement) == envelope.payload
    except (ValueError, RecursionError) as error:
        raise Refused("what was signed is no JSON") from error
    if not same or not isinstance(statement, dict):
        raise Refused("what was signed is not written as a statement of ours")
    return Opened(statement, next(iter(accepted)))


def _read(file: bytes) -> Envelope:
    try:
        data = json.loads(file)
        envelope = Envelope.from_dict(data)
        again = canonical(envelope.to_dict())
    except (Error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Refused("not a signed envelope (DSSE)") from error
    if envelope.payload_type != PAYLOAD_TYPE:
        raise Refused(f"what is signed is said to be {envelope.payload_type!r}, and not {PAYLOAD_TYPE}")
    signatures = envelope.signatures.values()
    plain = [type(each.keyid) is str and not each.unrecognized_fields for each in signatures]
    if again != file or plain != [True]:
        raise Refused("the envelope is not written as Mayfly writes it: it was changed")
    return envelope
