"""Small JSON documents beside the logs of an attempt: what was found in its trace, the receipt."""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum
from pathlib import Path
from typing import Any

from orchestrator.artifacts.disk import write_whole

MAX_DOCUMENT_BYTES = 64 * 2**20


class DocumentName(StrEnum):
    """What an attempt can have, each once."""

    FINDINGS = "findings.json"
    RECEIPT = "receipt.json"


def keep_document(path: Path, data: Any, *, scratch: Path) -> str:
    """Write `data` as canonical JSON (sorted, no spaces, ASCII), whole or not at all; the sha256 of the file, in hex.

    Raises ValueError for what is no JSON (a NaN, say) or longer than MAX_DOCUMENT_BYTES, HostDiskFull.
    """
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    if len(text) > MAX_DOCUMENT_BYTES:
        raise ValueError(f"{path.name} has {len(text)} bytes, and at most {MAX_DOCUMENT_BYTES} are kept")
    write_whole(path, text, scratch=scratch)
    return hashlib.sha256(text).hexdigest()


def read_document(path: Path) -> Any:
    """What was kept there; None: nothing was. Raises ValueError when it is not what was kept."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_DOCUMENT_BYTES + 1)
    except FileNotFoundError:
        return None
    if len(text) > MAX_DOCUMENT_BYTES:
        raise ValueError(f"{path} is larger than what is kept there")
    return json.loads(text)
