"""Why QEMU stopped a machine unasked: above all an overlay for which the host's disk has no room."""

from __future__ import annotations

from orchestrator.localcloud.hypervisors.qmp import Qmp

_STOPPED = ("io-error", "paused", "internal-error", "guest-panicked", "watchdog")
"""Of QEMU's run states those in which a machine stands still."""
_OF_DISKS = {"nospace": "no space left on the host's disk", "failed": "the host's disk failed"}


def why_paused(qmp: Qmp) -> str:
    """`io-error (no space left on the host's disk)`, another state of QEMU's, or "" when the machine runs. Raises
    HypervisorError."""
    state = str(qmp.execute("query-status")["status"])
    if state not in _STOPPED:
        return ""
    if state != "io-error":
        return state
    reasons = {
        _OF_DISKS[disk["io-status"]] for disk in qmp.execute("query-block") if disk.get("io-status") in _OF_DISKS
    }
    return f"{state} ({', '.join(sorted(reasons))})" if reasons else state
