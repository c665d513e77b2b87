"""What people are told of a machine, as it stands in an attempt's environment."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from orchestrator.guest import Facts, Probe


def told_by(facts: Facts) -> dict[str, Any]:
    """What it is."""
    return {
        "kernel": facts.kernel,
        "memory_bytes": facts.memory_bytes,
        "disk_free_bytes": facts.disk_free_bytes,
        "boot_seconds": facts.uptime_seconds,
    }


def probed(probes: Iterable[Probe], *, at: datetime) -> dict[str, Any]:
    """What could be reached from inside, and when that was tried."""
    seal = [{"target": each.target, "reached": each.reached, "detail": each.detail} for each in probes]
    return {"seal": seal, "probed_at": at.isoformat()}
