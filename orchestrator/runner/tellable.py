"""What people are told of a machine, as it stands in an attempt's environment."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from orchestrator.guest import Facts, Probe
from orchestrator.opennebula import ImageVersion


def told_by(facts: Facts) -> dict[str, Any]:
    """What it is."""
    return {
        "kernel": facts.kernel,
        "memory_bytes": facts.memory_bytes,
        "disk_free_bytes": facts.disk_free_bytes,
        "boot_seconds": facts.uptime_seconds,
        "quotas": facts.quotas,
    }


def told_of_image(image: ImageVersion) -> dict[str, Any]:
    """What it was made of."""
    told = {
        "name": image.image,
        "version": image.version,
        "recipe": image.recipe,
        "template_id": image.template_id,
        "disk_image_id": image.disk_image,
        "built_at": datetime.fromtimestamp(image.created, UTC).isoformat(),
    }
    return {"image": told | ({"disk_sha256": image.disk_sha256} if image.disk_sha256 else {})}


def probed(probes: Iterable[Probe], *, at: datetime) -> dict[str, Any]:
    """What could be reached from inside, and when that was tried."""
    seal = [{"target": each.target, "reached": each.reached, "detail": each.detail} for each in probes]
    return {"seal": seal, "probed_at": at.isoformat()}
