"""The database: the only memory. Frozen views come out, named transitions go in."""

from orchestrator.store.encoding import Timings
from orchestrator.store.events import EventKind
from orchestrator.store.opened import Store
from orchestrator.store.transitions import Finished, Requeued, StageEntered, VmMoved, VmRequest
from orchestrator.store.views import AttemptRow, Beat, Claim, EventRow, Lease, RunnerRow, TaskRow, VmRow

__all__ = [
    "AttemptRow",
    "Beat",
    "Claim",
    "EventKind",
    "EventRow",
    "Finished",
    "Lease",
    "Requeued",
    "RunnerRow",
    "StageEntered",
    "Store",
    "TaskRow",
    "Timings",
    "VmMoved",
    "VmRequest",
    "VmRow",
]
