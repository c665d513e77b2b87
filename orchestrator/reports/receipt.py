"""What a report says of an attempt's receipt. It is not checked here: `mayfly verify` does that."""

from __future__ import annotations

import base64
import json
from typing import Any

from orchestrator.artifacts import Artifacts, DocumentName
from orchestrator.store import AttemptRow


def told_of(attempt: AttemptRow, artifacts: Artifacts) -> tuple[dict[str, Any] | None, dict[str, int]]:
    """`sha256` of its file, `signed_at`, and the id of the `key`, None: there is none yet; and the lines that each log
    had when it was signed. Blocking."""
    if attempt.receipt_sha256 is None:
        return None, {}
    receipt = {"sha256": attempt.receipt_sha256, "signed_at": attempt.receipt_at, "key": None}
    try:
        envelope = artifacts.read_json(attempt.task_id, attempt.number, DocumentName.RECEIPT)
        [signature] = envelope["signatures"]
        subjects = _subjects(base64.b64decode(envelope["payload"]))
        return {**receipt, "key": signature["keyid"]}, subjects
    except (ValueError, KeyError, TypeError):  # it was damaged: then its hash, which the database has, says so
        return receipt, {}


def _subjects(payload: bytes) -> dict[str, int]:
    lines = {
        each["name"].removeprefix("logs/"): each["annotations"]["lines"] for each in json.loads(payload)["subject"]
    }
    return {name: count for name, count in lines.items() if isinstance(count, int)}
