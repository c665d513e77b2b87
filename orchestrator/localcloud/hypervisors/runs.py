"""What ran in simulated guests, counted by the processes themselves: one JSON document a line, in the order of events.

    {"event": "started", "vm": 12, "task": "t1", "hostname": "mayfly-t1-2", "token": "t1.2", "argv": ["true"], …}
    {"event": "counted", …, "count": "WORD"}           the statement `count WORD` was reached
    {"event": "ended", …, "record": {"code": "exited"}}  the process ended while its machine ran

Each has its instant, `at` (Unix seconds). `vm` is OpenNebula's id; `task` and the attempt are in the machine's name, as
Mayfly gives it: mayfly-TASK-ATTEMPT.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = "runs.jsonl"


@dataclass(frozen=True, slots=True)
class RunLog:
    """The file, and whose lines are written."""

    path: Path
    vm_id: int
    hostname: str

    def add(self, event: str, token: str, details: Mapping[str, Any]) -> None:
        """One line in one write, so that lines of several processes do not mix. Raises OSError."""
        parts = self.hostname.split("-")
        line = {"event": event, "vm": self.vm_id, "task": parts[1] if len(parts) > 1 else "", "hostname": self.hostname}
        line |= {"token": token, **details, "at": time.time()}
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, json.dumps(line).encode() + b"\n")
        finally:
            os.close(descriptor)


def read_runs(path: Path) -> list[dict[str, Any]]:
    """All lines so far; none when nothing has run."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines()]
